"""The whole configuration of a run."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from omegaconf import MISSING, OmegaConf

from model.errors import UserError
from ppx_train.config.parts import Data, Logging, Loss, Model, Optim, Trainer, positive


@dataclass(kw_only=True)
class Run:
    """One run: what `ppx-train` does."""

    job: Literal["duplex"] = "duplex"
    """What is trained: a duplex language model."""
    recipe: str = MISSING
    """Name of a shipped recipe (`ppx-train recipes`), or a YAML file of your own."""
    run_dir: str = MISSING
    """Folder of checkpoints, logs and pictures; must not exist unless resume=true. By default runs/RECIPE."""
    resume: bool = False
    """Whether training resumes from the newest checkpoint of run_dir, or starts if it has no checkpoint."""
    seed: int = 0
    """Seed of the initial weights and of the order of samples."""
    steps: int = MISSING
    """Optimiser steps in all."""
    groups: dict[str, str] = field(default_factory=dict)
    """The file of each config group, which `group=NAME` chooses."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    trainer: Trainer = field(default_factory=Trainer)
    logging: Logging = field(default_factory=Logging)

    def check(self) -> None:
        """Raises UserError for the first setting that cannot work, before any work is done."""
        for part in (self.model.lora, self.data, self.optim, self.loss, self.trainer, self.logging):
            part.check()
        positive(run=self, names=("steps",))
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: must fit into 64 bits", code="bad-value")
        if self.data.allow_changed and not self.resume:
            raise UserError(
                "data.allow_changed=true has no effect without resume=true: leave it out", code="bad-combination"
            )
        if self.optim.warmup_steps >= self.steps:
            raise UserError(
                f"optim.warmup_steps={self.optim.warmup_steps}: must be below steps={self.steps}",
                code="bad-combination",
            )
        passes = self.data.batch // self.data.micro_batch
        if passes % self.processes:
            raise UserError(
                f"{passes} micro-batches a step (data.batch={self.data.batch} / data.micro_batch="
                f"{self.data.micro_batch}) cannot be shared by {self.processes} processes: make it a multiple",
                code="bad-combination",
            )
        if self.model.lora.rank and self.trainer.strategy == "fsdp2":
            raise UserError(
                "trainer.strategy=fsdp2 with model.lora.rank > 0 is not supported: use trainer.strategy=ddp",
                code="bad-combination",
            )

    @property
    def processes(self) -> int:
        """Processes on all nodes together."""
        return self.trainer.devices * self.trainer.num_nodes

    def to_yaml(self) -> str:
        """Returns the resolved configuration as YAML that loads back to the same run."""
        return OmegaConf.to_yaml(OmegaConf.create(asdict(self)))
