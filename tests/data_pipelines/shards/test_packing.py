"""A step's sequences in micro-batches: whole, within the budget, the same number on each rank, nearly equal."""

from itertools import product
from random import Random

import pytest

from data_pipelines.shards.packing import packed
from tests.refusals import refused


def lengths_of(count: int, seed: int) -> list[int]:
    draw = Random(seed)
    return [min(2048, round(draw.lognormvariate(6.4, 0.6))) for _ in range(count)]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("budget", [2048, 5000, 8192])
def test_each_sequence_is_in_one_micro_batch_within_the_budget(ranks: int, budget: int) -> None:
    for seed in range(10):
        frames = lengths_of(32, seed)
        room = [min(2048, length + 100) for length in frames]
        parts = packed(frames, room, ranks=ranks, budget=budget)
        assert sorted(i for part in parts for i in part) == list(range(32))
        assert len(parts) % ranks == 0 and all(parts)
        assert max(sum(room[i] for i in part) for part in parts) <= budget
        # No fewer passes could hold the room, and one more than that always does for sequences far below the budget.
        fewest = -(-sum(room) // (ranks * budget))
        assert fewest <= len(parts) // ranks <= (fewest + 1 if budget > 2048 else 32 // ranks)
        sums = [sum(frames[i] for i in part) for part in parts]
        assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("seed", range(30))
def test_parts_are_nearly_as_even_as_they_can_be(seed: int) -> None:
    frames = lengths_of(8, seed)
    best = min(
        max(sum(f for f, where in zip(frames, places, strict=True) if where == part) for part in range(3))
        for places in product(range(3), repeat=8)
    )
    nine = [*frames, 0]
    fullest = max(sum(nine[i] for i in part) for part in packed(nine, nine, ranks=3, budget=10**6))
    assert best <= fullest <= 1.08 * best


def test_equal_sequences_are_shared_equally() -> None:
    parts = packed([500] * 24, [500] * 24, ranks=8, budget=2048)
    assert [len(part) for part in parts] == [3] * 8


def test_a_sequence_that_fits_no_micro_batch_and_ranks_that_do_not_divide_a_step_are_refused() -> None:
    with refused("bad-combination", "2049 frames", "2048"):
        packed([10, 2048], [10, 2049], ranks=1, budget=2048)
    with refused("bad-combination", "3 sequences", "2 ranks"):
        packed([10] * 3, [10] * 3, ranks=2, budget=2048)


def test_a_step_is_packed_as_it_was_first() -> None:
    """On every machine and Python; another result would change what each rank sees, though not the step."""
    frames = [700, 2048, 90, 640, 333, 1200, 700, 512]
    assert packed(frames, frames, ranks=2, budget=2048) == [[1], [4, 5], [0, 3], [2, 6, 7]]
    assert packed(frames, frames, ranks=2, budget=4096) == [[0, 5, 6, 7], [1, 2, 3, 4]]
