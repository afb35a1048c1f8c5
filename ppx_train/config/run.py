"""The whole configuration of a run."""

from dataclasses import dataclass, field
from math import ceil, lcm
from typing import Literal

from omegaconf import MISSING

from model.errors import UserError
from ppx_train.config.data import Data
from ppx_train.config.parts import AnyJob, Logging, Loss, Model, Optim
from ppx_train.config.trainer import FSDP, ZERO, Trainer


@dataclass(kw_only=True)
class Run(AnyJob):
    """One run: what `ppx-train` does."""

    job: Literal["duplex"] = "duplex"
    """What is trained: a duplex language model."""
    recipe: str = MISSING
    """Name of a shipped recipe (`ppx-train recipes`), or a YAML file of your own."""
    run_dir: str = MISSING
    """Folder of checkpoints, logs and pictures; must not exist unless the run resumes. By default runs/RECIPE."""
    resume: bool | Literal["auto"] = False
    """auto resumes from the newest checkpoint of run_dir, or starts if it has none; so does true, the older word."""
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

    def passes(self, frames: float | None = None) -> int:
        """Returns the micro-batches of a process in a step of sequences of `frames` frames, by default the most."""
        sequences = self.data.batch // self.processes
        if self.data.micro_batch:
            return sequences // self.data.micro_batch
        # Sequences are not cut, so that a pass holds whole ones.
        return ceil(sequences / (self.data.pass_frames // (frames or self.data.max_frames)))

    def check(self) -> None:
        """Raises UserError for the first setting that cannot work, before any work is done."""
        for part in (self.model.lora, self.optim, self.loss, self.trainer, self.logging):
            part.check()
        self.data.check(self.steps)
        self.check_job()
        self._check_vocabulary()
        self._check_shares()
        self._check_best()
        strategy = self.trainer.strategy
        if self.model.lora.base != "full" and strategy in FSDP + ZERO:
            raise UserError(
                f"trainer.strategy={strategy} cannot shard model.lora.base={self.model.lora.base}: use "
                "trainer.strategy=ddp, or model.lora.base=full",
                code="bad-combination",
            )
        if self.optim.spike_factor is not None and strategy in ZERO:
            raise UserError(
                f"optim.spike_factor={self.optim.spike_factor} has no effect with trainer.strategy={strategy}, whose "
                "engine clips and steps at once: leave it out, or take fsdp2",
                code="bad-combination",
            )
        if self.optim.ema_decay is not None and strategy in ZERO:
            raise UserError(
                f"optim.ema_decay={self.optim.ema_decay} has no effect with trainer.strategy={strategy}, whose engine "
                "holds the weights: leave it out, or take fsdp2",
                code="bad-combination",
            )
        if self.model.compile and strategy == "zero3":
            raise UserError(
                "model.compile=true with trainer.strategy=zero3 would compile weights that are not gathered: set it to "
                "false, or take fsdp2",
                code="bad-combination",
            )

    def _check_vocabulary(self) -> None:
        settings, rate = self.model, self.optim.lr.text
        if settings.init_tokenizer is not None and settings.init == "scratch":
            raise UserError(
                "model.init_tokenizer has no effect with model.init=scratch: leave it out", code="bad-combination"
            )
        for name, value in (("model.init_tokenizer", settings.init_tokenizer), ("optim.lr.text", rate)):
            if value is not None and settings.lora.rank:
                raise UserError(
                    f"{name}={value} with model.lora.rank={settings.lora.rank}: adapters leave the rows of the text "
                    "vocabulary frozen, train all weights (model.lora.rank=0)",
                    code="bad-combination",
                )

    def _check_shares(self) -> None:
        data = self.data
        if data.micro_batch and data.batch // data.micro_batch % self.processes:
            raise UserError(
                f"{data.batch // data.micro_batch} micro-batches a step (data.batch={data.batch} / data.micro_batch="
                f"{data.micro_batch}) cannot be shared by {self.processes} processes: make it a multiple",
                code="bad-combination",
            )
        if data.batch % self.processes:
            raise UserError(
                f"data.batch={data.batch} sequences cannot be shared by {self.processes} processes: make it a multiple",
                code="bad-combination",
            )

    def _check_best(self) -> None:
        settings = self.trainer
        if not settings.keep_best:
            return
        meet = lcm(settings.checkpoint_every, settings.heldout_every)
        if not self.data.heldout_samples or meet > self.steps:
            why = f"no checkpoint before step {meet} is scored" if self.data.heldout_samples else "nothing is scored"
            raise UserError(
                f"trainer.keep_best={settings.keep_best} has no effect: {why} (data.heldout_samples="
                f"{self.data.heldout_samples}, trainer.checkpoint_every={settings.checkpoint_every}, "
                f"trainer.heldout_every={settings.heldout_every}): score where checkpoints are saved, or leave it out",
                code="bad-combination",
            )
