"""Figures of a run against sums that are worked out by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.config import LMConfig
from ppx_train.training.callbacks.held_out import HeldOut
from ppx_train.training.callbacks.meters import log, stream_metrics

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
