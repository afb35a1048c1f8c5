"""What a step does when a gradient is not finite, and what scoring leaves alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppx_train.config.load import load
from ppx_train.training.curves import read_metrics
from ppx_train.training.guard import MAX_SKIPPED
from ppx_train.training.module import DuplexModule
from ppx_train.training.run import train
from tests.ppx_train.fixtures import run_arguments
from tests.refusals import refused

SHORT = ("steps=4", "logging.every=1", "data.heldout_samples=0", "trainer.checkpoint_every=100")
CLIP = nn.utils.clip_grad_norm_


def spoil(monkeypatch: pytest.MonkeyPatch, is_bad: set[int]) -> list[int]:
    """Makes the gradient norm of these attempts NaN; returns the list of attempts, which grows."""
    attempts: list[int] = []

    def clip(parameters: object, norm: float) -> Tensor:
        attempts.append(len(attempts))
        real: Tensor = CLIP(parameters, norm)  # type: ignore[arg-type]
        return real.new_tensor(float("nan")) if attempts[-1] in is_bad else real

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    return attempts


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = spoil(monkeypatch, {1, 2})
    assert train(load(run_arguments(prepared, tmp_path / "run", *SHORT))) == 0
    metrics = read_metrics(tmp_path / "run")
    assert metrics["skipped_steps"][-1][1] == 2
    assert len(attempts) == 6  # Two attempts more than the four steps of the run.
    assert all(torch.isfinite(torch.tensor(value)) for _, value in metrics["train/loss"])


def test_a_run_ends_after_too_many_such_steps_in_a_row(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = spoil(monkeypatch, set(range(100)))
    with refused("bad-value", MAX_SKIPPED, "optim.lr"):
        train(load(run_arguments(prepared, tmp_path / "run", *SHORT)))
    assert len(attempts) == MAX_SKIPPED


def test_start_weights_are_those_of_the_cpu_whatever_the_default_device(prepared: Path, tmp_path: Path) -> None:
    run = load(run_arguments(prepared, tmp_path / "run", "model.lora.rank=2"))
    here, elsewhere = DuplexModule(run), DuplexModule(run)
    here.configure_model()
    with torch.device("meta"):  # Lightning does this with the device of the run.
        elsewhere.configure_model()
    assert here.base_sha256 == elsewhere.base_sha256
    for one, other in zip(here.lm.parameters(), elsewhere.lm.parameters(), strict=True):
        assert torch.equal(one, other)


def test_scoring_changes_no_result(prepared: Path, tmp_path: Path) -> None:
    scored = ("data.heldout_samples=3", "trainer.heldout_every=1")
    for name, more in (("plain", ()), ("scored", scored)):
        assert train(load(run_arguments(prepared, tmp_path / name, *SHORT, *more))) == 0
    plain, also = (read_metrics(tmp_path / name)["train/loss"] for name in ("plain", "scored"))
    assert plain == also
