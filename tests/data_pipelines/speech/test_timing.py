"""Turn taking: tables, their fit to dialogues drawn from known distributions, and what is drawn from them."""

import argparse
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
import itertools

from scipy import stats

from data_pipelines import verbs
from data_pipelines.records.schema import Dialogue, Side, Turn, Word
from data_pipelines.records.turn_taking import turn_taking
from data_pipelines.speech.asides import BACKCHANNELS, with_backchannels, with_pauses
from data_pipelines.speech.protocols import Speech
from data_pipelines.speech.timing import Table, Timing, load_timing, place
from data_pipelines.speech.timing_fit import NEEDED, Observed, add_arguments, fit
from model.errors import Code
from tests.refusals import refused

TRUTH = {"gap": (0.1, 0.3), "pause": (0.3, 1.2), "overlap": (0.6, 0.95)}
"""Gaps are normal (mean, deviation), clipped to -0.45..2; pauses and how long the interrupted go on are uniform."""


def known_call(name: str, seconds: float = 600) -> Dialogue:
    """A call drawn from TRUTH: turns of 4 to 9 s, a pause in half of them, an interruption in every tenth change,
    a backchannel of 0.4 s at 60 % of every turn of 6.5 s and more, beside no other change."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    words: dict[str, list[Word]] = {"left": [], "right": []}

    def say(side: str, start: float, length: float) -> None:
        """Words of 0.25 s without gaps that count as pauses."""
        edges = np.linspace(start, start + length, max(2, round(length / 0.25) + 1))
        words[side] += [Word(text="word", start=a, end=b - 0.01) for a, b in itertools.pairwise(edges)]

    at, side, other, start_of_turn = 1.0, "left", "right", 1.0
    while at < seconds - 20:
        length, start_of_turn = rng.uniform(4, 9), at
        say(side, at, length / 2)
        at += length / 2
        if rng.random() < 0.5:
            at += rng.uniform(*TRUTH["pause"]) - 0.01
        else:
            words[side].pop()  # The words of both halves touch.
            words[side].append(Word(text="word", start=at - 0.25, end=at - 0.01))
        say(side, at, length / 2)
        at += length / 2
        if at - start_of_turn > 6.5:
            begin = start_of_turn + 0.6 * (at - start_of_turn)
            words[other].append(Word(text="Mm-hm.", start=begin, end=begin + 0.4))
        is_interrupted = rng.random() < 0.1
        gap = -rng.uniform(*TRUTH["overlap"]) if is_interrupted else float(np.clip(rng.normal(*TRUTH["gap"]), -0.45, 2))
        at += gap - 0.01
        side, other = other, side
    ordered = {name: tuple(sorted(said, key=lambda w: w.start)) for name, said in words.items()}
    sides = {name: Side(speaker=name, words=said, is_agent=True) for name, said in ordered.items()}
    return dialogue_of(name, seconds, sides)


def dialogue_of(name: str, seconds: float, sides: dict[str, Side]) -> Dialogue:
    return Dialogue(id=name, source="known", split="train", scenario="x", seconds=seconds, licence="CC0-1.0",
                    left=sides["left"], right=sides["right"])  # fmt: skip


@pytest.fixture(scope="module")
def observed() -> Observed:
    found = Observed()
    for n in range(60):
        found.add(known_call(f"call-{n}"))
    return found


# ---- tables
def test_a_table_draws_what_it_was_made_from() -> None:
    rng = random.Random(0)
    normal = Table.normal(0.25, 0.35, -0.4, 1.5)
    drawn = [normal.draw(rng) for _ in range(4000)]
    inside = [value for value in drawn if -0.4 < value < 1.5]
    bell = stats.truncnorm((-0.4 - 0.25) / 0.35, (1.5 - 0.25) / 0.35, 0.25, 0.35)
    assert stats.kstest(inside, bell.cdf).pvalue > 0.01
    # P(N < -0.4) = 0.0317 lies at the lower end.
    assert np.mean(np.isclose(drawn, -0.4)) == pytest.approx(0.0317, abs=0.01)
    flat = [Table.uniform(2, 6).draw(rng) for _ in range(4000)]
    assert stats.kstest(flat, stats.uniform(2, 4).cdf).pvalue > 0.01


# ---- the fit
def test_the_fit_finds_the_distributions_that_made_the_calls(observed: Observed) -> None:
    timing = fit(observed, "known")
    low, high = TRUTH["pause"]
    at = np.linspace(0, 1, 101)
    np.testing.assert_allclose(timing.pause.quantiles, low + at * (high - low), atol=0.06)
    low, high = TRUTH["overlap"]
    np.testing.assert_allclose(timing.stop_after.quantiles, low + at * (high - low), atol=0.09)
    inner = slice(5, 96)
    gaps = np.clip(stats.norm(*TRUTH["gap"]).ppf(at[inner]), -0.45, 2)
    np.testing.assert_allclose(timing.gap.quantiles[inner], gaps, atol=0.06)
    assert timing.gap.count == len(observed.gap) > 4000
    assert timing.backchannel_seconds.quantiles[0] == pytest.approx(0.4, abs=1e-3)
    np.testing.assert_allclose(timing.backchannel_at.quantiles, 0.6, atol=0.02)
    # Half of the turns have a pause; a turn has 6.5 s of speech on average.
    assert timing.pause_rate == pytest.approx(0.5 / 6.5, rel=0.05)


def test_interruptions_are_a_tenth_of_the_changes(observed: Observed) -> None:
    share = len(observed.interruption) / (len(observed.gap) + len(observed.interruption))
    assert share == pytest.approx(0.1, abs=0.015)


def test_a_short_answer_is_a_turn_and_a_hum_beside_speech_is_not() -> None:
    def dialogue(*right: tuple[str, float, float]) -> Dialogue:
        left = tuple(Word(text="word", start=0.25 * n, end=0.25 * n + 0.24) for n in range(16))  # 0 to 4 s
        said = tuple(Word(text=text, start=start, end=end) for text, start, end in right)
        sides = {"left": Side(speaker="a", words=left, is_agent=True), "right": Side(speaker="b", words=said)}
        return dialogue_of("d", 20, sides)

    def events(*right: tuple[str, float, float]) -> tuple[int, int]:
        found = Observed()
        found.add(dialogue(*right, ("And", 6.0, 6.3)))
        return len(found.backchannel), len(found.gap)

    assert events(("Mm-hm.", 2.0, 2.4)) == (1, 1)
    assert events(("Yeah.", 4.3, 4.6)) == (0, 1)  # It comes after the question and is an answer that "And" continues.
    assert events(("Tomorrow.", 2.0, 2.4)) == (0, 1)  # It is no listener's word, but an attempt to speak, in vain.
    assert events(("Yeah.", 2.0, 2.3), ("right", 2.35, 2.6), ("then", 2.65, 2.9)) == (0, 1)


def test_too_few_events_are_refused_with_the_number_needed() -> None:
    found = Observed()
    found.add(known_call("call-0"))
    with refused("no-data", "1 dialogues", "of 200 gaps", "give more calls"):
        fit(found, "few")


# ---- the verb and its file
def write_calls(folder: Path, num: int) -> None:
    for n in range(num):
        place = folder / f"call-{n}"
        place.mkdir(parents=True)
        (place / "meta.json").write_text(known_call(place.name, 300).to_json(), "utf-8")


def test_the_verb_writes_a_file_that_speak_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_calls(tmp_path / "calls", 12)
    out = tmp_path / "timing.json"
    verbs.main(["timing", "--dialogues", str(tmp_path / "calls"), "--out", str(out)])
    assert "12 dialogues, 1.00 h" in capsys.readouterr().out
    timing = load_timing(out)
    about = json.loads(out.read_text())["about"]
    assert timing.name == "timing" and timing.gap.count == about["counts"]["gap"] >= NEEDED["gap"]
    assert about["licences"] == ["CC0-1.0"] and about["left_starts"] == 1.0
    before = out.read_bytes()
    verbs.main(["timing", "--dialogues", str(tmp_path / "calls"), "--out", str(out)])
    assert out.read_bytes() == before


@pytest.mark.parametrize("change, code, named", [
    (lambda t: t.update(gapp=1), "bad-record", "'gapp': use backchannel_at"),
    (lambda t: t["gap"].update(quantiles=[0.3, 0.1]), "bad-record", "gap must be rising quantiles in -2..8"),
    (lambda t: t["gap"].update(quantiles=[-9, 0.1]), "bad-record", "gap must be rising quantiles in -2..8"),
    (lambda t: t["gap"].update(quantiles=[float("nan"), 0.1]), "bad-record", "gap must be rising"),
    (lambda t: t.update(pause_rate=-1), "bad-record", "pause_rate must be a number in 0..2"),
    (lambda t: t.update(pause_rate="often"), "bad-record", "'often'"),
    (lambda t: t.update(gap=3), "bad-record", "`ppx-data timing`"),
])  # fmt: skip
def test_a_broken_timing_file_is_refused(
    change: Callable[[dict[str, Any]], None], code: Code, named: str, tmp_path: Path
) -> None:
    table = json.loads(json.dumps(asdict(Timing())))
    path = tmp_path / "timing.json"
    path.write_text(json.dumps({"timing": table}))
    assert load_timing(path) == Timing()
    change(table)
    path.write_text(json.dumps({"timing": table}))
    with refused(code, path, named):
        load_timing(path)


def test_a_timing_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "no.json", "fit one with `ppx-data timing`"):
        load_timing(tmp_path / "no.json")
    (tmp_path / "x.json").write_text("{")
    with refused("unreadable", tmp_path / "x.json"):
        load_timing(tmp_path / "x.json")


# ---- what is drawn follows the tables
def long_turns(num: int, words: int = 20) -> list[Turn]:
    text = " ".join(["word"] * words)
    return [Turn(speaker="agent" if n % 2 == 0 else "user", text=text) for n in range(num)]


def test_placed_turns_follow_the_fitted_gaps(observed: Observed) -> None:
    timing = fit(observed, "known")
    turns = long_turns(2000)
    slots = place(turns, [8.0] * len(turns), random.Random(1), timing).slots
    gaps = [b.start - a.stop for a, b in itertools.pairwise(slots)]
    # The two samples of this Kolmogorov-Smirnov test are what was observed and what was placed.
    assert stats.ks_2samp(gaps, observed.gap).pvalue > 0.01


def test_the_interrupted_stop_as_the_table_says(observed: Observed) -> None:
    timing = fit(observed, "known")
    turns = [turn if n % 2 == 0 else replace(turn, kind="barge_in") for n, turn in enumerate(long_turns(1200))]
    schedule = place(turns, [10.0] * len(turns), random.Random(2), replace(timing, barge_in_at=Table.uniform(0.4, 0.8)))
    went_on = [event.stop - event.start for event in schedule.events if event.stop is not None]
    assert len(went_on) == 600 and stats.ks_2samp(went_on, observed.interruption).pvalue > 0.01


def spoken(num_words: int, every: int = 6) -> Speech:
    """Words of 0.3 s, 0.05 s apart, a full stop at every sixth."""
    rate = 8000
    step = 0.35
    texts = [f"w{n}." if n % every == every - 1 else f"w{n}" for n in range(num_words)]
    words = tuple((text, round(n * step, 6), round(n * step + 0.3, 6)) for n, text in enumerate(texts))
    audio = np.zeros(round(num_words * step * rate), np.float32)
    for _, start, end in words:
        audio[round(start * rate) : round(end * rate)] = 0.5
    return Speech(audio=audio, rate=rate, words=words)


def test_pauses_follow_the_table_and_words_stay_on_their_sound(observed: Observed) -> None:
    timing = fit(observed, "known")
    rng, found, seconds, after_stop = random.Random(3), [], 0.0, 0
    for _ in range(300):
        speech = with_pauses(spoken(24), rng, timing)
        seconds += 24 * 0.35
        for (text, _, end), (_, start, _) in zip(speech.words[:-1], speech.words[1:], strict=True):
            if start - end > 0.06:
                found.append(start - end)
                after_stop += text.endswith(".")
        for _, start, end in speech.words:
            inside = speech.audio[round(start * speech.rate) + 45 : round(end * speech.rate) - 45]
            assert (inside == 0.5).all()
        assert len(speech.audio) / speech.rate >= speech.words[-1][2]
    assert stats.ks_2samp(found, observed.pause).pvalue > 0.01
    assert len(found) / seconds == pytest.approx(timing.pause_rate, rel=0.1)
    assert after_stop / len(found) > 0.4  # of 23 places 3 are behind a full stop


def test_a_pause_that_the_voice_makes_is_set_too() -> None:
    timing = Timing(pause=Table.uniform(0.5, 0.5), pause_rate=0.001)
    speech = spoken(4)
    wide = Speech(
        audio=np.insert(speech.audio, round(0.675 * 8000), np.zeros(8000, np.float32)), rate=8000,
        words=(*speech.words[:2], *((t, a + 1, b + 1) for t, a, b in speech.words[2:])),
    )  # fmt: skip
    narrowed = with_pauses(wide, random.Random(0), timing)
    assert narrowed.words[2][1] - narrowed.words[1][2] == pytest.approx(0.5, abs=1e-6)
    assert wide.seconds - narrowed.seconds == pytest.approx(1.05 - 0.5, abs=1e-3)
    assert with_pauses(wide, random.Random(0), Timing()) is wide


def test_backchannels_come_at_their_rate_from_the_listener() -> None:
    timing = Timing(backchannel_rate=0.1, backchannel_seconds=Table.uniform(0.3, 0.5))
    turns = long_turns(600, words=26)  # 10 s each
    added = with_backchannels(turns, random.Random(4), timing)
    hums = [n for n, turn in enumerate(added) if turn.kind == "backchannel"]
    assert len(hums) == pytest.approx(600, rel=0.1)
    assert {turn.speaker for turn in added if turn.kind == "backchannel"} == {"agent", "user"}
    for n in hums:
        floor = next(added[m] for m in range(n - 1, -1, -1) if added[m].kind != "backchannel")
        assert floor.speaker != added[n].speaker and 0.2 <= BACKCHANNELS[added[n].text] <= 0.56
    schedule = place(added, [10.0 if t.kind == "normal" else 0.4 for t in added], random.Random(5), timing)
    shares = []
    for n in hums:
        slot = next(schedule.slots[m] for m in range(n - 1, -1, -1) if added[m].kind != "backchannel")
        shares.append((schedule.slots[n].start - slot.start) / (slot.stop - slot.start))
    assert min(shares) >= 0.199 and np.mean(np.array(shares) <= 0.8001) > 0.97


def test_the_scripts_own_backchannels_count() -> None:
    timing = Timing(backchannel_rate=2.0)
    floor = long_turns(1, words=26)[0]
    hum = Turn(speaker="user", text="Uh-huh.", kind="backchannel")
    assert len(with_backchannels([floor, hum], random.Random(0), timing)) == 1 + int(10 / 2.0)
    assert with_backchannels([floor, hum], random.Random(0), Timing()) == (floor, hum)


def test_what_is_measured_of_a_placed_dialogue_is_what_was_asked_for(observed: Observed) -> None:
    """Fit, place, measure again: gaps of the fit and of the measurement of quality.turns agree."""
    timing = fit(observed, "known")
    turns = long_turns(300)
    schedule = place(turns, [8.0] * len(turns), random.Random(6), timing)
    words = {
        side: tuple(
            Word(text="w", start=slot.start + 0.25 * n, end=slot.start + 0.25 * n + 0.24)
            for slot in schedule.slots if slot.side == side for n in range(32)
        )
        for side in ("left", "right")
    }  # fmt: skip
    sides = {side: Side(speaker=side, words=said, is_agent=True) for side, said in words.items()}
    offsets = turn_taking(dialogue_of("d", schedule.seconds, sides)).offsets
    assert np.median(offsets) == pytest.approx(np.median(observed.gap) + 0.01, abs=0.05)


def test_the_verb_takes_several_folders() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--dialogues", "a", "b", "--out", "t.json"])
    assert args.dialogues == [Path("a"), Path("b")]
