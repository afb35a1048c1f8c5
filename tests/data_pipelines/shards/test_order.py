"""The order of training samples: the same for everybody, complete in each epoch, and grouped by length."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from data_pipelines.shards.order import Mixture, Place, StepPlan, epoch_order, shuffled, shuffled_numbers
from data_pipelines.shards.packing import packed
from model.errors import Code
from tests.refusals import refused

SIZES = {"real": 70, "synth": 333, "qa": 41}
SLOTS = {"real": 1, "synth": 3, "qa": 2}
# sha256 of the first 1000 samples below, as first computed: a change here reorders everybody's runs
GOLDEN = "d36dadd2902344417605978a0c6a771eb836367a4fe962fb072aee17a637956a"


def mixture(seed: int = 7, slots: Mapping[str, int] = SLOTS, **more: Any) -> Mixture:
    """A mixture of rows of one length."""
    return Mixture({name: [30] * size for name, size in SIZES.items()}, slots, seed=seed, **more)


def first(count: int, seed: int = 7, slots: Mapping[str, int] = SLOTS) -> list[Place]:
    """The first samples of a run."""
    return [mixture(seed, slots).place(i) for i in range(count)]


def plan(
    seed: int = 3,
    batch: int = 8,
    micro_batch: int = 2,
    window: int = 10,
    lengths: Mapping[str, list[int]] | None = None,
    slots: Mapping[str, int] | None = None,
    **more: Any,
) -> StepPlan:
    """A plan over rows of random lengths."""
    draw = Random("lengths").random
    lengths = lengths or {name: [20 + int(400 * draw() ** 2) for _ in range(n)] for name, n in SIZES.items()}
    mixed = Mixture(lengths, slots or SLOTS, seed=seed, **more)
    return StepPlan(mixed, batch=batch, micro_batch=micro_batch, window=window)


def test_the_first_1000_samples_are_the_golden_ones() -> None:
    text = "\n".join(f"{source} {row}" for source, row, _ in first(1000))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_any_index_in_any_order_gives_the_same_sample() -> None:
    forward = first(500)
    asked = shuffled(range(500), "backwards and forwards")
    ours = mixture()
    assert {i: ours.place(i) for i in asked} == dict(enumerate(forward))


def test_the_order_of_the_sources_in_the_configuration_does_not_matter() -> None:
    assert first(300) == first(300, slots=dict(reversed(SLOTS.items())))


def test_each_source_is_seen_whole_once_an_epoch() -> None:
    samples = first(4000)
    for source, size in SIZES.items():
        rows = [row for name, row, _ in samples if name == source]
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert rows[:size] != rows[size : 2 * size]


def test_the_mixture_has_its_proportions_in_every_block() -> None:
    samples = first(600)
    for start in range(0, 600, 6):
        assert Counter(source for source, *_ in samples[start : start + 6]) == SLOTS


def test_seeds_and_sources_have_orders_of_their_own() -> None:
    assert first(100) != first(100, seed=8)
    orders = [epoch_order(1, "a", 0, 50), epoch_order(1, "b", 0, 50), epoch_order(1, "a", 1, 50)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize("size", [0, 1, 2, 623, 5000])
def test_the_order_in_arrays_is_that_of_plain_python(size: int) -> None:
    for key in ("3/service/0", "3/service/1", "\u00fc"):
        assert shuffled_numbers(size, key).tolist() == shuffled(range(size), key)


def test_a_window_of_steps_holds_exactly_its_samples() -> None:
    ours = plan()
    in_steps = [place for n in range(10, 20) for group in ours.step(n) for place in group]
    expected = [mixture(3).place(i) for i in range(80, 160)]
    assert Counter(in_steps) == Counter(expected)


def test_each_source_is_seen_whole_once_an_epoch_of_whole_windows() -> None:
    """Bucketing moves a sample within its window only: 64 steps of 5 are one epoch."""
    ours = plan(batch=5, micro_batch=5, window=4, lengths={"one": list(range(1, 321))}, slots={"one": 1})
    for epoch in range(2):
        rows = [row for n in range(64 * epoch, 64 * (epoch + 1)) for _, row, _ in ours.step(n)[0]]
        assert sorted(rows) == list(range(320))


def test_steps_asked_for_in_any_order_are_the_same() -> None:
    steps = [plan().step(n) for n in range(40)]
    ours = plan()
    for n in shuffled(range(40), "any"):
        assert ours.step(n) == steps[n]


def test_every_step_has_its_micro_batches_sorted_by_length() -> None:
    ours = plan(batch=12, micro_batch=3)
    for n in range(30):
        step = ours.step(n)
        assert [len(group) for group in step] == [3, 3, 3, 3]
        longest = [max(ours.length(place) for place in group) for group in step]
        assert longest == sorted(longest, reverse=True)


def test_bucketing_leaves_little_padding() -> None:
    draw = Random("talks").random
    lengths = {"one": [50 + int(1950 * draw()) for _ in range(3000)]}

    def padding(window: int) -> float:
        ours = plan(batch=32, micro_batch=4, window=window, lengths=lengths, slots={"one": 1})
        groups = [group for n in range(100) for group in ours.step(n)]
        full = sum(len(group) * max(ours.length(place) for place in group) for group in groups)
        return 1 - sum(ours.length(place) for group in groups for place in group) / full

    unsorted, alone = [], Mixture(lengths, {"one": 1}, seed=3)
    for start in range(0, 3200, 4):
        group = [lengths["one"][alone.place(i).row] for i in range(start, start + 4)]
        unsorted.append((sum(group), 4 * max(group)))
    before = 1 - sum(a for a, _ in unsorted) / sum(b for _, b in unsorted)
    assert padding(50) < 0.01 < padding(1) < before / 2


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        ({"batch": 10, "micro_batch": 4}, "bad-combination", ["batch=10", "micro_batch=4"]),
        ({"window": 0}, "bad-value", ["window=0"]),
        ({"slots": {"real": 0}}, "bad-value", ["'real': 0"]),
        ({"slots": {"real": 1, "reel": 1}}, "unknown-name", ["'reel'", "qa, real, synth"]),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(change: dict[str, Any], code: Code, names: list[str]) -> None:
    with refused(code, *names):
        plan(**change)


def test_a_source_with_no_draws_is_left_out() -> None:
    ours = plan(slots={"real": 1, "synth": 0})
    assert {source for n in range(20) for group in ours.step(n) for source, *_ in group} == {"real"}


LENGTHS = {"calls": [100, 300, 500, 700], "talks": [50, 30, 40], "notes": [10]}


def test_a_mixture_by_hours_is_exact_over_whole_epochs_of_all_sources() -> None:
    draws = {"calls": 5, "talks": 3, "notes": 2}
    ours = Mixture(LENGTHS, draws, seed=1, by="hours")
    # Per 5 : 3 : 2 frames: means of 400, 40 and 10 frames give 1/80 : 3/40 : 1/5 samples, that is 1 : 6 : 16.
    places = [ours.place(i) for i in range(23 * 400)]
    frames = {name: sum(LENGTHS[name][row] for source, row, _ in places if source == name) for name in draws}
    assert frames == {"calls": 400 * 400, "talks": 240 * 400, "notes": 160 * 400}
    assert {name: count * 32000 for name, count in draws.items()} == frames


@pytest.mark.parametrize("by", ["samples", "hours"])
def test_counts_are_those_of_the_places_and_never_far_from_their_share(by: Any) -> None:
    draws = {"calls": 7, "talks": 2, "notes": 1}
    ours = Mixture(LENGTHS, draws, seed=4, by=by, later={1000: {"talks": 1}, 1500: {"talks": 1, "calls": 3}})
    means = {"calls": 400, "talks": 40, "notes": 10} if by == "hours" else dict.fromkeys(draws, 1)
    rates = {name: draws[name] / means[name] for name in draws}
    seen: Counter[str] = Counter()
    for i in range(2000):
        assert ours.counts(i) == seen
        if i <= 1000 and i % 100 == 0:
            for name in draws:
                assert abs(seen[name] - i * rates[name] / sum(rates.values())) < len(draws)
        seen[ours.place(i).source] += 1


def test_a_later_mixture_holds_from_its_sample_on_and_goes_on_with_the_epochs() -> None:
    ours = mixture(later={60: {"synth": 1}, 100: {"real": 1, "qa": 1}})
    places = [ours.place(i) for i in range(500)]
    assert places[:60] == first(60)
    assert Counter(place.source for place in places[60:100]) == {"synth": 40}
    assert Counter(place.source for place in places[100:]) == {"real": 200, "qa": 200}
    for source, size in SIZES.items():
        rows = [place.row for place in places if place.source == source]
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_window_ends_where_a_mixture_begins() -> None:
    ours = plan(batch=4, micro_batch=2, window=10, later={4 * 17: {"qa": 1}, 4 * 19: {"real": 1, "synth": 1}})
    for n in shuffled(range(49), "any"):
        step = ours.step(n)
        assert [len(group) for group in step] == [2, 2]
        sources = {place.source for group in step for place in group}
        assert sources <= ({"real", "qa", "synth"} if n < 17 else {"qa"} if n < 19 else {"real", "synth"})
    in_order = sorted(place.number for n in range(49) for group in ours.step(n) for place in group)
    assert in_order == list(range(4 * 49))  # the windows are steps 0-9, 10-16, 17-18, 19-28, ...
    plain = plan(batch=4, micro_batch=2, window=10)
    assert [ours.step(n) for n in range(10)] == [plain.step(n) for n in range(10)]


def whole(batch: int, window: int, **more: Any) -> StepPlan:
    """A plan without a fixed count of sequences in a micro-batch."""
    return StepPlan(mixture(3, **more), batch=batch, micro_batch=None, window=window)


@pytest.mark.parametrize("batch", [7, 8])
def test_a_step_without_a_fixed_count_is_one_group_and_its_window_holds_exactly_its_samples(batch: int) -> None:
    ours = whole(batch, 10)
    for n in shuffled(range(30), "any"):
        assert [len(group) for group in ours.step(n)] == [batch]
    for start in range(0, 30, 10):
        in_steps = [place.number for n in range(start, start + 10) for place in ours.step(n)[0]]
        assert sorted(in_steps) == list(range(start * batch, (start + 10) * batch))
    alone = whole(batch, 1)
    assert [alone.step(n)[0] for n in range(5)] == [
        [mixture(3).place(i) for i in range(n * batch, (n + 1) * batch)] for n in range(5)
    ]


@pytest.mark.parametrize(("ranks", "window"), [(8, 1), (16, 16)])
def test_ranks_wait_for_less_than_a_twentieth_of_a_step(ranks: int, window: int) -> None:
    draw = Random("talks")
    lengths = {"one": [min(2048, max(50, round(draw.lognormvariate(6.38, 0.6)))) for _ in range(5000)]}
    ours = StepPlan(Mixture(lengths, {"one": 1}, seed=1), batch=32, micro_batch=None, window=window)
    frames = longest = 0
    for n in range(64):
        (places,) = ours.step(n)
        of_step = [ours.length(place) for place in places]
        sums = [sum(of_step[i] for i in part) for part in packed(of_step, of_step, ranks=ranks, budget=8192)]
        frames += sum(sums)
        longest += ranks * sum(max(sums[k : k + ranks]) for k in range(0, len(sums), ranks))
    assert frames > 0.95 * longest


def test_a_mixture_cannot_begin_within_a_step() -> None:
    with refused("bad-combination", "sample 30", "step of 8"):
        plan(batch=8, later={30: {"qa": 1}})
