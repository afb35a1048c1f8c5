"""Figures of a run against sums that are worked out by hand."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.config import LMConfig
from ppx_train.training.callbacks import meters
from ppx_train.training.callbacks.held_out import HeldOut
from ppx_train.training.callbacks.meters import Meters, log, peak_memory_gib, stream_metrics
from ppx_train.training.data import StepLoader
from ppx_train.training.guard import SpikeGuard

LM = LMConfig(dim=8, num_heads=2, num_layers=1, text_card=40, card=16)


def module(text_weight: float = 1.0) -> Any:
    """What the meters read of a DuplexModule."""
    return SimpleNamespace(lm=SimpleNamespace(config=LM), run=SimpleNamespace(loss=SimpleNamespace(text=text_weight)))


def sums() -> torch.Tensor:
    """[loss, weight, correct, count] of 17 streams: stream k has loss 2k + 2, weight 2, k of 20 targets correct."""
    k = torch.arange(17.0)
    return torch.stack([2 * k + 2, torch.full((17,), 2.0), k, torch.full((17,), 20.0)])


def test_losses_and_accuracies_are_means_over_the_streams_of_a_group() -> None:
    metrics = stream_metrics(sums(), module(), "train")
    assert metrics["train/text_loss"] == 1  # stream 0: 2 / 2
    assert metrics["train/semantic_loss"] == 2  # stream 1: 4 / 2
    assert metrics["train/acoustic_loss"] == pytest.approx(sum(k + 1 for k in range(2, 9)) / 7)
    assert metrics["train/user_semantic_loss"] == 10  # stream 9: 20 / 2
    assert metrics["train/user_acoustic_loss"] == pytest.approx(sum(k + 1 for k in range(10, 17)) / 7)
    assert metrics["train/acoustic_accuracy"] == pytest.approx(sum(range(2, 9)) / (7 * 20))


def test_the_total_is_weighted_text_plus_audio() -> None:
    audio = sum(2 * k + 2 for k in range(1, 17)) / (16 * 2)
    assert stream_metrics(sums(), module(), "x")["x/loss"] == pytest.approx(1 + audio)
    assert stream_metrics(sums(), module(0.5), "x")["x/loss"] == pytest.approx(0.5 + audio)


def test_the_audio_loss_is_compared_with_the_text_loss_as_they_count() -> None:
    audio = sum(2 * k + 2 for k in range(1, 17)) / (16 * 2)
    assert stream_metrics(sums(), module(), "x")["x/audio_to_text_ratio"] == pytest.approx(audio)
    assert stream_metrics(sums(), module(0.5), "x")["x/audio_to_text_ratio"] == pytest.approx(2 * audio)
    without_text = sums()
    without_text[:, 0] = 0
    assert "x/audio_to_text_ratio" not in stream_metrics(without_text, module(), "x")


def test_speed_waiting_and_model_flop_use_are_shares_of_the_time_since_the_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now.seconds)
    loader: Any = SimpleNamespace(seconds_waited=7.0)
    run: Any = None
    meter = Meters(run, loader)
    meter._restart()
    now.seconds, loader.seconds_waited, meter.frames, meter.keys, meter.peak = 110.0, 10.0, 250, 99.0, 50.0
    seen: list[tuple[float, float, float]] = []

    def flops(frames: float, keys: float, count_K: list[float]) -> float:
        seen.append((frames, keys, sum(count_K)))
        return 125.0

    meter.flops = flops  # type: ignore[assignment]
    judged = module()
    judged.device, judged.gradient_norm, judged.guard = torch.device("cpu"), 0.5, SpikeGuard(None)
    judged.part_norms = {"depth": torch.tensor(0.3), "temporal": torch.tensor(0.4)}
    metrics = meter._metrics(judged, sums())
    assert metrics["loader_wait_share"] == pytest.approx(0.3)
    assert metrics["frames_per_second"] == 25 and metrics["audio_seconds_per_second"] == 2
    assert metrics["mfu"] == 125 / 10 / 50 and seen == [(250, 99, 17 * 20)]
    assert metrics["gradient_norm"] == 0.5
    assert metrics["gradient_norm/temporal"] == pytest.approx(0.4)
    assert metrics["gradient_norm/depth"] == pytest.approx(0.3)


def test_only_the_time_in_which_a_step_is_not_there_yet_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr("ppx_train.training.data.time.perf_counter", lambda: float(next(ticks)))
    loader: Any = StepLoader.__new__(StepLoader)
    loader.read_ahead, loader.consumed, loader.seconds_waited = 1, 0, 0.0
    loader.step = lambda number, first, stride: [number]
    steps = iter(loader)
    for n in range(5):
        assert next(steps) == [n]
        next(ticks)  # the training step
        assert loader.seconds_waited == n + 1
    steps.close()


def test_peak_memory_is_what_the_system_says_of_the_process() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system has no /proc")
    (high,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(int(high) / 2**20, rel=0.02)


def test_a_group_without_weight_is_not_reported() -> None:
    without_user = sums()
    without_user[:, 9:] = 0
    metrics = stream_metrics(without_user, module(), "train")
    assert not any("user" in name for name in metrics)
    assert metrics["train/loss"] == pytest.approx(1 + sum(2 * k + 2 for k in range(1, 9)) / 16)


def test_every_logger_gets_the_metrics() -> None:
    class Keeps:
        def __init__(self) -> None:
            self.seen: list[tuple[dict[str, float], int]] = []

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.seen.append((metrics, step))

    trainer: Any = SimpleNamespace(loggers=[Keeps(), Keeps()])
    log(trainer, {"a": 1.0}, 3)
    assert [logger.seen for logger in trainer.loggers] == [[({"a": 1.0}, 3)]] * 2


def test_a_step_is_scored_once(capsys: pytest.CaptureFixture[str]) -> None:
    run: Any = SimpleNamespace(trainer=SimpleNamespace(heldout_every=4), steps=10)
    scored: list[int] = []
    trainer: Any = SimpleNamespace(global_step=0, loggers=[], is_global_zero=True)
    judged = module()

    def score(batches: object) -> torch.Tensor:
        scored.append(trainer.global_step)
        return sums()

    judged.score = score
    pool: Any = None
    callback = HeldOut(run, pool)
    for step in (1, 4, 4, 5, 8, 10, 10):  # A skipped update repeats a step.
        trainer.global_step = step
        callback.on_train_batch_end(trainer, judged)
    assert scored == [4, 8, 10]
    assert capsys.readouterr().out.count("held-out loss at step") == 3
