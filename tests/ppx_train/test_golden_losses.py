"""The golden training run: twenty steps on stored shards have the losses stored beside them (tests/golden/training)."""

import json
import runpy
from pathlib import Path

import pytest

from data_pipelines.verbs import main as ppx_data

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "training"
STEPS = 20
# Measured on x86 only: two threads, SSE4.1 or AVX2 instead of AVX-512, and torch 2.10 instead of 2.13 move a loss by
# 2e-7 of its value at most. A learning rate or loss weight that is off by 0.1 % moves one by 8e-5 or more, another
# order of the samples or another delay by 5e-3.
RTOL = 1e-5


def golden_losses() -> dict[str, dict[int, float]]:
    stored = json.loads((GOLDEN / "losses.json").read_text("utf-8"))
    return {name: {int(step): value for step, value in points.items()} for name, points in stored.items()}


def test_the_first_steps_have_the_golden_losses(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "compare_losses.py"))
    with script["training"](ROOT, GOLDEN / "golden.yaml", tmp_path / "run") as run:
        script["wait_for"]([run], STEPS)
    golden, losses = golden_losses(), script["read_losses"](tmp_path / "run")
    found = script["first_difference"](golden, losses, RTOL)
    assert not found, f"A is golden, B is now: {found}\n{script['table'](golden, losses)}\n{GOLDEN}/README.md says more"


def test_the_golden_losses_are_those_of_every_stream_at_every_step() -> None:
    streams = ("text", "semantic", "acoustic", "user_semantic", "user_acoustic")
    names = ["loss", *(f"{stream}_loss" for stream in streams)]
    steps = {"train": range(1, STEPS + 1), "heldout": range(STEPS + 1)}
    assert {name: sorted(points) for name, points in golden_losses().items()} == {
        f"{kind}/{name}": list(of_kind) for kind, of_kind in steps.items() for name in names
    }


def test_the_golden_shards_are_good(capsys: pytest.CaptureFixture[str]) -> None:
    ppx_data(["check", str(GOLDEN / "shards"), "--codec", "small"])
    assert "train: good (assistant 2, service 4 samples)" in capsys.readouterr().out
