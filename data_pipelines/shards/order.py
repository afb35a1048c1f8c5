"""The order of training samples: pure functions of (seed, position), equal on every machine and Python.

Any process can compute sample i of a run, and the micro-batches of step n, in any order. So a training run resumes from
one number, on any number of ranks, with the samples that it would have seen.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from model.errors import UserError

T = TypeVar("T")
Place = tuple[str, int]  # source, row within it


def shuffled(items: Sequence[T], key: str) -> list[T]:
    """The items in an order that depends on `key` alone.

    Of random.Random, Python promises only that random() stays the same between its versions. A str key is hashed by
    sha512, not by hash(), which differs between processes.
    """
    draw = Random(key).random
    keys = [draw() for _ in items]
    return [items[k] for k in sorted(range(len(items)), key=keys.__getitem__)]


def shuffled_numbers(size: int, key: str) -> npt.NDArray[np.int32]:
    """shuffled(range(size), key) as an array: 10 million in a second.

    numpy's RandomState is the same Mersenne Twister, and both promise never to change its stream.
    """
    _, state, _ = Random(key).getstate()
    generator = np.random.RandomState()
    generator.set_state(("MT19937", np.array(state[:-1], np.uint32), state[-1], 0, 0.0))
    return np.argsort(generator.random_sample(size), kind="stable").astype(np.int32)


@lru_cache(maxsize=16)
def epoch_order(seed: int, source: str, epoch: int, size: int) -> npt.NDArray[np.int32]:
    """The rows of one source in the order of one epoch, each exactly once. Callers share the array."""
    return shuffled_numbers(size, f"{seed}/{source}/{epoch}")


@lru_cache(maxsize=64)
def _mixture(seed: int, block: int, slots: tuple[tuple[str, int], ...]) -> list[str]:
    # The slots are sorted because the order in which a configuration names its sources must not change the data.
    return shuffled([name for name, count in sorted(slots) for _ in range(count)], f"{seed}/mix/{block}")


def sample_at(i: int, seed: int, sizes: Mapping[str, int], slots: Mapping[str, int]) -> Place:
    """Source and row of sample i of a run, counted over all ranks.

    Every block of sum(slots) samples holds slots[source] of each source, in a shuffled order. Each source runs through
    epochs of its own, at its own pace.
    """
    block, slot = divmod(i, sum(slots.values()))
    names = _mixture(seed, block, tuple(slots.items()))
    source = names[slot]
    draw = block * slots[source] + names[:slot].count(source)  # how often this source came before i
    epoch, at = divmod(draw, sizes[source])
    return source, int(epoch_order(seed, source, epoch, sizes[source])[at])


class StepPlan:
    """The samples of each optimiser step, grouped by length to save padding.

    The samples of `window` steps are sorted by length and cut into micro-batches, which are shuffled and dealt to
    the steps. So a step holds all lengths, a micro-batch nearly equal ones, and nothing depends on the number of ranks:
    rank r of R takes micro-batches r, r + R, ..., which lie next to each other in length.
    """

    def __init__(
        self,
        lengths: Mapping[str, Sequence[int] | npt.NDArray[Any]],
        *,
        seed: int,
        slots: Mapping[str, int],
        batch: int,
        micro_batch: int,
        window: int,
    ) -> None:
        """`lengths` holds the frames of every row of every source, `slots` the draws of each source in a block.

        Raises: UserError if a count is not positive, the batch is no multiple of the micro-batch, or a source with
        draws has no sample.
        """
        for name, value in (("batch", batch), ("micro_batch", micro_batch), ("window", window)):
            if value < 1:
                raise UserError(f"{name}={value}: give 1 or more", code="bad-value")
        if batch % micro_batch:
            raise UserError(
                f"batch={batch} is not a multiple of micro_batch={micro_batch}: change one of them",
                code="bad-combination",
            )
        if any(count < 0 for count in slots.values()) or not any(slots.values()):
            raise UserError(
                f"draws {dict(slots)}: none may be negative, and one source needs at least 1", code="bad-value"
            )
        self.lengths = lengths
        self.slots = {name: count for name, count in slots.items() if count}
        if empty := sorted(name for name in self.slots if not len(lengths.get(name, ()))):
            there = ", ".join(sorted(name for name in lengths if len(lengths[name]))) or "nothing"
            raise UserError(
                f"source {empty[0]!r} has no sample (there is {there}): set its draws to 0 or add its shards",
                code="unknown-name",
            )
        self.sizes = {name: len(lengths[name]) for name in self.slots}
        self.seed, self.batch, self.micro_batch, self.window = seed, batch, micro_batch, window
        self._cache: tuple[int, list[list[list[Place]]]] = (-1, [])

    def step(self, n: int) -> list[list[Place]]:
        """The batch / micro_batch micro-batches of optimiser step n (from 0), the longest first."""
        number, at = divmod(n, self.window)
        cached, steps = self._cache  # read once, since other threads may replace it
        if cached != number:
            steps = self._steps_of_window(number)
            self._cache = (number, steps)
        return steps[at]

    def length(self, place: Place) -> int:
        """Frames of one sample."""
        source, row = place
        return int(self.lengths[source][row])

    def _steps_of_window(self, number: int) -> list[list[list[Place]]]:
        count = self.window * self.batch
        places = [sample_at(i, self.seed, self.sizes, self.slots) for i in range(number * count, (number + 1) * count)]
        places.sort(key=self.length, reverse=True)  # a stable sort: equal lengths keep the order of the mixture
        groups = [places[k : k + self.micro_batch] for k in range(0, count, self.micro_batch)]
        groups = shuffled(groups, f"{self.seed}/steps/{number}")
        per_step = self.batch // self.micro_batch
        steps = [groups[k : k + per_step] for k in range(0, len(groups), per_step)]
        return [sorted(step, key=lambda group: self.length(group[0]), reverse=True) for step in steps]
