"""Progress bar and log of a run: losses of each stream, gradient norm, learning rates, speed."""

# Shapes: K streams

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import FRAME_RATE
from ppx_train.config.run import Run
from ppx_train.training.loss import stream_groups
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import all_sum


def stream_metrics(sums_4K: Tensor, module: DuplexModule, prefix: str) -> dict[str, float]:
    """Returns mean weighted loss and accuracy of each stream group, and the total loss, by metric name.

    Shapes: sums_4K is [loss, weight, correct, count] x streams, summed over whatever is to be reported.
    """
    loss_K, weight_K, correct_K, count_K = sums_4K.double().cpu()
    metrics = {}
    for name, channels in stream_groups(module.lm.config):
        index = list(channels)
        if weight_K[index].sum() > 0:
            metrics[f"{prefix}/{name}_loss"] = float(loss_K[index].sum() / weight_K[index].sum())
            metrics[f"{prefix}/{name}_accuracy"] = float(correct_K[index].sum() / count_K[index].sum())
    audio = loss_K[1:].sum() / weight_K[1:].sum().clamp(min=1e-8)
    text = loss_K[0] / weight_K[0].clamp(min=1e-8)
    metrics[f"{prefix}/loss"] = float(module.run.loss.text * text + audio)
    return metrics


def log(trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
    """Hands `metrics` of `step` to every logger of the run."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)


class Meters(L.Callback):
    """Progress bar and log line of training; figures are summed over all ranks since the last line."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.bar: Any = None

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Shows the progress bar on the first rank."""
        self.bar = tqdm(
            total=self.run.steps,
            initial=trainer.global_step,
            desc=self.run.recipe,
            unit="step",
            disable=not trainer.is_global_zero,
            dynamic_ncols=True,
        )
        self._restart()

    def _restart(self) -> None:
        self.sums: Tensor | None = None
        self.frames = 0
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: DuplexModule, *_: Any) -> None:  # type: ignore[override]
        """Adds up the step, and logs every `logging.every` steps and after the last one."""
        self.sums = module.sums_4K if self.sums is None else self.sums + module.sums_4K
        self.frames += module.frames
        self.bar.n = trainer.global_step
        step = trainer.global_step
        if step % self.run.logging.every and step != self.run.steps:
            self.bar.refresh()
            return
        shared = all_sum(torch.cat([self.sums.double().flatten(), self.sums.new_tensor([self.frames]).double()]))
        metrics = stream_metrics(shared[:-1].view_as(self.sums), module, "train")
        frames_per_second = float(shared[-1]) / (time.perf_counter() - self.since)
        metrics["gradient_norm"] = float(module.gradient_norm)
        for group in trainer.optimizers[0].param_groups:
            metrics[f"lr/{group['name']}"] = group["lr"]
        metrics["frames_per_second"] = frames_per_second
        metrics["audio_seconds_per_second"] = frames_per_second / FRAME_RATE
        metrics["skipped_steps"] = float(module.skipped_steps)
        log(trainer, metrics, step)
        shown = {name: f"{metrics[f'train/{name}_loss']:.2f}" for name in ("text", "semantic", "acoustic")
                 if f"train/{name}_loss" in metrics}  # fmt: skip
        audio_speed = f"{frames_per_second / FRAME_RATE:.0f}x"
        self.bar.set_postfix(shown | {"frames/s": f"{frames_per_second:.0f}", "audio-s/s": audio_speed})
        self._restart()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Closes the progress bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Closes the progress bar before an error is printed."""
        if self.bar is not None:  # The message that follows then begins a line of its own.
            self.bar.close()
