"""The LightningModule: one training_step is one optimiser step over several micro-batches.

Optimisation is manual because the losses are divided by the weight of the whole step, summed over all ranks and
micro-batches: so the result does not depend on how the step was split.
"""

# Shapes: B batch, K streams, T frames

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.duplex import DuplexLM
from model.errors import UserError
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP, ZERO
from ppx_train.training.agreement import Agreement
from ppx_train.training.build import base_lm, fingerprint, trainable_lm
from ppx_train.training.guard import MAX_SKIPPED, SpikeGuard
from ppx_train.training.loss import group_weights, total_loss
from ppx_train.training.micro_batch import MicroBatch
from ppx_train.training.optim import gradient_norms, lr_scale, make_optimizer, moments_by_name, parameter_groups
from ppx_train.training.ranks import all_sum, rank, world_size
from ppx_train.training.sharded import ShardedStrategy
from ppx_train.training.start import sharded_lm
from ppx_train.training.zero import ZeroStrategy

GUARD = "guard"
"""The key of the gradient norms in a saved state."""


class DuplexModule(L.LightningModule):
    """Trains a DuplexLM.

    `sums_4K` holds [loss, weight, correct, count] of each stream, summed over the micro-batches of the last step on
    this rank.
    """

    lm: DuplexLM

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = not run.model.lora.rank  # Checkpoints of adapters do not hold the frozen weights.
        self.base_sha256: str | None = None
        self.run = run
        self.agreement = Agreement()
        self.guard = SpikeGuard(run.optim.spike_factor)
        self.sums_4K = torch.zeros(0)
        self.gradient_norm = 0.0
        self.part_norms: dict[str, Tensor] = {}
        """The gradient norm of each part of the model, see `gradient_norms`, at the last step that was to be logged."""
        self.frames = 0

    def configure_model(self) -> None:
        """Builds the model and shards it if the run asks for that; Lightning may call this more than once."""
        if hasattr(self, "lm"):
            return
        if self.run.trainer.strategy in FSDP:
            strategy = self.trainer.strategy
            assert isinstance(strategy, ShardedStrategy)
            self.lm, self.base_sha256 = sharded_lm(self.run, strategy.shard_mesh, strategy.root_device)
            return
        # Lightning makes the run's own device the default one here; start weights drawn on a GPU would be others.
        with torch.device("cpu"):
            base = base_lm(self.run)
            self.base_sha256 = fingerprint(base) if self.run.model.lora.rank else None
            self.lm = trainable_lm(self.run, base)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW over the trainable parameters."""
        return make_optimizer(self.lm.named_parameters(), self.run.optim)

    @property
    def parameter_groups(self) -> list[list[str]]:
        """Names of the parameters of each group of the optimiser, as a state dict of this module has them."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        groups = parameter_groups(self.lm.named_parameters(), self.run.optim)
        return [[names[value] for value in group["params"]] for group in groups]

    @property
    def parameter_order(self) -> list[str]:
        """Names of the optimiser's parameters, group by group."""
        return [name for group in self.parameter_groups for name in group]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the parameters of the optimiser's state, for any strategy to load, and adds what the guard has seen."""
        states = checkpoint["optimizer_states"]
        checkpoint["optimizer_states"] = [moments_by_name(state, self.parameter_order) for state in states]
        checkpoint[GUARD] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the optimiser's state is of these parameters, by number or by name, and takes over the guard's.

        A checkpoint of an earlier version does not say what the guard had seen.
        """
        for state in checkpoint.get("optimizer_states", []):
            moments_by_name(state, self.parameter_order)
        if GUARD in checkpoint:
            self.guard.load_state_dict(checkpoint[GUARD])

    def forward(self, micro: MicroBatch) -> Tensor:
        """Returns [loss, weight, correct, count] x streams, summed over the micro-batch."""
        sums = self.lm(micro.codes_BKT, micro.weights_BKT, micro.lengths, micro.rows)  # type: ignore[operator]
        return torch.stack(list(sums))

    @property
    def network(self) -> nn.Module:
        """What computes a micro-batch: DeepSpeed's engine around this module, or this module."""
        return self.trainer.model if self.run.trainer.strategy in ZERO else self  # type: ignore[return-value]

    def training_step(self, micro_batches: list[MicroBatch], _: int) -> None:
        """Takes one optimiser step over the micro-batches of this rank."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        shared = torch.stack([group_weights(micro.weights_BKT) for micro in micro_batches]).sum(0)
        asked = [shared.new_full((1,), number) for number in self.agreement.ask()]
        shared = all_sum(torch.cat([shared, *asked]))
        self.agreement.agree(shared[2:])

        sums_4K: Tensor | None = None
        for number, micro in enumerate(micro_batches):
            self._synchronise_gradients(number == len(micro_batches) - 1)
            micro_sums_4K = self.network(micro)
            # Gradients are averaged over ranks, while the loss is already divided by the weight of all of them.
            self.manual_backward(total_loss(micro_sums_4K[0], shared[:2], self.run.loss) * world_size())
            detached = micro_sums_4K.detach()
            sums_4K = detached if sums_4K is None else sums_4K + detached
        assert sums_4K is not None
        self.sums_4K = sums_4K
        self.frames = sum(micro.frames for micro in micro_batches)
        self._update(optimizer, micro_batches)

    def _synchronise_gradients(self, last: bool) -> None:
        """Lets whole copies exchange gradients once a step, after the last micro-batch.

        Sharded ranks exchange theirs after each one: until then every rank would hold the whole gradient, 33.5 GB for
        the 7B model.
        """
        wrapped = self.trainer.model
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = last
        elif self.run.trainer.strategy in ZERO:
            # Without this ZeRO-2 would keep the gradient of the last micro-batch alone.
            wrapped.set_gradient_accumulation_boundary(last)  # type: ignore[operator, union-attr]

    def _update(self, optimizer: Any, micro_batches: list[MicroBatch]) -> None:
        """Sets the learning rate by the step number, clips, and steps; all ranks skip what the guard objects to."""
        step = self.global_step + 1
        if step % self.run.logging.every == 0 or step == self.run.steps:
            self.part_norms = gradient_norms(self.lm.named_parameters())
        scale = lr_scale(self.global_step, self.run.optim, self.run.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        # Reading the norm makes the host wait for the device, so that it is read once.
        self.gradient_norm = float(self._clip())
        if why := self.guard.objection(self.gradient_norm):
            ids = ", ".join(name for micro in micro_batches for name in micro.ids)
            tqdm.write(f"rank {rank()}: the update of step {step} is skipped, {why}; its samples: {ids}")
            if self.guard.in_a_row >= MAX_SKIPPED:
                spikes = "" if self.run.optim.spike_factor is None else ", raise optim.spike_factor"
                raise UserError(
                    f"{MAX_SKIPPED} steps in a row were skipped, in the last one {why}: lower optim.lr{spikes}, or "
                    "check the samples named above",
                    code="bad-value",
                )
        else:
            optimizer.step()
        optimizer.zero_grad()

    def _clip(self) -> Tensor:
        """Clips the gradient, and returns the norm that it had over all ranks; DeepSpeed's engine steps too."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ZeroStrategy):
            return strategy.clip_and_step()
        norm = nn.utils.clip_grad_norm_(self.lm.parameters(), self.run.optim.clip_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    @torch.no_grad()
    def score(self, micro_batches: list[MicroBatch]) -> Tensor:
        """Returns [loss, weight, correct, count] x streams, summed over the micro-batches of all ranks; no gradient."""
        self.lm.eval()
        total_4K = torch.zeros(4, self.lm.config.num_streams, device=self.device, dtype=torch.float64)
        for micro in micro_batches:
            micro = micro.to(self.device)
            with self.trainer.strategy.precision_plugin.forward_context():
                total_4K += self.network(micro).double()
        self.lm.train()
        return all_sum(total_4K)
