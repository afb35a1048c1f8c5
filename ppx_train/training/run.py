"""The main job: `ppx-train`, from a resolved configuration to a trained run directory."""

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from model.adapters.quantized import bitsandbytes
from model.config import FRAME_RATE
from model.errors import UserError
from model.files import LOCK, lock, write_bytes
from model.kernels.allocator import grow_segments, keep_few_kernels, keep_freed_memory
from model.weights.sources import codec_path, tokenizer_path
from ppx_train.config.load import Job
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP
from ppx_train.training.build import describe_lm, empty_lm
from ppx_train.training.callbacks.checkpoints import Checkpoints
from ppx_train.training.callbacks.ema import Ema
from ppx_train.training.callbacks.fast_path_check import FastPathCheck
from ppx_train.training.callbacks.hang import HangWatch
from ppx_train.training.callbacks.held_out import HeldOut
from ppx_train.training.callbacks.meters import Meters
from ppx_train.training.callbacks.profile import Profile
from ppx_train.training.callbacks.sample_log import SampleLog
from ppx_train.training.callbacks.seen import SEEN_FILE, Seen
from ppx_train.training.callbacks.signals import Signals
from ppx_train.training.checkpoint import (
    DATA,
    FILE,
    SCORE,
    check_same_data,
    check_same_run,
    check_sums,
    check_weights,
    checkpoints,
    data_hashes,
    language_model,
    read_checkpoint,
)
from ppx_train.training.checkpoint_files import CheckpointFiles
from ppx_train.training.curves import draw_curves
from ppx_train.training.data import SamplePool, SequenceBuilder, StepLoader
from ppx_train.training.loggers import check_login, make_loggers
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import is_launcher, leave_together, rank
from ppx_train.training.strategies import checked_strategy, make_strategy

LOGS = {"logs", "tensorboard", "wandb", "audio", LOCK}
"""A run that failed before its first step holds nothing but these."""


def train(run: Run) -> int:
    """Trains `run` to its last step and returns 0, or until a signal stops it and returns 128 plus that signal.

    Raises: UserError for settings, data or checkpoints that do not fit, or if another process works in `run_dir`.
    """
    quiet_lightning()
    check_device(run.trainer.accelerator)
    run = checked_strategy(run)
    if run.model.lora.base != "full":
        bitsandbytes()
    check_writable(Path(run.run_dir))
    check_login(run)
    # The other ranks belong to the first one, and only the first one writes checkpoints.
    with lock(Path(run.run_dir)) if is_launcher() else nullcontext():
        return _train(run)


def _train(run: Run) -> int:
    start_from = newest_checkpoint(run)
    state = read_checkpoint(start_from) if start_from else {}
    if start_from is not None and is_complete(run, start_from, state):
        print(f"{run.run_dir} is complete: {start_from} is at the last step, {run.steps}")
        return 0
    prepare_process(run)
    codec, tokenizer = codec_path(run.model.codec), tokenizer_path(run.model.tokenizer)
    builder = SequenceBuilder(run.model.lm, run.data, run.loss, codec, tokenizer)
    pool = SamplePool(run.data, "train", builder, run.seed)
    loader = StepLoader(pool, run.data, run.seed)
    average = None if run.optim.ema_decay is None else Ema(run.optim.ema_decay)
    callbacks: list[L.Callback] = [Signals(), FastPathCheck(run), *([average] if average else [])]
    readers = list(pool.readers)
    beside: dict[str, Callable[[], bytes | None]] = {}
    if run.data.heldout_samples:
        heldout = SamplePool(run.data, "heldout", builder)
        callbacks.append(scored := HeldOut(run, heldout, average))
        beside[SCORE] = scored.content
        readers += heldout.readers
    data: dict[str, str] = {}
    if is_launcher():
        data = data_hashes(readers)
        if state:
            step, allow_changed = int(state["global_step"]), run.data.allow_changed
            check_same_data(data, state.get(DATA), step=step, allow_changed=allow_changed)
    del state  # It maps the file.
    module = DuplexModule(run)
    if is_launcher():
        print(describe(run, pool, loader))
        print(describe_lm(run))
    seen = Seen(loader.plan.mixture.sizes)
    callbacks += [Meters(run, loader), seen, Checkpoints(run, data, beside | {SEEN_FILE: seen.content})]
    if run.logging.samples:
        callbacks.append(SampleLog(Path(run.run_dir), loader))
    trainer = make_trainer(run, callbacks)
    try:
        trainer.fit(module, loader, ckpt_path=start_from / FILE if start_from else None, weights_only=True)
    except BaseException as why:
        with suppress(OSError):  # A full disk is reported by what failed first.
            report_bad_samples(run, pool)
        if isinstance(why, RuntimeError):
            report_lost_rank(trainer)
        if isinstance(why, SystemExit) and isinstance(why.__context__, KeyboardInterrupt):
            raise why.__context__ from None  # Lightning raises SystemExit on Ctrl-C before the first step.
        raise
    report_bad_samples(run, pool)
    leave_together()
    if trainer.is_global_zero:
        print(f"curves: {draw_curves(Path(run.run_dir))}")
    if module.agreement.stop and trainer.global_step < run.steps:
        if trainer.is_global_zero:
            print(f"stopped at step {trainer.global_step}; the same command with resume=true goes on")
        return 128 + (module.agreement.stop_signal or signal.SIGTERM)  # Perhaps only another rank caught the signal.
    return 0


def prepare_process(run: Run) -> None:
    """Sets this process's threads and allocator as a run has them."""
    if run.trainer.threads is not None:
        torch.set_num_threads(run.trainer.threads)
    if run.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
        keep_few_kernels()
    else:
        grow_segments()


def check_device(accelerator: str) -> None:
    """Raises UserError if a GPU is asked for but not usable."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu but no GPU is usable here: set trainer=cpu, or check the driver", code="no-device"
        )


def newest_checkpoint(run: Job) -> Path | None:
    """Returns the checkpoint to resume from; None starts at step 0.

    Raises: UserError if the run directory exists and resume is off, if its newest checkpoint is damaged, or if
    the settings differ in a way that changes the result.
    """
    run_dir = Path(run.run_dir)
    if not run.resume:
        # Only the first process decides, because it has made the folder by the time the others look.
        if is_launcher() and run_dir.is_dir() and any(path.name not in LOGS for path in run_dir.iterdir()):
            raise UserError(
                f"run_dir={run_dir} exists: resume=true goes on with it, or choose another run_dir", code="exists"
            )
        return None
    found = checkpoints(run_dir)
    if not found:
        if is_launcher():
            print(f"resume: {run_dir} holds no checkpoint yet, starting at step 0")
        return None
    if is_launcher():
        check_sums(found[-1])
    shared = check_same_run(run, found[-1])
    if shared and is_launcher():
        print(
            f"resume with {', '.join(shared)}: the samples are the same, but sums are taken in another order, so that "
            "losses go on up to rounding"
        )
    return found[-1]


def check_writable(run_dir: Path) -> None:
    """Raises UserError if `run_dir` is a file, lies below one, or cannot be made or written."""
    there = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is a file" if not there.is_dir() else "cannot be written"
        raise UserError(f"run_dir={run_dir}: {there} {why}: choose another run_dir", code="cannot-write")


def is_complete(run: Run, checkpoint: Path, state: dict[str, Any]) -> bool:
    """Returns whether a checkpoint is at the last step. Raises: UserError if its state is not of the run's model."""
    check_weights(checkpoint, language_model(state), empty_lm(run))
    return int(state["global_step"]) >= run.steps


def make_trainer(run: Job, callbacks: list[L.Callback], precision: Any = None) -> L.Trainer:
    """Returns Lightning's Trainer with everything switched off that this project does itself.

    precision: by default that of the run's settings.
    """
    settings = run.trainer
    precision = precision or settings.precision
    if settings.strategy in FSDP:
        precision = "32-true"  # Master weights are fp32; the sharding policy computes in bf16.
    callbacks = list(callbacks)
    if settings.profile:
        callbacks.append(Profile(Path(run.run_dir), *settings.profile))
    if settings.hang_seconds is not None:
        callbacks.append(HangWatch(settings.hang_seconds))
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=make_strategy(run),
        precision=precision,
        max_steps=run.steps,
        logger=make_loggers(run),
        callbacks=callbacks,
        plugins=[CheckpointFiles(background=settings.async_save)],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def describe(run: Run, pool: SamplePool, loader: StepLoader) -> str:
    """Describes what a run trains on: samples and hours of each source, and how often each sample is seen."""
    draws = loader.plan.mixture.counts(run.steps * run.data.batch)
    lines = []
    for source, size in pool.sizes().items():
        hours = sum(pool.lengths[source]) / FRAME_RATE / 3600
        lines.append(f"  {source}: {size:,} samples, {hours:.2f} h, seen {draws[source] / size:.1f} times")
    return "\n".join([f"run {run.run_dir}: {run.steps} steps of {run.data.batch} sequences", *lines])


def report_bad_samples(run: Run, pool: SamplePool) -> None:
    """Writes which samples this rank skipped, with reasons, and prints how many."""
    if not pool.bad:
        return
    name = "bad_samples.json" if is_launcher() else f"bad_samples.rank{rank()}.json"
    path = Path(run.run_dir) / name
    write_bytes(path, json.dumps(pool.bad, indent=1).encode())
    print(f"{len(pool.bad)} bad samples were skipped, named in {path}")


def report_lost_rank(trainer: L.Trainer) -> None:
    """Names a process that has ended too early, if this one has started it; the others only see that it is gone."""
    for number, process in enumerate(getattr(trainer.strategy.launcher, "procs", []), start=1):
        with suppress(subprocess.TimeoutExpired):
            if code := process.wait(0.5):
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                where = f"rank {trainer.global_rank + number} of {trainer.world_size}"
                tqdm.write(f"{where} has ended with {how}", sys.stderr)
                return


def quiet_lightning() -> None:
    """Silences hints of Lightning that do not apply: loader, progress bar and checkpoints are this project's own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # A login node has `srun` too, and torchrun needs none.
    for message in (".*does not have many workers.*", ".*barrier.*", ".*isinstance.*LeafSpec.*", ".*`srun` command.*"):
        warnings.filterwarnings("ignore", message=message)
