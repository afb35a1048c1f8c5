"""When a step is captured, warmed up and replayed: on a CPU with a double of CUDA, on a GPU for real."""

# Shapes: B batch

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from model.streaming.cuda_graphs import WARM_UP_STEPS, StepGraphs


@dataclass
class Cuda:
    """A double of the parts of torch.cuda that a capture uses.

    As on a GPU, work that is launched while a graph is captured does not run; it runs with every replay.
    """

    events: list[str] = field(default_factory=list)
    pools: list[object] = field(default_factory=list)
    stream: str = "main"
    capturing: "Graph | None" = None

    def launch(self, work: Callable[[], None]) -> None:
        """Runs work now, or records it in the graph that is captured."""
        if self.capturing is not None:
            self.capturing.work.append(work)
            return
        self.events.append(f"run on {self.stream}")
        work()


@dataclass
class Graph:
    """A double of torch.cuda.CUDAGraph."""

    cuda: Cuda
    work: list[Callable[[], None]] = field(default_factory=list)

    def pool(self) -> object:
        return self

    def replay(self) -> None:
        self.cuda.events.append("replay")
        for work in self.work:
            work()


@dataclass
class Stream:
    """A double of torch.cuda.Stream."""

    cuda: Cuda
    name: str

    def wait_stream(self, other: "Stream") -> None:
        self.cuda.events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    double = Cuda()

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        double.stream, before = stream.name, double.stream
        yield
        double.stream = before

    @contextmanager
    def capture(graph: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert stream.name == "side" and capture_error_mode == "thread_local" and not gc.isenabled()
        double.events.append("capture")
        double.pools.append(pool)
        double.capturing = graph
        yield
        double.capturing = None

    @contextmanager
    def device(_: torch.device) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(double))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(double, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(double, double.stream))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "device", device)
    return double


class Counters:
    """A step that counts what it did to each row: the smallest one with static buffers."""

    def __init__(self, cuda: Cuda, lengths: Sequence[int] = (4,)) -> None:
        self.cuda = cuda
        self.active_B = torch.tensor([True, False, True])
        self.steps_B, self.result_B = torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long)
        self.lengths: list[int] = []
        self.graphs = StepGraphs(self.advance, self.active_B, lengths)

    def advance(self, live: int) -> Tensor:
        self.lengths.append(live)

        def work() -> None:
            self.steps_B += self.active_B
            self.result_B.copy_(100 * live + self.steps_B)

        self.cuda.launch(work)
        return self.result_B


def test_a_step_is_warmed_up_on_a_side_stream_captured_and_then_replayed(cuda: Cuda) -> None:
    counters = Counters(cuda)
    assert counters.graphs.replay(4).tolist() == [401, 400, 401]
    warm_up = ["side waits for main", *["run on side"] * WARM_UP_STEPS, "main waits for side"]
    assert cuda.events == [*warm_up, "capture", "replay"]


def test_warming_up_and_capturing_move_no_row_and_leave_the_active_rows_as_they_were(cuda: Cuda) -> None:
    counters = Counters(cuda)
    for _ in range(3):
        counters.graphs.replay(4)
    assert counters.steps_B.tolist() == [3, 0, 3]
    assert counters.active_B.tolist() == [True, False, True]


def test_a_length_is_captured_once_and_all_lengths_share_the_first_ones_pool(cuda: Cuda) -> None:
    counters = Counters(cuda, (4, 8, 12))
    results = [counters.graphs.replay(live).tolist() for live in (4, 8, 4, 8, 12)]
    assert results == [[401, 400, 401], [802, 800, 802], [403, 400, 403], [804, 800, 804], [1205, 1200, 1205]]
    assert counters.lengths == [live for live in (12, 8, 4) for _ in range(WARM_UP_STEPS + 1)]
    first = cuda.pools[1]
    assert isinstance(first, Graph) and cuda.pools == [None, first, first]


def test_a_capture_that_fails_leaves_the_rows_and_the_collector_as_they_were(cuda: Cuda) -> None:
    active_B = torch.tensor([True, False])

    def fails(live: int) -> Tensor:
        if cuda.capturing is not None:
            raise RuntimeError("no memory")
        return active_B

    with pytest.raises(RuntimeError, match="no memory"):
        StepGraphs(fails, active_B, (4,))
    assert active_B.tolist() == [True, False] and gc.isenabled()


def test_a_replay_follows_the_rows_that_are_active_now(cuda: Cuda) -> None:
    counters = Counters(cuda)
    counters.graphs.replay(4)
    counters.active_B.copy_(torch.tensor([False, True, True]))
    assert counters.graphs.replay(4).tolist() == [401, 401, 402]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_replays_give_the_numbers_of_plain_steps() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    weight, active_B = torch.randn(64, 64, device=device) / 8, torch.tensor([True, False, True], device=device)

    def step(state: Tensor, live: int) -> Tensor:
        """Moves the active rows by a product with the first `live` columns of the weight."""
        moved = torch.tanh(state[:, :live] @ weight[:live])
        state.copy_(torch.where(active_B[:, None], moved, state))
        return state * live

    start = torch.randn(3, 64, device=device)
    plain, captured = start.clone(), start.clone()
    graphs = StepGraphs(lambda live: step(captured, live), active_B, (16, 32, 64))
    captured.copy_(start)
    for live in (16, 64, 16, 32, 64):
        expected = step(plain, live)
        torch.testing.assert_close(graphs.replay(live), expected)
        torch.testing.assert_close(captured, plain)
    assert torch.equal(captured[1], start[1]) and not torch.equal(captured[0], start[0])
    assert active_B.tolist() == [True, False, True]
