"""`ppx-train plan`: what a run takes, which GPUs it fits, what to change where it does not, and how long it lasts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.shards.storage import is_url
from model.config import FRAME_RATE
from model.duplex import DuplexLM
from model.errors import UserError
from model.kernels.recompute import MODES
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP, ZERO
from ppx_train.planning.gpus import GPUS, Gpu
from ppx_train.planning.speed import ATTENTION_REACHES, MEMORY_REACHES, PRODUCTS_REACH, step_time
from ppx_train.training.build import describe_lm, empty_lm
from ppx_train.training.data import SamplePool, StepLoader
from ppx_train.training.memory import OUTSIDE, parameter_sizes, rank_memory

GB = 1e9
SIZES = tuple({gpu.memory: gpu for gpu in GPUS}.values())
"""One GPU of each size of memory."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the command was asked beside the run."""

    gpu: Gpu | None = None
    """The GPU to plan for; None shows all."""
    mean_seconds: float | None = None
    """Mean length of the sequences; None takes that of the data, or the longest."""
    step_seconds: float | None = None
    """A measured step; None estimates it."""


def plan(run: Run, asked: PlanRequest) -> str:
    """Returns the plan of a run as lines of text. It reads the index of shards that are there, and no weights.

    Raises: UserError for data that cannot be read, or a measured step that takes no time.
    """
    if asked.step_seconds is not None and not 0 < asked.step_seconds < 1e6:
        raise UserError(f"--step-seconds {asked.step_seconds:g}: give the seconds of a step", code="bad-value")
    longest = run.data.max_frames / FRAME_RATE
    if asked.mean_seconds is not None and not 0 < asked.mean_seconds <= longest:
        raise UserError(
            f"--mean-seconds {asked.mean_seconds:g}: give more than 0, and at most {longest:g} (data.max_frames)",
            code="bad-value",
        )
    lm = empty_lm(run)
    loader = read_data(run)
    settings, on_cpu = run.trainer, run.trainer.accelerator == "cpu"
    ranks = f"{run.processes} {'process' if on_cpu else 'GPU'}{'' if run.processes == 1 else 'es' if on_cpu else 's'}"
    head = f"{run.recipe or 'run'}: {run.steps:,} steps of {run.data.batch} sequences on {ranks}"
    lines = [f"{head}, {settings.strategy}, {settings.precision}", describe_lm(run), ""]
    if on_cpu and asked.gpu:
        raise UserError("--gpu has no effect with trainer.accelerator=cpu: leave it out", code="bad-combination")
    if not on_cpu:
        lines += [*memory_lines(run, lm), "", *fit_lines(run, lm, asked.gpu), ""]
    lines += [*data_lines(run, loader), ""]
    lines += [*time_lines(run, lm, asked, mean_frames(run, loader, asked)), "", *disk_lines(run, lm)]
    return "\n".join(lines)


def read_data(run: Run) -> StepLoader | None:
    """Returns the order of samples of a run; None if a folder of data.paths is not there (a plan may come first)."""
    if any(not is_url(path) and not Path(path).exists() for path in run.data.paths):
        return None
    return StepLoader(SamplePool(run.data, "train", None), run.data, run.seed)


def mean_frames(run: Run, loader: StepLoader | None, asked: PlanRequest) -> float:
    """Returns the mean frames of a sequence: as asked, or of the mixture of the data, or the longest."""
    if asked.mean_seconds is not None:
        return asked.mean_seconds * FRAME_RATE
    if loader is None:
        return float(run.data.max_frames)
    draws = loader.plan.mixture.counts(run.steps * run.data.batch)
    lengths = {source: float(np.mean(loader.pool.lengths[source])) for source in draws}
    return sum(draws[source] * lengths[source] for source in draws) / draws.total()


def with_strategy(run: Run, strategy: Any) -> Run | None:
    """Returns the run under another strategy; None if it cannot run so."""
    return possible(replace(run, trainer=replace(run.trainer, strategy=strategy, shard_size=None, offload=False)))


def possible(run: Run) -> Run | None:
    """Returns the run if its settings go together, else None."""
    try:
        run.check()
    except UserError:
        return None
    return run


def memory_lines(run: Run, lm: DuplexLM) -> Iterator[str]:
    """Yields the memory of a rank by strategy and mode, and its parts for the run itself."""
    yield f"memory of a GPU in GB, at {run.data.pass_frames:,} frames a pass:"
    rows = [["", *MODES]]
    strategies = ("ddp", *FSDP, *ZERO) if run.processes > 1 else ("ddp",)
    for made in filter(None, (with_strategy(run, strategy) for strategy in strategies)):
        modes = (with_setting(made, ["model", "activation_checkpointing"], mode) for mode in MODES)
        rows.append([made.trainer.strategy, *(gigabytes(needed_by(of_mode, lm)) for of_mode in modes)])
    yield from table(rows)
    memory = rank_memory(run, lm)
    parts = ("weights", "moments", "gradients", "copies", "activations", "work")
    shown = " + ".join(f"{gigabytes(getattr(memory, part))} {part}" for part in parts if getattr(memory, part))
    if memory.end >= memory.total:
        shown = f"{gigabytes(memory.total)} at the end of a backward pass"
    yield f"this run: {gigabytes(memory.total + OUTSIDE)} = {shown} + {gigabytes(OUTSIDE)} outside of tensors (assumed)"


def fit_lines(run: Run, lm: DuplexLM, gpu: Gpu | None) -> Iterator[str]:
    """Yields which GPUs the run fits, and for each other one the first change of settings that makes it fit."""
    needed = needed_by(run, lm)
    for size in [gpu] if gpu else SIZES:
        names = size.name if gpu else ", ".join(each.name for each in GPUS if each.memory == size.memory)
        label = f"{size.memory / GB:.0f} GB ({names})"
        if needed <= size.memory:
            yield f"{label}: fits"
        elif words := change_that_fits(run, lm, size.memory):
            takes = gigabytes(needed_by(changed(run, words), lm))
            yield f"{label}: does not fit; with {' '.join(words)} it takes {takes} GB"
        else:
            yield f"{label}: does not fit, whatever is changed of checkpointing, micro-batch, base and GPUs up to 64"


def changes(run: Run) -> Iterator[list[str]]:
    """Yields changes of settings from those that cost least to those that cost most, as words of the command."""
    if run.data.micro_batch:
        smaller = [f"data.micro_batch={size}" for size in (8, 4, 2, 1) if size < run.data.micro_batch]
    else:
        sizes = (count * run.data.max_frames for count in (8, 4, 2, 1))
        smaller = [f"data.micro_frames={size}" for size in sizes if size < run.data.pass_frames]
    full = "model.activation_checkpointing=full"
    steps = [[word] for word in smaller] + [[full]] + [[full, word] for word in smaller]
    yield from steps
    for base in ("int8", "nf4") if run.model.lora.rank and run.model.lora.base == "full" else ():
        yield from ([f"model.lora.base={base}", *words] for words in [[], *steps])
    if run.model.lora.base == "full":
        for devices in (2, 4, 8, 16, 32, 64):
            if devices > run.processes:
                sharded = [*nodes(run, devices), "trainer.strategy=fsdp2"]
                yield from ([*sharded, *words] for words in [[], *steps])


def nodes(run: Run, devices: int) -> list[str]:
    """Returns the words for a number of GPUs, at most 8 of them on a node."""
    if devices <= 8:
        return [f"trainer.devices={devices}"]
    return ["trainer.devices=8", f"trainer.num_nodes={devices // 8}"]


def changed(run: Run, words: Sequence[str]) -> Run | None:
    """Returns the run with words of `changes`; None if they do not go together."""
    for word in words:
        name, _, text = word.partition("=")
        value: Any = int(text) if text.isdigit() else text
        run = with_setting(run, name.split("."), value)
    return possible(run)


def with_setting(settings: Any, path: Sequence[str], value: Any) -> Any:
    """Returns a copy of a configuration, or of a part of it, with one setting changed."""
    first, *rest = path
    return replace(settings, **{first: with_setting(getattr(settings, first), rest, value) if rest else value})


def needed_by(run: Run | None, lm: DuplexLM) -> float:
    """Returns the bytes of a GPU that a run takes; infinite for settings that do not go together."""
    return rank_memory(run, lm).total + OUTSIDE if run else float("inf")


def change_that_fits(run: Run, lm: DuplexLM, memory: float) -> list[str] | None:
    """Returns the first of `changes` with which the run fits into this memory, in bytes."""
    return next((words for words in changes(run) if needed_by(changed(run, words), lm) <= memory), None)


def data_lines(run: Run, loader: StepLoader | None) -> Iterator[str]:
    """Yields samples, hours and epochs of each source."""
    if loader is None:
        missing = ", ".join(run.data.paths)
        yield f"data: {missing} not there: samples and epochs are known when data.paths names a folder of shards"
        return
    draws = loader.plan.mixture.counts(run.steps * run.data.batch)
    rows = [["source", "samples", "hours", "mean s", "seen times"]]
    for source, size in loader.pool.sizes().items():
        frames = loader.pool.lengths[source]
        hours, mean = float(frames.sum()) / FRAME_RATE / 3600, float(frames.mean()) / FRAME_RATE
        rows.append([source, f"{size:,}", f"{hours:,.2f}", f"{mean:.1f}", f"{draws[source] / size:.2f}"])
    yield f"data ({run.data.describe_mix()}):"
    yield from table(rows)


def time_lines(run: Run, lm: DuplexLM, asked: PlanRequest, frames: float) -> Iterator[str]:
    """Yields how long the run lasts, by a measured step or on each GPU that it fits."""
    rows_of_step = run.data.batch * frames
    yield f"time, for sequences of {frames / FRAME_RATE:.1f} s, {rows_of_step:,.0f} frames a step:"
    if asked.step_seconds is not None:
        hours, speed = asked.step_seconds * run.steps / 3600, rows_of_step / asked.step_seconds
        yield f"  {asked.step_seconds:g} s a step as measured: {hours:,.1f} h, {speed:,.0f} frames/s"
        return
    if run.trainer.accelerator == "cpu":
        yield "  not estimated for a CPU, nor is memory: give the seconds of a step as --step-seconds"
        return
    rows = [["GPU", "s a step", "hours", "frames/s", "of peak", "exchanged GB a step", "GB/s to hide it"]]
    for gpu in [asked.gpu] if asked.gpu else GPUS:
        fits = needed_by(run, lm) <= gpu.memory
        words = None if fits else change_that_fits(run, lm, gpu.memory)
        planned = changed(run, words) if words else run
        assert planned is not None
        step = step_time(planned, lm, gpu, frames)
        rows.append(
            [
                f"{gpu.name}{'' if fits else ' (changed as above)' if words else ' (does not fit)'}",
                f"{step.total:.2f}",
                f"{step.total * run.steps / 3600:,.1f}",
                f"{rows_of_step / step.total:,.0f}",
                f"{step.useful_flops / step.total / gpu.peak:.0%}",
                gigabytes(step.exchanged),
                f"{step.exchanged / step.total / GB:.0f}",
            ]
        )
    yield from table(rows)
    yield (
        f"  an estimate that was not measured: products at {PRODUCTS_REACH:.0%} of the peak, attention at "
        f"{ATTENTION_REACHES:.0%}, memory at {MEMORY_REACHES:.0%},"
    )
    yield "  exchange between GPUs hidden behind them if it is as fast as shown, no time for saving and scoring;"
    yield "  give --step-seconds once a step was measured"


def disk_lines(run: Run, lm: DuplexLM) -> Iterator[str]:
    """Yields what checkpoints take on disk, and in host memory while they are written."""
    # Weights, two moments and perhaps their average, in fp32.
    one = (12.0 if run.optim.ema_decay is None else 16.0) * parameter_sizes(run, lm).trained
    kept, every = run.trainer.keep_checkpoints, run.trainer.checkpoint_every
    count = -(-run.steps // every)
    count = min(count, kept) if kept else count
    yield (
        f"disk: {gigabytes(one)} GB a checkpoint, {gigabytes(one * count)} GB for {count} in {run.run_dir}, and room "
        "for one more while it is written"
    )
    shards = run.trainer.shards if run.trainer.strategy in FSDP else 1
    if run.trainer.async_save:
        who = "each process" if shards > 1 else "the process that saves"
        yield (
            f"host memory: {gigabytes(one / shards)} GB of {who} for the copy that a checkpoint is written from while "
            "training goes on (trainer.async_save)"
        )


def gigabytes(size: float) -> str:
    """Returns bytes as GB with one digit behind the point, two below 1."""
    return f"{size / GB:,.1f}" if size >= GB else f"{size / GB:.2f}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields lines of columns: the first is aligned to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        first, *rest = (
            f"{c:<{w}}" if k == 0 else f"{c:>{w}}" for k, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join([first, *rest]).rstrip()
