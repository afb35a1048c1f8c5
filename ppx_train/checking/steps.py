"""The first steps of a run, in processes of their own: `python -m ppx_train.checking.steps FOLDER STEPS`.

FOLDER holds the run's configuration, and gets its log and `steps.json`. Nothing else is written, and no checkpoint.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch

from model.errors import UserError
from model.files import write_bytes
from model.weights.sources import codec_path, tokenizer_path
from ppx_train.checking.result import CheckResult, refusal
from ppx_train.config.load import load_saved
from ppx_train.config.run import Run
from ppx_train.training.callbacks.fast_path_check import FastPathCheck, off_now
from ppx_train.training.callbacks.meters import Meters
from ppx_train.training.curves import read_metrics
from ppx_train.training.data import SamplePool, StepLoader
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import is_launcher, leave_together
from ppx_train.training.run import check_device, make_trainer, prepare_process, quiet_lightning
from ppx_train.training.sequences import SequenceBuilder
from ppx_train.training.strategies import checked_strategy

CONFIG, RESULT = "config.yaml", "steps.json"
OUT_OF_MEMORY = "out of memory"


def check_steps(run: Run, steps: int) -> CheckResult:
    """Takes the first optimiser steps of `run`, on its device and with its strategy and processes.

    The figures of the result are those of the last step; times leave the first one out, in which everything starts.
    """
    with TemporaryDirectory(prefix="ppx-check-") as name:
        folder = Path(name)
        (folder / CONFIG).write_text(run.to_yaml(), "utf-8")
        command = [sys.executable, "-m", "ppx_train.checking.steps", name, str(steps)]
        code = subprocess.run(command, stdout=2, check=False).returncode  # The report alone goes to stdout.
        found = json.loads((folder / RESULT).read_text("utf-8")) if (folder / RESULT).is_file() else {}
    if code or "seconds" not in found:
        return _failed(found)
    finite = all(abs(value) < float("inf") for value in (*found["losses"], found["gradient_norm"]))
    passed = finite and not found["skipped_steps"]
    losses = ", ".join(f"{loss:.3f}" for loss in found["losses"])
    line = f"{steps} steps, losses {losses}, gradient norm {found['gradient_norm']:.3g}"
    if not passed:
        line += ": updates were skipped, check start weights, optim.lr and the samples that are named above"
    return CheckResult(name="steps", passed=passed, line=line, figures=found)


def _failed(found: dict[str, Any]) -> CheckResult:
    if "message" in found:
        return refusal("steps", UserError(found["message"], code=found["code"]))
    if OUT_OF_MEMORY in found:
        line = "the device has too little memory: `ppx-train plan` with the same words says what fits"
        return CheckResult(name="steps", passed=False, line=line, figures={"code": OUT_OF_MEMORY})
    return CheckResult(name="steps", passed=False, line="they ended with an error: its message is above", figures={})


class StepEnds(L.Callback):
    """Notes when each step ends, its figures read."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())


def take_steps(run: Run, steps: int, folder: Path) -> None:
    """Takes the first steps of a run, and writes their figures on the first rank.

    Raises: UserError as `train`.
    """
    quiet_lightning()
    check_device(run.trainer.accelerator)
    run = checked_strategy(run)
    prepare_process(run)
    codec, tokenizer = codec_path(run.model.codec), tokenizer_path(run.model.tokenizer)
    builder = SequenceBuilder(run.model.lm, run.data, run.loss, codec, tokenizer)
    loader = StepLoader(SamplePool(run.data, "train", builder, run.seed), run.data, run.seed)
    # The module keeps the run's own number of steps, by which the learning rate goes.
    watched = replace(
        run,
        run_dir=str(folder),
        steps=steps,
        logging=replace(run.logging, every=1, tensorboard=False, wandb="off"),
        trainer=replace(run.trainer, profile=[]),
    )
    ends, module = StepEnds(), DuplexModule(run)
    trainer = make_trainer(watched, [FastPathCheck(run), Meters(watched, loader), ends])
    trainer.fit(module, loader)
    leave_together()
    if not trainer.is_global_zero:
        return
    metrics = {name: [value for _, value in points] for name, points in read_metrics(folder).items()}
    seconds = (ends.times[-1] - ends.times[0]) / (steps - 1)
    found = {
        "losses": metrics["train/loss"],
        "gradient_norm": metrics["gradient_norm"][-1],
        "skipped_steps": int(metrics["skipped_steps"][-1]),
        "strategy": run.trainer.strategy,
        "fast_paths_off": off_now(),
        "seconds": seconds,
        "frames_per_second": sum(metrics["frames_per_second"][1:]) / (steps - 1),
        "loader_wait_share": sum(metrics["loader_wait_share"][1:]) / (steps - 1),
        "mfu": sum(metrics["mfu"][1:]) / (steps - 1) if "mfu" in metrics else None,
        "peak_memory_bytes": metrics["peak_memory_gib"][-1] * 2**30,
    }
    write_bytes(folder / RESULT, json.dumps(found).encode())


def main(folder: Path, steps: int) -> int:
    """Takes the steps, and returns the exit code; a failure that is not a bug is written where figures would be."""
    try:
        take_steps(load_saved(folder / CONFIG, Run), steps, folder)
    except (UserError, torch.OutOfMemoryError) as why:
        if is_launcher():
            known = isinstance(why, UserError)
            result = {"message": str(why), "code": why.code} if known else {OUT_OF_MEMORY: True}  # type: ignore[union-attr]
            write_bytes(folder / RESULT, json.dumps(result).encode())
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
