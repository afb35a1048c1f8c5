"""The order of training samples: pure functions of (seed, position), equal on every machine and Python.

Any process can compute sample i of a run, and the samples of step n, in any order. So a training run resumes from
one number, on any number of ranks, with the samples that it would have seen.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm
from random import Random
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from model.errors import UserError

T = TypeVar("T")
HOURS_BLOCK = 100
"""Samples that are shuffled together in a mixture by hours; in one by samples a block is the sum of its draws."""


class Place(NamedTuple):
    """One sample of a run: its source, its row there, and its number among all samples of the run."""

    source: str
    row: int
    number: int


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


def apportioned(n: int, weights: Sequence[tuple[str, int]]) -> Counter[str]:
    """How many of the first n samples each source gets, in whole numbers.

    A source gets its exact share of what those before it have left, rounded down; the last one gets the rest. So no
    count falls when n grows, and each is off its exact share by less than the number of sources.
    """
    counts: Counter[str] = Counter()
    left, total = n, sum(weight for _, weight in weights)
    for name, weight in weights:
        counts[name] = left * weight // total
        left, total = left - counts[name], total - weight
    return counts


@dataclass(frozen=True)
class _Stage:
    """A stretch of a run with one mixture: from which sample, and what was drawn before it."""

    first: int
    key: str
    block: int
    weights: tuple[tuple[str, int], ...]
    before: Counter[str]

    def names(self, number: int) -> tuple[Counter[str], list[str]]:
        """Draws of each source in the stage before a block of it, and the sources of that block in their order."""
        return _block(self.key, self.block, self.weights, number)

    def counts(self, n: int) -> Counter[str]:
        """Draws of each source in the run before sample n of the stage."""
        number, slot = divmod(n, self.block)
        before, names = self.names(number)
        return self.before + before + Counter(names[:slot])


@lru_cache(maxsize=64)
def _block(key: str, block: int, weights: tuple[tuple[str, int], ...], number: int) -> tuple[Counter[str], list[str]]:
    before, after = (apportioned(block * blocks, weights) for blocks in (number, number + 1))
    names = [name for name, _ in weights for _ in range(after[name] - before[name])]
    return before, shuffled(names, f"{key}/mix/{number}")


class Mixture:
    """Which source each sample of a run is from, and which row of it.

    By samples, every block of sum(draws) samples holds draws[source] of each source, in a shuffled order. By hours, a
    source is drawn in proportion to draws / (mean length of its samples), so that whole epochs of all sources have
    exactly the proportions of `draws` in frames. Each source runs through epochs of its own, at its own pace, which a
    change of the mixture does not begin anew.
    """

    def __init__(
        self,
        lengths: Mapping[str, Sequence[int] | npt.NDArray[Any]],
        draws: Mapping[str, int],
        *,
        seed: int,
        by: Literal["samples", "hours"] = "samples",
        later: Mapping[int, Mapping[str, int]] | None = None,
    ) -> None:
        """`lengths` holds the frames of every row of every source; `later` the draws from a sample's number on.

        Raises: UserError if draws are negative or all 0, or a source with draws has no sample.
        """
        self.seed, self.lengths, self.stages = seed, lengths, list[_Stage]()
        for first, of_stage in sorted({0: draws, **(later or {})}.items()):
            self._check(of_stage)
            # The draws are sorted because the order in which a configuration names its sources must not matter.
            weights = {name: Fraction(count) for name, count in sorted(of_stage.items()) if count}
            if by == "hours":
                frames = {name: int(np.sum(lengths[name], dtype=np.int64)) for name in weights}
                weights = {name: w * len(lengths[name]) / frames[name] for name, w in weights.items()}
            scale = lcm(*(weight.denominator for weight in weights.values()))
            self.stages.append(
                _Stage(
                    first=first,
                    key=f"{seed}/from/{first}" if first else f"{seed}",
                    block=sum(of_stage.values()) if by == "samples" else HOURS_BLOCK,
                    weights=tuple((name, int(weight * scale)) for name, weight in weights.items()),
                    before=self.counts(first) if first else Counter(),
                )
            )
        names = sorted({name for stage in self.stages for name, _ in stage.weights})
        self.sizes = {name: len(lengths[name]) for name in names}

    def _check(self, draws: Mapping[str, int]) -> None:
        if any(count < 0 for count in draws.values()) or not any(draws.values()):
            raise UserError(
                f"draws {dict(draws)}: none may be negative, and one source needs at least 1", code="bad-value"
            )
        if empty := sorted(name for name, count in draws.items() if count and not len(self.lengths.get(name, ()))):
            there = ", ".join(sorted(name for name in self.lengths if len(self.lengths[name]))) or "nothing"
            raise UserError(
                f"source {empty[0]!r} has no sample (there is {there}): set its draws to 0 or add its shards",
                code="unknown-name",
            )

    def stage_at(self, i: int) -> _Stage:
        """The stage of sample i."""
        return self.stages[bisect_right(self.stages, i, key=lambda stage: stage.first) - 1]

    def counts(self, n: int) -> Counter[str]:
        """How often each source is drawn in the first n samples of the run."""
        stage = self.stage_at(n)
        return stage.counts(n - stage.first)

    def place(self, i: int) -> Place:
        """Source and row of sample i of a run, counted over all ranks."""
        stage = self.stage_at(i)
        number, slot = divmod(i - stage.first, stage.block)
        before, names = stage.names(number)
        source = names[slot]
        draw = stage.before[source] + before[source] + names[:slot].count(source)  # how often it came before i
        epoch, at = divmod(draw, self.sizes[source])
        return Place(source, int(epoch_order(self.seed, source, epoch, self.sizes[source])[at]), i)


class StepPlan:
    """The samples of each optimiser step: those of a window of steps, dealt by length, whatever the number of ranks.

    With a fixed count (`micro_batch`), the samples of the window are sorted by length and cut into micro-batches, which
    are shuffled and dealt to the steps. So a step holds all lengths, and a micro-batch nearly equal ones.

    Without one, a step is a single group, for `packed` to split. Then the window takes the longest half of a step
    together with the shortest half, the next longest with the next shortest and so on: the ranks of a step can share it
    evenly, although some of its samples are much longer than others. A window of one step leaves the samples in their
    random order, which is even enough for as many ranks as a quarter of the batch.
    """

    def __init__(self, mixture: Mixture, *, batch: int, micro_batch: int | None, window: int) -> None:
        """The stages of the mixture begin with a step, and windows begin anew with them.

        Raises: UserError if a count is not positive, the batch is no multiple of the micro-batch, or a stage begins
        within a step.
        """
        for name, value in (("batch", batch), ("micro_batch", micro_batch), ("window", window)):
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: give 1 or more", code="bad-value")
        if micro_batch and batch % micro_batch:
            raise UserError(
                f"batch={batch} is not a multiple of micro_batch={micro_batch}: change one of them",
                code="bad-combination",
            )
        if within := [stage.first for stage in mixture.stages if stage.first % batch]:
            raise UserError(f"a mixture begins at sample {within[0]}, within a step of {batch}", code="bad-combination")
        self.mixture, self.batch, self.micro_batch, self.window = mixture, batch, micro_batch, window
        self._cache: tuple[int, list[list[list[Place]]]] = (-1, [])

    def step(self, n: int) -> list[list[Place]]:
        """The micro-batches of optimiser step n (from 0), the longest first; without a fixed count one group of all."""
        stage = self.mixture.stage_at(n * self.batch)
        number, at = divmod(n - stage.first // self.batch, self.window)
        cached, steps = self._cache  # read once, since other threads may replace it
        if cached != n - at:
            steps = self._steps_of_window(n - at, f"{stage.key}/steps/{number}")
            self._cache = (n - at, steps)
        return steps[at]

    def length(self, place: Place) -> int:
        """Frames of one sample."""
        return int(self.mixture.lengths[place.source][place.row])

    def _steps_of_window(self, start: int, key: str) -> list[list[list[Place]]]:
        """The steps of the window that begins at step `start` and ends where the next stage begins, if not before."""
        first = start * self.batch
        ends = [stage.first for stage in self.mixture.stages if stage.first > first]
        end = min([first + self.window * self.batch, *ends])
        places = [self.mixture.place(i) for i in range(first, end)]
        if self.micro_batch is None and self.window == 1:
            return [[places]]
        places.sort(key=self.length, reverse=True)  # a stable sort: equal lengths keep the order of the mixture
        if self.micro_batch is None:
            return shuffled([[step] for step in self._long_with_short(places)], key)
        groups = [places[k : k + self.micro_batch] for k in range(0, len(places), self.micro_batch)]
        groups = shuffled(groups, key)
        per_step = self.batch // self.micro_batch
        steps = [groups[k : k + per_step] for k in range(0, len(groups), per_step)]
        return [sorted(step, key=lambda group: self.length(group[0]), reverse=True) for step in steps]

    def _long_with_short(self, places: list[Place]) -> list[list[Place]]:
        """Steps of sorted places: the longest half batch with the shortest one, and so on inwards."""
        half, rest, n = self.batch // 2, self.batch - self.batch // 2, len(places)
        return [
            places[k * half : (k + 1) * half] + places[n - (k + 1) * rest : n - k * rest]
            for k in range(n // self.batch)
        ]
