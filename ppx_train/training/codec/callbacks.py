"""Log, held-out terms and the codec file of a codec's run."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from tqdm import tqdm

from ppx_train.config.codec import CodecRun
from ppx_train.training.callbacks.meters import log
from ppx_train.training.codec.build import write_codec
from ppx_train.training.codec.crops import CropBatch
from ppx_train.training.codec.module import CodecModule

CODEC_FILE = "mimi.safetensors"


class CodecMeters(L.Callback):
    """Progress bar and log lines: means of the loss terms since the last line."""

    def __init__(self, run: CodecRun) -> None:
        self.run = run
        self.bar: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Shows the progress bar."""
        self.bar = tqdm(
            total=self.run.steps,
            initial=trainer.global_step,
            desc=self.run.recipe,
            unit="step",
            dynamic_ncols=True,
        )
        self._restart()

    def _restart(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: CodecModule, *_: Any) -> None:  # type: ignore[override]
        """Adds up the step, and logs every `logging.every` steps and after the last one."""
        for name, value in module.terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        step = trainer.global_step
        self.bar.n = step
        if step % self.run.logging.every and step != self.run.steps:
            self.bar.refresh()
            return
        metrics = {f"train/{name}": value / self.count for name, value in self.sums.items()}
        seconds = self.count * self.run.data.batch * self.run.data.seconds
        metrics["audio_seconds_per_second"] = seconds / (time.perf_counter() - self.since)
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics["skipped_steps"] = float(module.skipped_steps)
        log(trainer, metrics, step)
        self.bar.set_postfix(loss=f"{metrics['train/loss']:.3f}", speed=f"{metrics['audio_seconds_per_second']:.0f}x")
        self._restart()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Closes the progress bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Closes the progress bar before an error is printed."""
        if self.bar is not None:
            self.bar.close()


class CodecSoFar(L.Callback):
    """Every `heldout_every` steps and at the end: scores the held-out crops, and writes RUN/mimi.safetensors."""

    def __init__(self, run: CodecRun, batches: Sequence[CropBatch]) -> None:
        self.run, self.batches = run, batches
        self.scored = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: CodecModule, *_: Any) -> None:  # type: ignore[override]
        """Scores and writes if this step is due, or the run is about to stop."""
        step = trainer.global_step
        due = step % self.run.trainer.heldout_every == 0 or step == self.run.steps
        if not (due or module.agreement.stop) or step == self.scored:
            return
        self.scored = step
        if self.batches:
            metrics = {f"heldout/{name}": value for name, value in module.score(self.batches).items()}
            log(trainer, metrics, step)
            shown = ", ".join(f"{name[8:]} {value:.3f}" for name, value in metrics.items() if name != "heldout/offset")
            tqdm.write(f"held out at step {step}: {shown}")
        if step >= max(self.run.loss.quantize_from, self.run.loss.decode_from):
            write_codec(module.codec, Path(self.run.run_dir) / CODEC_FILE)
