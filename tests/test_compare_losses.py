"""scripts/compare_losses.py on a small repository: equal runs, a planted change, what cannot be trained."""

import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = Path("scripts") / "compare_losses.py"
COPIED = ("model", "data_pipelines", "ppx_train", "configs", "recipes", "tests/golden/training")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / SCRIPT))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit: the packages of this tree, the script and the golden run."""
    folder = tmp_path / "repository"
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / SCRIPT, folder / SCRIPT)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=Tester", "-c", "user.email=tester@example.org", "commit", "--quiet", "-m", "First")
    return folder


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True, text=True).stdout


def compare(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(repository / SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def assert_untouched(repository: Path, *changed: str) -> None:
    """No worktree is left behind, and no file differs from the commit but those named."""
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert [line[3:] for line in git(repository, "status", "--porcelain").splitlines()] == list(changed)


@pytest.mark.slow
def test_a_change_of_the_code_is_found_and_equal_code_is_equal(repository: Path, tmp_path: Path) -> None:
    few = ("--steps", "2", "--set", "optim.warmup_steps=1")
    files = ("--plot", str(tmp_path / "curves.png"), "--save", str(tmp_path / "losses.json"))
    done = compare(repository, "HEAD", ".", *few, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal bit by bit: 12 losses over 2 steps" in done.stdout
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    saved = json.loads((tmp_path / "losses.json").read_text())
    assert list(saved["train/text_loss"]) == ["1", "2"]
    assert list(saved["heldout/text_loss"]) == ["0", "1", "2"]
    assert saved["heldout/loss"]["2"] < saved["heldout/loss"]["0"]
    assert_untouched(repository)

    config = repository / "ppx_train" / "config" / "parts.py"
    text = config.read_text("utf-8")
    config.write_text(text.replace("weight_decay: float = 0.1\n", "weight_decay: float = 0.2\n"), "utf-8")
    assert config.read_text("utf-8") != text
    done = compare(repository, "HEAD", ".", *few)
    assert done.returncode == 1, done.stdout + done.stderr
    # the training losses of step 1 come before the first update, the held-out ones after it
    assert "first difference at step 1, heldout/" in done.stdout
    assert_untouched(repository, "ppx_train/config/parts.py")


def test_what_cannot_be_compared_is_one_line(repository: Path) -> None:
    for arguments, message in (
        (("HEAD", ".", "--set", "optim.no_such=1"), "optim.no_such: Key 'no_such' not in 'Optim'"),
        (("HEAD", ".", "--steps", "3"), "optim.warmup_steps=5"),
        (("no_such_commit", "."), "git log: bad revision 'no_such_commit'"),
        (("HEAD", ".", "--recipe", "no_such.yaml"), "no_such.yaml: no such file"),
        (("HEAD", ".", "--set", "optim=no_such"), "optim/no_such.yaml"),
        (("HEAD", ".", "--set", "seed"), "--set seed: write key=value"),
    ):
        done = compare(repository, *arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert_untouched(repository)


def test_settings_come_from_this_tree_with_absolute_paths(script: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("groups: {optim: scratch, loss: scratch}\nsteps: 30\ndata: {paths: [recipes, s3://bucket/shards]}\n")
    config = script["resolved"](own, ["optim=published", "optim.lr={temporal: 2e-6, depth: 1e-3}", "logging.every=2"])
    assert "groups" not in config and config.steps == 30
    assert config.loss.acoustic == 0.2
    assert config.optim == {"lr": {"temporal": 2e-6, "depth": 1e-3}}
    assert config.logging.every == 2 and config.trainer.threads == 1
    assert list(config.data.paths) == [str(ROOT / "recipes"), "s3://bucket/shards"]


def test_the_first_difference_is_the_earliest_step_then_training_before_held_out(script: dict[str, Any]) -> None:
    first = script["first_difference"]
    a = {"train/loss": {1: 3.0, 2: 2.0}, "train/text_loss": {1: 1.0, 2: 0.5}, "heldout/loss": {0: 4.0, 2: 3.0}}
    assert first(a, a, 0) == ""
    b = {"train/loss": {1: 3.0, 2: 2.1}, "train/text_loss": {1: 1.0, 2: 0.51}, "heldout/loss": {0: 4.0, 2: 3.1}}
    assert first(a, b, 0) == "step 2, train/text_loss: A 0.5, B 0.51"
    assert first(a, b, 0.03) == "step 2, train/loss: A 2.0, B 2.1"
    assert first(a, b, 0.05) == ""


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "step 1, train/loss: only A has it"),
        ({"train/loss": {1: 1.0}}, "step 2, train/loss: only A has it"),
        ({"train/loss": {1: 1.0, 2: math.nan}}, ""),
        ({"train/loss": {1: 1.0, 2: 5.0}}, "step 2, train/loss: A nan, B 5.0"),
        ({"train/loss": {1: math.inf, 2: math.nan}}, "step 1, train/loss: A 1.0, B inf"),
    ],
)
def test_missing_and_infinite_losses_differ_at_any_tolerance(
    script: dict[str, Any], other: dict[str, dict[int, float]], message: str
) -> None:
    assert script["first_difference"]({"train/loss": {1: 1.0, 2: math.nan}}, other, 1e9) == message
