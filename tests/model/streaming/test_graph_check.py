"""Captured steps that differ from plain ones are not used. Plain steps, right or wrong, stand for graphs here."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from model.streaming import stream as module
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from tests.model.tiny import tiny

Advance = Callable[[int], Tensor]


class Replays:
    """Stands for graphs whose replay is a plain step, changed by `fault`."""

    def __init__(self, advance: Advance, lengths: Sequence[int], fault: Callable[[Advance, int], Tensor]) -> None:
        self.advance, self.fault, self.lengths, self.replayed = advance, fault, list(lengths), list[int]()

    def replay(self, live: int) -> Tensor:
        self.replayed.append(live)
        return self.fault(self.advance, live)


def captured(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Advance, int], Tensor]) -> DuplexStream:
    stream = DuplexStream(tiny(context=32).eval().requires_grad_(False), Sampling(greedy=True))
    monkeypatch.setattr(module, "StepGraphs", lambda advance, active_B, lengths: Replays(advance, lengths, fault))
    stream.cuda_graphs, stream.live_slots = True, (8, 16)
    return stream


def test_steps_that_agree_are_used_and_leave_the_state_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = captured(monkeypatch, lambda advance, live: advance(live))
    state = stream.init_state(2)
    assert isinstance(state.graphs, Replays) and set(state.graphs.replayed) == {8, 16, 32}
    stream.cuda_graphs = False
    fresh = stream.init_state(2)
    for name in ("agent_BA", "user_BQ", "new_user_BQ", "active_B"):
        assert torch.equal(getattr(state, name), getattr(fresh, name)), name
    assert torch.equal(state.cache.kv, fresh.cache.kv) and torch.equal(state.cache.offset_B, fresh.cache.offset_B)


def stale(advance: Advance, live: int) -> Tensor:
    """A step whose inputs were copied into the graph."""
    if live == 16:
        return torch.zeros(1)
    return advance(live)


def failing(advance: Advance, live: int) -> Tensor:
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


@pytest.mark.parametrize(("fault", "named"), [(stale, "16 slots"), (failing, "not permitted")])
def test_steps_that_differ_or_fail_give_way_to_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[Advance, int], Tensor],
    named: str,
) -> None:
    stream = captured(monkeypatch, fault)
    state = stream.init_state(1)
    assert state.graphs is None
    (record,) = caplog.records
    assert named in record.getMessage() and "\n" not in record.getMessage()
    stream.step(state, torch.zeros(1, 8, dtype=torch.long))
    assert state.cache.positions == [1]


def test_a_gpu_without_memory_is_no_reason_to_go_on_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(advance: Advance, live: int) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        captured(monkeypatch, full).init_state(1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_captured_steps_of_a_model_agree() -> None:
    model = tiny(context=600).to("cuda").eval().requires_grad_(False)
    assert DuplexStream(model, Sampling(greedy=True)).init_state(2).graphs is not None
