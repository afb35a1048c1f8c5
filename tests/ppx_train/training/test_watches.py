"""A profile of some steps, and the end of a run that hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppx_train.config.load import load
from ppx_train.training.curves import read_metrics
from ppx_train.training.run import train
from tests.paths import ROOT
from tests.ppx_train.fixtures import run_arguments
from tests.refusals import refused

SHORT = ("logging.every=1", "data.heldout_samples=0", "trainer.checkpoint_every=100", "optim.warmup_steps=1")

HANGING = """
import sys, time
from ppx_train.config.load import load
from ppx_train.training.callbacks.hang import HangWatch
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import rank
from ppx_train.training.run import train

step = DuplexModule.training_step

def stands_still():
    while True:
        time.sleep(1)

def training_step(self, *args):
    if self.global_step == 2 and rank() == {rank}:
        for callback in self.trainer.callbacks:
            if isinstance(callback, HangWatch):
                callback.seconds = 0.5  # not before, because a busy machine takes its time for good steps
        stands_still()
    return step(self, *args)

DuplexModule.training_step = training_step
if __name__ == "__main__":
    sys.exit(train(load(sys.argv[1:])))
"""


def run_hanging(tmp_path: Path, prepared: Path, rank: int, *more: str) -> tuple[int, str]:
    program = tmp_path / "program.py"
    program.write_text(HANGING.format(rank=rank))
    arguments = run_arguments(prepared, tmp_path / "run", *SHORT, "trainer.hang_seconds=900", *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )
    return done.returncode, done.stderr


def test_a_run_that_hangs_ends_and_names_rank_and_place(prepared: Path, tmp_path: Path) -> None:
    code, stderr = run_hanging(tmp_path, prepared, 0)
    assert code == 1, stderr
    assert "error: rank 0 of 1: no step ended within trainer.hang_seconds=0.5 after step 2" in stderr
    assert "in stands_still" in stderr
    steps = [step for step, _ in read_metrics(tmp_path / "run")["train/loss"]]
    assert steps == [1, 2]


@pytest.mark.slow
def test_one_rank_that_hangs_ends_all_and_is_named(prepared: Path, tmp_path: Path) -> None:
    code, stderr = run_hanging(tmp_path, prepared, 1, "trainer.devices=2")
    assert code == 1, stderr
    assert "error: rank 1 of 2: no step ended" in stderr
    assert "in stands_still" in stderr.partition("error: rank 1 of 2")[2]


def test_a_run_that_goes_on_is_left_alone(prepared: Path, tmp_path: Path) -> None:
    more = ("steps=4", "trainer.hang_seconds=600", "trainer.threads=1", *SHORT)
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0


def test_a_profile_holds_the_steps_that_were_asked_for(prepared: Path, tmp_path: Path) -> None:
    more = ("steps=5", "trainer.profile=[2, 3]", *SHORT)
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "steps-2-3.json"
    events = json.loads(trace.read_text())["traceEvents"]
    updates = [e for e in events if e.get("ph") == "X" and e["name"].startswith("Optimizer.step")]
    assert len(updates) == 2
    plain = ("steps=5", *SHORT)
    assert train(load(run_arguments(prepared, tmp_path / "plain", *plain))) == 0
    assert not (tmp_path / "plain" / "profile").exists()
    ours, theirs = (read_metrics(tmp_path / name)["train/loss"] for name in ("run", "plain"))
    assert ours == theirs


def test_a_run_that_resumes_within_a_profile_records_the_rest(prepared: Path, tmp_path: Path) -> None:
    more = ("logging.every=1", "data.heldout_samples=0", "trainer.checkpoint_every=3", "steps=5")
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0
    last = tmp_path / "run" / "checkpoints" / "step-0000005"
    last.rename(tmp_path / "away")
    assert (
        train(load([*run_arguments(prepared, tmp_path / "run", *more), "resume=true", "trainer.profile=[2, 4]"])) == 0
    )
    assert [path.name for path in (tmp_path / "run" / "profile").iterdir()] == ["steps-4-4.json"]


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("trainer.profile=[3]", "bad-value"),
        ("trainer.profile=[3, 2]", "bad-value"),
        ("trainer.profile=[0, 2]", "bad-value"),
        ("trainer.profile=[7, 9]", "bad-combination"),
        ("trainer.hang_seconds=0", "bad-value"),
        ("trainer.hang_seconds=.nan", "bad-value"),
    ],
)
def test_a_watch_that_cannot_be_is_one_line(prepared: Path, setting: str, code: str) -> None:
    with refused(code, setting.partition("=")[0]):  # type: ignore[arg-type]
        load(run_arguments(prepared, prepared / "unused", setting))
