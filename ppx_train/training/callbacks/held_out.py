"""Scores the held-out samples of a run while it trains."""

from typing import Any

import lightning as L
from tqdm import tqdm

from ppx_train.config.run import Run
from ppx_train.training.callbacks.meters import log, stream_metrics
from ppx_train.training.data import SamplePool, heldout_batches
from ppx_train.training.micro_batch import MicroBatch
from ppx_train.training.module import DuplexModule


class HeldOut(L.Callback):
    """Scores the fixed held-out micro-batches before the first step, every `heldout_every` steps and after the last."""

    def __init__(self, run: Run, pool: SamplePool) -> None:
        self.run, self.pool = run, pool
        self.batches: list[MicroBatch] = []
        self.scored = -1

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Reads the held-out samples, and scores them before the first step."""
        self.batches = heldout_batches(self.pool, self.run.data)  # The number of ranks is known only now.
        if trainer.global_step == 0:
            self._score(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: DuplexModule, *_: Any) -> None:  # type: ignore[override]
        """Scores if this step is due."""
        if trainer.global_step % self.run.trainer.heldout_every == 0 or trainer.global_step == self.run.steps:
            self._score(trainer, module)

    def _score(self, trainer: L.Trainer, module: DuplexModule) -> None:
        if trainer.global_step == self.scored:  # A skipped update does not advance the step.
            return
        self.scored = trainer.global_step
        metrics = stream_metrics(module.score(self.batches), module, "heldout")
        log(trainer, metrics, trainer.global_step)
        if trainer.is_global_zero:
            losses = ", ".join(f"{key[8:-5]} {value:.3f}" for key, value in metrics.items() if key.endswith("_loss"))
            tqdm.write(f"held-out loss at step {trainer.global_step}: {losses}")
