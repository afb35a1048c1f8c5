"""Progress bar and log of a run: losses of each stream, gradient norms, learning rates, speed, memory."""

# Shapes: K streams

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import FRAME_RATE
from ppx_train.config.run import Run
from ppx_train.training.build import empty_lm
from ppx_train.training.data import StepLoader
from ppx_train.training.flops import TrainingFlops, device_peak, keys_seen
from ppx_train.training.loss import stream_groups
from ppx_train.training.micro_batch import MicroBatch
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import all_sum, rank, world_size


def stream_metrics(sums_4K: Tensor, module: DuplexModule, prefix: str) -> dict[str, float]:
    """Returns mean weighted loss and accuracy of each stream group, and the total loss, by metric name.

    `audio_to_text_ratio` compares the two terms of the total.
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
    text = module.run.loss.text * text
    metrics[f"{prefix}/loss"] = float(text + audio)
    if text > 0:
        metrics[f"{prefix}/audio_to_text_ratio"] = float(audio / text)
    return metrics


def log(trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
    """Hands `metrics` of `step` to every logger of the run."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)


def peak_memory_gib(device: torch.device) -> float:
    """Returns the most memory that this process has held: tensors on a GPU, otherwise everything in the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Meters(L.Callback):
    """Progress bar and log line of training; figures are summed over all ranks since the last line."""

    def __init__(self, run: Run, loader: StepLoader) -> None:
        self.run, self.loader = run, loader
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
        self.flops = TrainingFlops(empty_lm(self.run))
        self.peak = device_peak(module.device, self.run.trainer.precision)
        self._restart()

    def _restart(self) -> None:
        self.sums: Tensor | None = None
        self.frames = 0
        self.keys = 0.0
        self.since = time.perf_counter()
        self.waited_before = self.loader.seconds_waited

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: DuplexModule, outputs: object, batch: list[MicroBatch], *_: Any
    ) -> None:
        """Adds up the step, and logs every `logging.every` steps and after the last one."""
        self.sums = module.sums_4K if self.sums is None else self.sums + module.sums_4K
        self.frames += module.frames
        context = module.lm.config.context
        self.keys += sum(keys_seen(frames, context) for micro in batch for frames in micro.lengths)
        self.bar.n = trainer.global_step
        step = trainer.global_step
        if step % self.run.logging.every and step != self.run.steps:
            self.bar.refresh()
            return
        metrics = self._metrics(module, self.sums)
        for group in trainer.optimizers[0].param_groups:
            metrics[f"lr/{group['name']}"] = group["lr"]
        log(trainer, metrics, step)
        shown = {name: f"{metrics[f'train/{name}_loss']:.2f}" for name in ("text", "semantic", "acoustic")
                 if f"train/{name}_loss" in metrics}  # fmt: skip
        shown["frames/s"] = f"{metrics['frames_per_second']:.0f}"
        shown["audio-s/s"] = f"{metrics['audio_seconds_per_second']:.0f}x"
        if "mfu" in metrics:
            shown["MFU"] = f"{metrics['mfu']:.0%}"
        self.bar.set_postfix(shown)
        self._restart()

    def _metrics(self, module: DuplexModule, sums_4K: Tensor) -> dict[str, float]:
        """The figures since the last line. Ranks exchange them in one sum, in which each has a place of its own."""
        ranks = world_size()
        own = [0.0, 0.0] * ranks
        own[2 * rank() : 2 * rank() + 2] = [
            self.loader.seconds_waited - self.waited_before,
            peak_memory_gib(module.device),
        ]
        numbers = sums_4K.new_tensor([self.frames, self.keys, *own], dtype=torch.float64)
        shared = all_sum(torch.cat([sums_4K.double().flatten(), numbers])).cpu()
        shared_4K = shared[: sums_4K.numel()].view_as(sums_4K)
        frames, keys, *by_rank = shared[sums_4K.numel() :].tolist()
        seconds = time.perf_counter() - self.since
        metrics = stream_metrics(shared_4K, module, "train")
        metrics["gradient_norm"] = module.gradient_norm
        if module.part_norms:
            norms = torch.stack(list(module.part_norms.values())).tolist()
            metrics |= {f"gradient_norm/{part}": norm for part, norm in zip(module.part_norms, norms, strict=True)}
        metrics["skipped_steps"] = float(module.guard.skipped)
        metrics["frames_per_second"] = frames / seconds
        metrics["audio_seconds_per_second"] = frames / seconds / FRAME_RATE
        metrics["loader_wait_share"] = sum(by_rank[::2]) / ranks / seconds
        metrics["peak_memory_gib"] = max(by_rank[1::2])
        if self.peak is not None:
            metrics["mfu"] = self.flops(frames, keys, shared_4K[3].tolist()) / seconds / (self.peak * ranks)
        return metrics

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Closes the progress bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Closes the progress bar before an error is printed."""
        if self.bar is not None:  # The message that follows then begins a line of its own.
            self.bar.close()
