"""Turn taking and stitching, with an engine whose sound and word times are known exactly."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

pytest.importorskip("num2words")

import itertools

from data_pipelines.quality import gates
from data_pipelines.records.schema import Dialogue, Script, Side, Turn, Word
from data_pipelines.sound.audio import Audio, loudness
from data_pipelines.speech.perform import choose_voices
from data_pipelines.speech.protocols import Speech, Voice
from data_pipelines.speech.stitch import StitchOptions, measure, render, stitch, words_of
from data_pipelines.speech.timing import Slot, Table, Timing, place
from tests.refusals import refused

RATE = 24000
WORD, PAUSE = 0.3, 0.1
Kind = Literal["normal", "barge_in", "backchannel"]


class ToneEngine:
    """Every word is 0.3 s of a tone whose pitch is the voice's, followed by 0.1 s of silence."""

    name = "tone"
    sets_speed = False
    pitch: ClassVar = {"tone/a": 200.0, "tone/b": 300.0, "tone/c": 450.0, "tone/held1": 600.0, "tone/held2": 700.0}

    def identity(self) -> dict[str, Any]:
        return {"name": "tone", "version": "1", "licence": "MIT", "output_licence": "CC0", "deterministic": True}

    def voices(self) -> tuple[Voice, ...]:
        return tuple(Voice(key=k, sex="male", accent="us", held_out="held" in k) for k in self.pitch)

    def speak(self, text: str, voice: str, *, seed: int, speed: float = 1.0) -> Speech:
        words, step = text.split(), WORD + PAUSE
        t = np.arange(round(len(words) * step * RATE)) / RATE
        sounding = (t % step) < WORD
        audio = (0.4 * sounding * np.sin(2 * np.pi * self.pitch[voice] * t)).astype(np.float32)
        times = tuple((word, round(n * step, 6), round(n * step + WORD, 6)) for n, word in enumerate(words))
        return Speech(audio=audio, rate=RATE, words=times)


def script(*turns: Turn) -> Script:
    return Script(id="s-1", source="service", split="train", scenario="x", role_prompt="You work.", turns=turns)


def agent(num_words: int, kind: Kind = "normal") -> Turn:
    return Turn(speaker="agent", text=" ".join(f"agent{chr(97 + n % 26)}" for n in range(num_words)), kind=kind)


def user(num_words: int, kind: Kind = "normal") -> Turn:
    return Turn(speaker="user", text=" ".join(f"user{chr(97 + n % 26)}" for n in range(num_words)), kind=kind)


BARGE_IN = script(agent(4), user(3), agent(30), user(5, "barge_in"), agent(4))
STILL = Timing(gap=Table.uniform(0.3, 0.3), user_silence_share=0.0)


def test_agent_is_left_user_is_right_and_words_lie_on_their_sound() -> None:
    done = stitch(BARGE_IN, ToneEngine(), 0, StitchOptions())
    d = done.dialogue
    assert d.left.is_agent and not d.right.is_agent and d.left.role_prompt == "You work."
    assert d.left.speaker != d.right.speaker
    for channel, side in ((0, d.left), (1, d.right)):
        inside = np.zeros(done.audio_CS.shape[1], bool)
        for word in side.words:
            inside[round(word.start * RATE) - 2 : round(word.end * RATE) + 2] = True
            assert np.abs(done.audio_CS[channel, round(word.start * RATE) : round(word.end * RATE)]).max() > 0.05
        assert (done.audio_CS[channel, ~inside] == 0).sum() > 0.9 * (~inside).sum()
    assert {w.text[:-1] for w in d.left.words} == {"agent"} and {w.text[:-1] for w in d.right.words} == {"user"}
    d.check("here")


@pytest.mark.parametrize("seed", range(12))
def test_a_barge_in_stops_the_other_side_in_time_and_leaves_exact_silence(seed: int) -> None:
    done = stitch(BARGE_IN, ToneEngine(), seed, StitchOptions(timing=STILL))
    (event,) = [e for e in done.dialogue.events if e.kind == "barge_in"]
    assert event.end is not None and event.stop is not None
    third = [w for w in done.dialogue.left.words if w.start > 3 * (WORD + PAUSE) + 0.7]
    begin = third[0].start  # the long agent turn
    length = 30 * (WORD + PAUSE)
    assert event.side == "right" and begin + 0.4 * length <= event.start <= begin + length
    if event.start + 0.7 < begin + length:
        assert 0.2 <= event.stop - event.start <= 0.7
    last_turn = done.dialogue.left.words[-4]
    assert last_turn.start >= event.end
    silent = done.audio_CS[0, round(event.stop * RATE) : round(last_turn.start * RATE)]
    assert len(silent) > RATE and not silent.any()
    assert not [w for w in done.dialogue.left.words if event.stop <= w.start < last_turn.start]
    cut = [w for w in done.dialogue.left.words if w.start < event.stop][-1]
    assert cut.end <= event.stop and cut.end - cut.start >= 0.5 * WORD - 1e-3
    assert done.dialogue.gates["after_cut_dbfs"] == -120 and done.dialogue.gates["words_after_cut"] == 0


def test_a_cut_fades_and_a_word_stays_if_half_of_it_sounded() -> None:
    speech = ToneEngine().speak("one two three four", "tone/a", seed=0)  # starts 0.0 0.4 0.8 1.2, 0.3 s each
    for stop, kept in ((0.9499, ["one", "two"]), (0.9501, ["one", "two", "three"]), (1.15, ["one", "two", "three"])):
        slot = Slot(turn=0, side="left", start=0.0, stop=stop, fade=0.1)
        words = words_of([slot], [speech], "left")
        assert [w.text for w in words] == kept and words[-1].end <= stop
    slot = Slot(turn=0, side="left", start=1.0, stop=1.6, fade=0.1)
    channel = render([slot], [speech], "left", 3.0)
    assert not channel[: RATE - 1].any() and not channel[round(1.6 * RATE) :].any()
    np.testing.assert_array_equal(channel[RATE : RATE + round(0.5 * RATE)], speech.audio[: round(0.5 * RATE)])
    envelope = [np.abs(channel[round((1.5 + t) * RATE) :][: RATE // 50]).max() for t in (0.0, 0.04, 0.08)]
    assert envelope[0] > envelope[1] > envelope[2] > 0


def test_a_backchannel_overlaps_and_stops_nobody() -> None:
    done = stitch(script(agent(20), user(1, "backchannel"), user(3)), ToneEngine(), 1, StitchOptions(timing=STILL))
    (event,) = done.dialogue.events
    words = done.dialogue.left.words
    start, end = event.span
    assert event.kind == "backchannel" and words[0].start < start < end < words[-1].end
    assert len(words) == 20 and words[-1].end - words[0].start == pytest.approx(20 * 0.4 - 0.1, abs=1e-3)
    assert done.dialogue.right.words[1].start > words[-1].end


def test_gaps_follow_the_settings() -> None:
    turns = [agent(5), user(5)] * 400
    seconds = [2.0] * len(turns)
    slots = place(turns, seconds, random.Random(0), replace(Timing(), user_silence_share=0.0)).slots
    gaps = np.array([b.start - a.stop for a, b in itertools.pairwise(slots)])
    assert gaps.min() >= -0.4001 and gaps.max() <= 1.5001
    # N(0.25, 0.35) clipped at -0.4 and 1.5 keeps its median; P(gap < 0) is 0.2375.
    assert np.median(gaps) == pytest.approx(0.25, abs=0.05) and (gaps < 0).mean() == pytest.approx(0.2375, abs=0.05)


def test_no_side_ever_talks_over_itself() -> None:
    rng = random.Random(0)
    kinds: list[Kind] = ["normal", "normal", "barge_in", "backchannel"]
    for n in range(300):
        turns, last = [rng.choice([agent, user])(rng.randint(1, 8))], None
        while len(turns) < 12:
            speak, kind = rng.choice([agent, user]), rng.choice(kinds)
            turn = speak(rng.randint(1, 8), kind)
            last = next(t for t in reversed(turns) if t.kind != "backchannel")
            if kind == "normal" or turn.speaker != last.speaker:
                turns.append(turn)
        seconds = [0.4 * len(t.text.split()) for t in turns]
        schedule = place(turns, seconds, random.Random(n), Timing())
        for side in ("left", "right"):
            own = [slot for slot in schedule.slots if slot.side == side]
            assert all(a.stop <= b.start for a, b in itertools.pairwise(own))
        assert all(0 <= s.start < s.stop <= schedule.seconds for s in schedule.slots)
        assert all(s.stop - s.start <= seconds[s.turn] + 1e-6 for s in schedule.slots)


def test_a_user_may_stay_silent_for_a_while() -> None:
    timing = replace(Timing(), user_silence_share=1.0)
    schedule = place([agent(5), user(5), agent(5)], [2.0] * 3, random.Random(0), timing)
    assert 2 <= schedule.slots[1].start - schedule.slots[0].stop <= 6
    assert [e.kind for e in schedule.events] == ["user_silence"]


@pytest.mark.parametrize("turns, named", [
    ([user(3, "barge_in")], "turn 0 is a barge_in"),
    ([agent(3), agent(3, "barge_in")], "turn 1 is a barge_in of the agent"),
    ([agent(3), user(3), user(1, "backchannel")], "turn 2 is a backchannel of the user"),
])  # fmt: skip
def test_impossible_turns_are_refused(turns: list[Turn], named: str) -> None:
    with refused("bad-record", named):
        place(turns, [1.0] * len(turns), random.Random(0), Timing())


def test_held_out_scripts_use_held_out_voices_only() -> None:
    voices = ToneEngine().voices()
    for n in range(40):
        train = choose_voices(voices, "train", random.Random(n))
        held = choose_voices(voices, "heldout", random.Random(n))
        assert not any(v.held_out for v in train.values()) and all(v.held_out for v in held.values())
        assert train["left"] != train["right"] and held["left"] != held["right"]
    with refused("bad-value", "'test'"):
        choose_voices(voices, "test", random.Random(0))
    with refused("no-data", "1 voices", "split heldout"):
        choose_voices(voices[:4], "heldout", random.Random(0))


def test_all_depends_on_seed_and_id_alone() -> None:
    first, again = (stitch(BARGE_IN, ToneEngine(), 7, StitchOptions()) for _ in range(2))
    assert first.dialogue == again.dialogue
    np.testing.assert_array_equal(first.audio_CS, again.audio_CS)
    for other in (stitch(BARGE_IN, ToneEngine(), 8, StitchOptions()),
                  stitch(replace(BARGE_IN, id="s-2"), ToneEngine(), 7, StitchOptions())):  # fmt: skip
        assert other.dialogue.seconds != first.dialogue.seconds


@pytest.mark.parametrize("seconds", [3.2, 4.0, 8.0])
def test_the_voice_prompt_is_another_utterance_of_the_agent_at_minus_24_lufs(seconds: float) -> None:
    done = stitch(BARGE_IN, ToneEngine(), 0, StitchOptions(voice_seconds=seconds))
    assert 3 <= len(done.voice) / RATE <= 10 and len(done.voice) / RATE == pytest.approx(seconds, abs=0.3)
    assert loudness(done.voice, RATE) == pytest.approx(-24, abs=0.1)
    pitch = np.fft.rfftfreq(len(done.voice), 1 / RATE)[np.argmax(np.abs(np.fft.rfft(done.voice)))]
    assert pitch == pytest.approx(ToneEngine.pitch[done.dialogue.left.speaker], abs=5)


def test_settings_out_of_range_are_refused() -> None:
    with refused("bad-value", "voice seconds 2.0"):
        StitchOptions(voice_seconds=2.0)


def test_the_users_level_varies_by_6_db_and_the_agents_does_not() -> None:
    levels = []
    for seed in range(30):
        done = stitch(script(agent(9), user(9)), ToneEngine(), seed, StitchOptions(timing=STILL))
        left, right = (np.abs(channel).max() for channel in done.audio_CS)
        assert left == pytest.approx(0.4 * 10 ** (-3 / 20), rel=1e-2)
        levels.append(20 * np.log10(right / left))
    assert -6.1 <= min(levels) < -3 and 3 < max(levels) <= 6.1


def test_a_user_who_never_speaks_is_a_silent_channel() -> None:
    done = stitch(script(agent(9), agent(5)), ToneEngine(), 0, StitchOptions())
    assert not done.audio_CS[1].any() and done.dialogue.right.words == ()


def test_a_script_without_agent_turns_is_refused() -> None:
    with refused("bad-record", "s-1"):
        stitch(script(user(3)), ToneEngine(), 0, StitchOptions())


# ---- gates: each must catch the fault it is for
Slots = tuple[Slot, ...]
Measured = tuple[Audio, Dialogue, Slots, Audio]
"""What `measure` takes: both channels, the record, the slots, the voice prompt."""


def good() -> Measured:
    done = stitch(BARGE_IN, ToneEngine(), 0, StitchOptions(timing=STILL))
    (cut,) = [e.stop for e in done.dialogue.events if e.stop is not None]
    starts = [w.start for w in done.dialogue.left.words]
    slots = (
        Slot(turn=2, side="left", start=starts[4], stop=cut, fade=0.1),
        Slot(turn=4, side="left", start=starts[-4], stop=starts[-1] + 0.4),
    )
    return done.audio_CS, done.dialogue, slots, done.voice


def swap(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    return a[::-1], d, s, v


def late_word(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    late = Word(text="late", start=s[0].stop + 0.2, end=s[0].stop + 0.4)
    words = tuple(sorted([*d.left.words, late], key=lambda w: w.start))
    return a, replace(d, left=replace(d.left, words=words)), s, v


def sound_after_cut(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    a = a.copy()
    a[0, round((s[0].stop + 0.3) * RATE)] = 0.01
    return a, d, s, v


def clip(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    return np.clip(a * 20, -1, 1), d, s, v


def silence(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    return np.concatenate([a, np.zeros((2, 9 * RATE), np.float32)], axis=1), replace(d, seconds=d.seconds + 9), s, v


def offset(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    return a + np.float32(0.02), d, s, v


def long_word(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    words = (replace(d.left.words[0], end=d.left.words[0].start + 2.5), *d.left.words[1:])
    return a, replace(d, left=replace(d.left, words=words)), s, v


def loud_voice(a: Audio, d: Dialogue, s: Slots, v: Audio) -> Measured:
    return a, d, s, v * 2


@pytest.mark.parametrize("fault, reason", [
    (swap, "channel swap"), (late_word, "interrupted words"), (sound_after_cut, "interrupted words"),
    (clip, "clipping"), (silence, "silence"), (offset, "dc"), (long_word, "word length"),
    (loud_voice, "voice loudness"),
])  # fmt: skip
def test_every_gate_catches_its_fault(fault: Callable[..., Measured], reason: str) -> None:
    assert gates.reason_to_reject(measure(*good()), gates.Limits()) is None
    verdict = gates.reason_to_reject(measure(*fault(*good())), gates.Limits())
    assert verdict is not None and verdict.startswith(f"{reason}: ")


def test_words_in_order_is_a_gate() -> None:
    a, d, s, v = good()
    words = tuple(reversed(d.right.words))
    values = measure(a, replace(d, right=replace(d.right, words=words)), s, v)
    assert values["words_out_of_order"] == len(words) - 1
    assert (gates.reason_to_reject(values, gates.Limits()) or "").startswith("word order: ")


def test_a_rejection_names_the_gate() -> None:
    options = StitchOptions(limits=replace(gates.Limits(), swap_ratio=1e9))
    with refused("bad-audio", "s-1", "gate channel swap"):
        stitch(BARGE_IN, ToneEngine(), 0, options)


def test_gate_values_are_stored_with_the_dialogue() -> None:
    d = stitch(BARGE_IN, ToneEngine(), 0, StitchOptions()).dialogue
    assert d.gates["swap_ratio"] > 100 and d.gates["clipped_runs"] == 0 and d.gates["voice_lufs"] == -24
    assert Dialogue.from_json(d.to_json(), "here").gates == d.gates
    assert isinstance(d.right, Side) and d.provenance["engine"]["name"] == "tone" and d.licence == "CC0"
