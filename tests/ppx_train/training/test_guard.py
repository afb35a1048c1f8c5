"""Which updates are skipped, against medians by hand, and whole runs with planted spikes."""

import math
import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppx_train.config.load import load
from ppx_train.training.checkpoint import checkpoints, read_checkpoint
from ppx_train.training.curves import read_metrics
from ppx_train.training.guard import HISTORY, MAX_SKIPPED, MIN_HISTORY, SpikeGuard
from ppx_train.training.optim import gradient_norms
from ppx_train.training.run import train
from tests.ppx_train.fixtures import build_lm, run_arguments
from tests.refusals import refused

CLIP = nn.utils.clip_grad_norm_


def test_a_norm_above_the_factor_times_the_running_median_is_a_spike() -> None:
    guard = SpikeGuard(3.0)
    norms = [1.0 + (n * 7 % 13) / 13 for n in range(HISTORY + 40)]  # between 1 and 2
    assert [guard.objection(norm) for norm in norms] == [""] * len(norms)
    usual = statistics.median(norms[-HISTORY:])
    assert guard.objection(2.999 * usual) == ""
    usual = statistics.median([*norms, 2.999 * usual][-HISTORY:])
    assert f"{3.001 * usual:.4g}" in guard.objection(3.001 * usual)
    assert (guard.skipped, guard.in_a_row) == (1, 1)
    assert guard.objection(1.0) == ""
    assert (guard.skipped, guard.in_a_row) == (1, 0)


def test_nothing_is_a_spike_before_the_median_says_something_or_without_a_factor() -> None:
    guard, off = SpikeGuard(2.0), SpikeGuard(None)
    for n in range(MIN_HISTORY):
        assert guard.objection(10.0**n) == ""
    assert guard.objection(10.0**MIN_HISTORY)
    assert [off.objection(norm) for norm in [1.0] * 50 + [1e30]] == [""] * 51


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("factor", [None, 2.0])
def test_what_is_not_finite_is_skipped_and_does_not_move_the_median(norm: float, factor: float | None) -> None:
    guard = SpikeGuard(factor)
    for _ in range(MIN_HISTORY):
        guard.objection(1.0)
    assert str(norm) in guard.objection(norm)
    assert set(guard.norms) == {1.0} and guard.skipped == 1


def test_a_lasting_change_becomes_the_rule() -> None:
    guard = SpikeGuard(2.0)
    for _ in range(HISTORY):
        guard.objection(1.0)
    skipped = sum(bool(guard.objection(5.0)) for _ in range(HISTORY))
    assert skipped == HISTORY // 2  # Up to then most of the last norms are 1; a mean of 1 and 5 lets 5 pass.


def test_a_guard_goes_on_from_its_state() -> None:
    guard = SpikeGuard(2.0)
    for n in range(HISTORY + 7):
        guard.objection(1.0 + n % 3)
    other = SpikeGuard(2.0)
    other.load_state_dict(guard.state_dict())
    for norm in (1.0, 4.1, math.nan, 2.0, 9.0):
        assert guard.objection(norm) == other.objection(norm)
    assert guard.state_dict() == other.state_dict()


SHORT = ("logging.every=1", "data.heldout_samples=0", "trainer.checkpoint_every=1000", "optim.warmup_steps=1")


def test_a_planted_spike_is_skipped_named_and_forgotten(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The update is skipped before it is made: weights stay, and the samples are named."""
    attempts = 0
    seen: list[Tensor] = []

    def clip(parameters: object, norm: float) -> Tensor:
        nonlocal attempts
        attempts += 1
        trained = list(parameters)  # type: ignore[call-overload]
        seen.append(trained[0].detach().clone())
        real = CLIP(trained, norm)
        return real * 1000 if attempts == MIN_HISTORY + 2 else real

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    steps = MIN_HISTORY + 3
    more = (f"steps={steps}", "optim.spike_factor=20", *SHORT)
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0
    assert attempts == steps + 1
    assert torch.equal(seen[MIN_HISTORY + 1], seen[MIN_HISTORY + 2])
    assert not torch.equal(seen[MIN_HISTORY], seen[MIN_HISTORY + 1])
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "is skipped" in line]
    assert f"rank 0: the update of step {MIN_HISTORY + 2} is skipped" in line
    named = line.partition("its samples: ")[2].split(", ")
    assert len(named) == 4 and all(name.rpartition("/")[2] in ("left", "right") for name in named)
    assert read_metrics(tmp_path / "run")["skipped_steps"][-1] == (steps, 1.0)


def test_a_run_of_spikes_ends_with_the_remedy(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0

    def clip(parameters: object, norm: float) -> Tensor:
        nonlocal attempts
        attempts += 1
        return CLIP(parameters, norm) * (1 if attempts <= MIN_HISTORY else 1000)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    with refused("bad-value", "optim.spike_factor", "times the median"):
        train(load(run_arguments(prepared, tmp_path / "run", "steps=60", "optim.spike_factor=20", *SHORT)))
    assert attempts == MIN_HISTORY + MAX_SKIPPED


def test_the_guard_of_a_resumed_run_knows_the_norms_before_it(prepared: Path, tmp_path: Path) -> None:
    more = ("steps=4", "optim.spike_factor=20", *SHORT)
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0
    state = read_checkpoint(checkpoints(tmp_path / "run")[-1])
    logged = [norm for _, norm in read_metrics(tmp_path / "run")["gradient_norm"]]
    assert state["guard"]["norms"] == pytest.approx(logged, rel=1e-6) and len(logged) == 4


def test_a_factor_that_would_skip_everything_is_refused() -> None:
    for value in ("1", "0.5", ".nan"):
        with refused("bad-value", "optim.spike_factor="):
            load(["recipe=service_only", "data.paths=[shards]", f"optim.spike_factor={value}"])


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_norms_of_parts_add_up_to_that_of_the_whole(prepared: Path, tmp_path: Path, rank: int) -> None:
    lm = build_lm(load(run_arguments(prepared, tmp_path / "run", f"model.lora.rank={rank}")))
    generator = torch.Generator().manual_seed(0)
    squares = {"temporal": 0.0, "depth": 0.0}
    for name, parameter in lm.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            squares[name.partition(".")[0] if name.startswith("depth") else "temporal"] += float(
                parameter.grad.double().square().sum()
            )
    norms = {part: float(norm) for part, norm in gradient_norms(lm.named_parameters()).items()}
    suffix = "_adapters" if rank else ""
    assert norms == {part + suffix: pytest.approx(square**0.5, rel=1e-5) for part, square in squares.items()}
    whole = float(CLIP(lm.parameters(), 1e9))
    assert sum(norm**2 for norm in norms.values()) == pytest.approx(whole**2, rel=1e-5)
