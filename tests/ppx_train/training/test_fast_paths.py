"""Fast paths that are wrong are found before a run and switched off; the run goes on as one without them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.kernels import attention, cross_entropy, fast_paths, matmul, pointwise, recompute
from model.kernels.fast_paths import (
    BLOCKS,
    COMPILED,
    FLASH,
    FUSED,
    HEADS,
    NAMES,
    POINTWISE,
    PRODUCTS,
    RECOMPUTED,
    STEPS,
)
from ppx_train.config.load import load
from ppx_train.training import fast_paths as checks
from ppx_train.training.callbacks import fast_path_check
from ppx_train.training.callbacks.fast_path_check import FastPathCheck, off_now
from ppx_train.training.fast_paths import PathProbe, PathVerdict, active_paths, adamw_verdict, settle
from ppx_train.training.run import train
from tests.ppx_train.fixtures import metrics_of, run_arguments
from tests.ppx_train.ranks import train_on_ranks

CPU = torch.device("cpu")
SHORT = ("steps=3", "logging.every=1", "data.heldout_samples=0", "trainer.precision=32-true")
Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def all_on() -> Iterator[None]:
    yield
    fast_paths.switch_all_on()


def scaled(module: Any, name: str, factor: float) -> Patch:
    """Makes a kernel's result a little wrong."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: right(*args, **kwargs) * factor)

    return patch


def raising(module: Any, name: str) -> Patch:
    """Makes a kernel one that this device does not have."""

    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no kernel for this device\nand more")

    return lambda monkeypatch: monkeypatch.setattr(module, name, fail)


def gradient_scaled(function: Any, factor: float) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = function.backward

        def backward(ctx: Any, *grads: Any) -> Any:
            return tuple(None if grad is None else grad * factor for grad in right(ctx, *grads))

        monkeypatch.setattr(function, "backward", staticmethod(backward))

    return patch


WRONG: list[tuple[Patch, list[str]]] = [
    (gradient_scaled(attention._BlockAttention, 1.001), [BLOCKS]),
    (gradient_scaled(attention._StepAttention, 1.001), [STEPS]),
    (scaled(attention, "_probabilities", 0.999), [BLOCKS, STEPS]),
    (raising(pointwise, "_groups"), [POINTWISE]),
    (scaled(matmul, "onednn_linear", 1.001), [PRODUCTS]),
    (raising(cross_entropy, "_add_grads"), [HEADS]),
    (scaled(cross_entropy, "_scaled", float("nan")), [HEADS]),
    (raising(recompute, "forget"), [RECOMPUTED]),
]


@pytest.mark.parametrize(("wrong", "names"), WRONG)
def test_a_wrong_kernel_is_switched_off_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Patch, names: list[str]
) -> None:
    wrong(monkeypatch)
    run = load(run_arguments(tmp_path, tmp_path / "run", *SHORT))
    found = settle(run, CPU)
    assert off_now() == [name for name in NAMES if name in names]
    assert sorted(name for verdict in found for name in verdict.names) == sorted(names)
    assert not settle(run, CPU) and off_now() == [name for name in NAMES if name in names]


@pytest.mark.parametrize(
    "more",
    [
        SHORT,
        ("trainer.precision=bf16-mixed",),
        ("trainer.precision=bf16-mixed", "model.lora.rank=2", "optim=lora"),
        ("trainer.precision=32-true", "model.activation_checkpointing=full", "model.lm.context=300"),
    ],
)
def test_right_kernels_stay_on_and_nothing_random_is_used_up(tmp_path: Path, more: tuple[str, ...]) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run", *more))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert not settle(run, CPU) and not off_now()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_compared_is_what_a_device_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run", "model.compile=true"))
    rest = (STEPS, POINTWISE, PRODUCTS, HEADS, RECOMPUTED, COMPILED)
    assert active_paths(run, CPU) == (BLOCKS, *rest)
    monkeypatch.setattr(checks, "has_packed_flash", lambda *_: True)
    for name in (FLASH, FUSED, BLOCKS):
        assert active_paths(run, torch.device("cuda")) == (name, *rest)
        fast_paths.switch_off(name)
    assert active_paths(run, torch.device("cuda")) == rest


def test_errors_count_by_the_rounding_of_the_plain_path() -> None:
    def agrees(**figures: Any) -> bool:
        return PathVerdict(names=("x",), floor=1e-6, **figures).agrees

    assert agrees(loss=1e-6, plain_loss=1e-6, gradient=3.9e-3, plain_gradient=1e-3)
    assert not agrees(loss=1e-6, plain_loss=1e-6, gradient=4.1e-3, plain_gradient=1e-3)
    assert not agrees(loss=1e-2, plain_loss=1e-3, gradient=0, plain_gradient=0)
    assert agrees(loss=0, plain_loss=0, gradient=4e-6, plain_gradient=0)
    assert not agrees(loss=0, plain_loss=0, gradient=float("nan"), plain_gradient=1)
    assert not PathVerdict(names=("x",), loss=0, plain_loss=0, gradient=0, plain_gradient=0, failure="it").agrees


def test_fused_adamw_takes_the_steps_of_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adamw_verdict(CPU).agrees
    right = torch.optim.AdamW

    def wrong(*args: Any, fused: bool, **kwargs: Any) -> torch.optim.Optimizer:
        return right(*args, fused=fused, **kwargs | ({"eps": 1e-4} if fused else {}))

    monkeypatch.setattr(torch.optim, "AdamW", wrong)
    assert not adamw_verdict(CPU).agrees


def test_the_run_goes_on_with_the_losses_of_the_plain_path(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the wrong kernel would give: here another gradient, and so other losses from the second step on."""

    def losses(name: str, *more: str) -> list[tuple[int, float]]:
        assert train(load(run_arguments(prepared, tmp_path / name, *SHORT, *more))) == 0
        return metrics_of(tmp_path / name)["train/loss"]

    def only_plain(*_: Any) -> list[PathVerdict]:
        fast_paths.switch_off(BLOCKS)
        return []

    with monkeypatch.context() as patched:
        patched.setattr(fast_path_check, "settle", only_plain)
        plain = losses("plain")
    gradient_scaled(attention._BlockAttention, -1.0)(monkeypatch)
    capsys.readouterr()
    assert losses("checked") == plain
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("off from now on")]
    assert BLOCKS in line and "temporal.layers.0" in line
    assert losses("unchecked", "trainer.check_fast_paths=false") != plain


def test_ranks_decide_alike(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cross_entropy._scaled
    monkeypatch.setattr(
        cross_entropy, "_scaled", lambda *args: right(*args) * (2.0 if os.environ["RANK"] == "1" else 1.0)
    )
    words = run_arguments(prepared, tmp_path / "run", *SHORT, "trainer.devices=2")
    train_on_ranks(2, words, tmp_path / "log")
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "off from now on" in line]
    assert len(lines) == 1 and HEADS in lines[0] and "on another rank" in lines[0]


def test_a_run_that_resumes_says_what_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = FastPathCheck(load(run_arguments(tmp_path, tmp_path / "run")))
    trainer: Any = type("First", (), {"is_global_zero": True})
    module: Any = None
    saved: dict[str, Any] = {}
    fast_paths.switch_off(HEADS)
    check.on_save_checkpoint(trainer, module, saved)
    check.on_load_checkpoint(trainer, module, saved)
    assert not capsys.readouterr().out
    fast_paths.switch_all_on()
    check.on_load_checkpoint(trainer, module, saved)
    assert HEADS in capsys.readouterr().out
    check.on_load_checkpoint(trainer, module, {})  # of an earlier version
    assert not capsys.readouterr().out


def test_the_probe_has_the_widths_of_the_run_and_sequences_of_two_lengths(tmp_path: Path) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run", *SHORT))
    probe = PathProbe(run, CPU)
    assert probe.run.model.lm.dim == run.model.lm.dim and probe.run.model.lm.num_layers == 1
    first, second = probe.batch.lengths
    assert first > second > run.model.lm.context  # The window counts.
    assert set(probe.plain.gradients) == set(probe.exact.gradients)
