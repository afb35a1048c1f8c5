"""DeepSpeed's ZeRO under Lightning (extra `deepspeed`).

Each micro-batch is a forward and a backward pass of DeepSpeed's engine, and the engine clips and steps once.
Checkpoints are those of the other strategies: whole tensors, gathered and spread by the names of parameters, so that
any number of ranks and any strategy can go on with them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, ParallelStrategy
from torch import Tensor, nn

from model.errors import UserError
from model.extras import require
from ppx_train.training.checkpoint import read_checkpoint
from ppx_train.training.optim import moments_by_name
from ppx_train.training.ranks import rank

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter beside its count of steps."""


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO stage 2 (gradients and moments sharded) or 3 (weights too)."""

    def __init__(self, stage: int, offload: bool, clip_norm: float, backend: str | None = None) -> None:
        """offload: whether moments and master weights (stage 3: all weights) lie in host memory."""
        place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": True}
        if offload:
            zero["offload_optimizer"] = place
        if offload and stage == 3:
            zero["offload_param"] = place
        config = {
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,  # AdamW is torch's, as with the other strategies.
            "zero_force_ds_cpu_optimizer": False,
            "train_micro_batch_size_per_gpu": 1,  # It only scales DeepSpeed's own figures, which are off.
            "gradient_clipping": clip_norm,
            # Gradients of bf16 weights are exchanged and added up in fp32, as under FSDP2.
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
        }
        super().__init__(config=config, process_group_backend=backend, logging_level=logging.ERROR)

    @classmethod
    def check_device(cls, accelerator: str) -> None:
        """Raises UserError without DeepSpeed, or without the GPU that Lightning needs for it."""
        require("deepspeed", extra="deepspeed")
        if accelerator == "cpu" or not torch.cuda.is_available():
            raise UserError(
                "trainer.strategy=zero2 and zero3 need a GPU: set trainer.strategy=ddp or fsdp2", code="no-device"
            )

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Builds the model whole, so that its values are those of the other strategies; the engine shards it later."""
        self._init_config_if_needed()
        yield

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module itself, whose step calls the engine for every micro-batch."""
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    def clip_and_step(self) -> Tensor:
        """Clips and steps, unless the gradient is not finite, and returns its norm, the same on all ranks."""
        engine: Any = self.deepspeed_engine
        engine.step()
        return torch.as_tensor(engine.get_global_grad_norm(), device=self.root_device)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Does nothing but count for Lightning, because `clip_and_step` has stepped."""
        return closure()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        assert self.lightning_module is not None
        return ((name, value) for name, value in self.lightning_module.named_parameters() if value.requires_grad)

    def _kept(self, value: Tensor) -> Tensor:
        """A whole tensor, on the CPU of the first rank, which alone writes."""
        return value.detach().cpu().clone() if self.is_global_zero else value.new_empty(0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns the fp32 master weights that train, whole on the first rank. All ranks take part."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: self._kept(safe_get_full_fp32_param(value)) for name, value in self._trained()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Returns AdamW's state by names, whole on the first rank. All ranks take part."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_moments()
        step = next(iter(optimizer.optimizer.state.values()))["step"].cpu()
        state = {
            name: {"step": step.clone()}
            | {key: self._kept(safe_get_full_optimizer_state(value, key)) for key in MOMENTS}
            for name, value in self._trained()
        }
        names = iter(self.lightning_module.parameter_groups)  # type: ignore[arg-type, union-attr]
        groups = [{**group, "params": next(names)} for group in optimizer.param_groups]
        return {"state": state, "param_groups": groups}

    def _link_moments(self) -> None:
        """Lets ZeRO-2 find the moments of each parameter, which it does by itself for the first group alone."""
        if self.zero_stage_3:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero: Any = self.deepspeed_engine.optimizer
        for parameters, part in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, part, zero.optimizer.state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes one file, on the first rank."""
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns the state of a checkpoint, whose tensors are read one by one."""
        return read_checkpoint(Path(checkpoint_path).parent)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the saved state of the optimiser over, see `load_optimizer_state_dict`."""
        return True

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Spreads whole weights over the ranks."""
        from deepspeed import zero
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for name, value in self._trained():
            whole = checkpoint["state_dict"][name].whole().to(self.root_device)
            with zero.GatheredParameters([value], modifier_rank=0, enabled=self.zero_stage_3):
                value.copy_(whole)
            if self.zero_stage_3:
                safe_set_local_fp32_param(value, _partition(value, whole))
            else:
                safe_set_full_fp32_param(value, whole)

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Spreads AdamW's state over the ranks."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        zero: Any = self.deepspeed_engine.optimizer
        (saved,) = checkpoint["optimizer_states"]
        state = moments_by_name(saved, self.lightning_module.parameter_order)["state"]  # type: ignore[arg-type, union-attr]
        step = next(iter(state.values()))["step"]
        flat = zero.fp32_partitioned_groups_flat if self.zero_stage_3 else zero.single_partition_of_fp32_groups
        for part in flat:  # DeepSpeed itself makes this state at the first step.
            zero.optimizer.state[part] = {"step": step.clone()} | {key: torch.zeros_like(part) for key in MOMENTS}
        self._link_moments()
        for name, value in self._trained():
            for key in MOMENTS:
                whole = state[name][key].whole().to(self.root_device)
                if self.zero_stage_3:
                    safe_set_local_optimizer_state(value, _partition(value, whole), key)
                else:
                    safe_set_full_optimizer_state(value, whole, key)


def _partition(parameter: Any, whole: Tensor) -> Tensor:
    """Returns this rank's part of a whole tensor as ZeRO-3 cuts it: equal flat parts, zeros behind the end."""
    size = parameter.ds_tensor.numel()
    part = torch.zeros(size, dtype=whole.dtype, device=whole.device)
    values = whole.flatten()[rank() * size : (rank() + 1) * size]
    part[: len(values)] = values
    return part
