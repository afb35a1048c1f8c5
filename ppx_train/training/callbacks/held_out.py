"""Scores the held-out samples of a run while it trains."""

import json
import math
from typing import Any

import lightning as L
from tqdm import tqdm

from ppx_train.config.run import Run
from ppx_train.training.callbacks.ema import Ema
from ppx_train.training.callbacks.meters import log, stream_metrics
from ppx_train.training.curves import AVERAGED
from ppx_train.training.data import SamplePool, heldout_batches
from ppx_train.training.micro_batch import MicroBatch
from ppx_train.training.module import DuplexModule


class HeldOut(L.Callback):
    """Scores the fixed held-out micro-batches before the first step, every `heldout_every` steps and after the last."""

    def __init__(self, run: Run, pool: SamplePool, average: Ema | None = None) -> None:
        """average: of the weights, which is scored too after the first step."""
        self.run, self.pool, self.average = run, pool, average
        self.batches: list[MicroBatch] = []
        self.step = self.scored = -1
        self.loss = math.nan
        """The last total loss; of the moving average if there is one."""

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Reads the held-out samples, and scores them before the first step."""
        self.batches = heldout_batches(self.pool, self.run.data)  # The number of ranks is known only now.
        if trainer.global_step == 0:
            self._score(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: DuplexModule, *_: Any) -> None:  # type: ignore[override]
        """Scores if this step is due."""
        self.step = trainer.global_step
        if trainer.global_step % self.run.trainer.heldout_every == 0 or trainer.global_step == self.run.steps:
            self._score(trainer, module)

    def _score(self, trainer: L.Trainer, module: DuplexModule) -> None:
        if trainer.global_step == self.scored:  # A skipped update does not advance the step.
            return
        self.scored = trainer.global_step
        self._score_weights(trainer, module, "heldout", "held-out loss")
        if self.average and trainer.global_step:
            with self.average.in_place(module):
                self._score_weights(trainer, module, AVERAGED, "held-out loss of the moving average")

    def _score_weights(self, trainer: L.Trainer, module: DuplexModule, prefix: str, name: str) -> None:
        metrics = stream_metrics(module.score(self.batches), module, prefix)
        self.loss = metrics[f"{prefix}/loss"]
        log(trainer, metrics, trainer.global_step)
        if trainer.is_global_zero:
            shown = {key.partition("/")[2]: value for key, value in metrics.items()}
            losses = ", ".join(f"{key[:-5]} {value:.3f}" for key, value in shown.items() if key.endswith("_loss"))
            tqdm.write(f"{name} at step {trainer.global_step}: {losses}")

    def content(self) -> bytes | None:
        """Returns the loss of this step as JSON; None if the step was not scored, or the loss is no number."""
        if self.step != self.scored or not math.isfinite(self.loss):
            return None
        return json.dumps({"step": self.step, "loss": self.loss}).encode() + b"\n"
