"""Where and how the steps of a run are computed, and what is kept."""

from dataclasses import dataclass, field
from typing import Literal

from model.errors import UserError
from ppx_train.config.limits import check_ranges, positive

FSDP, ZERO = ("fsdp2", "hybrid"), ("zero2", "zero3")
"""Strategies that shard what is trained, by PyTorch's FSDP2 and by DeepSpeed."""


@dataclass(kw_only=True)
class Trainer:
    """Where and how the steps are computed."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    devices: int = 1
    """Processes on each node; under torchrun as many as it starts."""
    num_nodes: int = 1
    """Machines, each with `devices` processes; under torchrun as many as it knows."""
    strategy: Literal["auto", "ddp", "fsdp2", "hybrid", "zero2", "zero3"] = "ddp"
    """ddp holds a whole copy on each process; fsdp2 shards weights, gradients and moments over all of them; hybrid
    shards each copy over `shard_size` and replicates it; zero2 (gradients and moments) and zero3 (weights too) shard
    by DeepSpeed (extra `deepspeed`); auto is ddp, or fsdp2 where a whole copy does not fit."""
    shard_size: int | None = None
    """Processes that share one copy, with strategy=hybrid; None takes those of one node."""
    offload: bool = False
    """Whether moments and master weights, with zero3 all weights, lie in host memory; with zero2 or zero3."""
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    """bf16-mixed computes in bf16 and keeps fp32 master weights, gradients and moments."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is always one after the last step."""
    keep_checkpoints: int = 3
    """The run's own older checkpoints are removed beyond this number; 0 keeps all."""
    keep_best: int = 0
    """Checkpoints that are kept beside these: those with the lowest held-out loss, of the moving average if there is
    one."""
    async_save: bool = True
    """Whether checkpoints are written while training goes on; it takes a copy of what is saved in host memory."""
    heldout_every: int = 500
    """Steps between held-out losses, which are also computed before the first and after the last step."""
    threads: int | None = None
    """CPU threads of each process; None leaves torch's default."""
    check_fast_paths: bool = True
    """Whether kernels are compared with plain torch before the first step, and those that differ are switched off."""
    profile: list[int] = field(default_factory=list)
    """First and last step of a profile that is left in run_dir/profile, e.g. [20, 22], counted from 1; empty: none."""
    hang_seconds: float | None = None
    """A run ends with an error, and says where it stands, if no step ends for this long; None waits for ever."""

    def check(self) -> None:
        """Raises UserError for a number outside its range."""
        positive(trainer=self, names=("devices", "num_nodes", "checkpoint_every", "heldout_every"))
        if self.threads is not None:
            positive(trainer=self, names=("threads",))
        if self.keep_checkpoints < 0:
            raise UserError(
                f"trainer.keep_checkpoints={self.keep_checkpoints}: give a number, or 0 to keep all", code="bad-value"
            )
        if self.keep_best < 0 or (self.keep_best and not self.keep_checkpoints):
            raise UserError(
                f"trainer.keep_best={self.keep_best} with trainer.keep_checkpoints={self.keep_checkpoints}: give 0 or "
                "more, and 1 or more newest ones (0 keeps all)",
                code="bad-value",
            )
        if self.offload and self.strategy not in ZERO:
            raise UserError(
                f"trainer.offload=true has no effect with trainer.strategy={self.strategy}: take zero2 or zero3, or "
                "leave it out",
                code="bad-combination",
            )
        hang = self.hang_seconds
        check_ranges("trainer", self, [("hang_seconds", hang is None or 0 < hang <= 1e6, "above 0, and 1e6 at most")])
        if self.profile and not (len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]):
            raise UserError(
                f"trainer.profile={self.profile}: give the first and the last step, such as [20, 22]", code="bad-value"
            )
        self._check_shards()

    def _check_shards(self) -> None:
        if self.strategy != "hybrid":
            if self.shard_size is not None:
                raise UserError(
                    f"trainer.shard_size={self.shard_size} has no effect with trainer.strategy={self.strategy}: take "
                    "hybrid, or leave it out",
                    code="bad-combination",
                )
            return
        if self.copy_size < 2 or self.copy_size >= self.processes or self.processes % self.copy_size:
            raise UserError(
                f"trainer.strategy=hybrid: {self.processes} processes (trainer.devices={self.devices} x "
                f"trainer.num_nodes={self.num_nodes}) do not make several copies of trainer.shard_size="
                f"{self.copy_size}: give 2 or more, of which the processes are a multiple",
                code="bad-combination",
            )

    @property
    def processes(self) -> int:
        """Processes on all nodes together."""
        return self.devices * self.num_nodes

    @property
    def shards(self) -> int:
        """Processes over which what is sharded is spread; 1 where each holds a whole copy."""
        if self.strategy == "hybrid":
            return self.copy_size
        return self.processes if self.strategy in FSDP + ZERO else 1

    @property
    def copy_size(self) -> int:
        """Processes that share one copy under `hybrid`."""
        return self.devices if self.shard_size is None else self.shard_size
