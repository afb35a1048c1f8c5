"""Windows and voice clips as they are planned on times alone."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from data_pipelines.recordings.clips import VoiceClip, candidate_clips
from data_pipelines.recordings.utterances import Spoken, Utterance
from data_pipelines.recordings.windows import Window, WindowLimits, judge, plan_windows
from data_pipelines.records.schema import SIDES, Word

Turn = tuple[float, float, str, bool]
"""Start and end in seconds, the side, and whether it has words."""


def in_turns(seconds: float) -> list[Turn]:
    """Both sides say 5 s in turn, with half a second between them."""
    starts = [0.8 + 5.5 * n for n in range(1000) if 0.8 + 5.5 * n + 5 < seconds - 0.3]
    return [(start, start + 5, SIDES[n % 2], True) for n, start in enumerate(starts)]


def spoken(turns: list[Turn]) -> Spoken:
    """Utterances of four words, or without words."""

    def words(start: float, end: float) -> tuple[Word, ...]:
        edges = [start + (end - start) * quarter / 4 for quarter in range(5)]
        return tuple(Word(text="word", start=a, end=b) for a, b in itertools.pairwise(edges))

    return {
        side: [
            Utterance(start=start, end=end, words=words(start, end) if has_words else ())
            for start, end, own, has_words in sorted(turns)
            if own == side
        ]
        for side in SIDES
    }


def clips_of(said: Spoken) -> dict[str, list[VoiceClip]]:
    """The candidates of both sides, of at most 5 s."""
    return {side: candidate_clips(said[side], 5.0) for side in SIDES}


def test_no_window_cuts_through_a_word_of_either_side() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        turns: list[Turn] = []
        for side in SIDES:  # Both hardly ever stop.
            time = rng.uniform(0, 1)
            while time < 200:
                length = rng.uniform(0.4, 6)
                turns.append((time, time + length, side, rng.random() >= 0.05))
                time += length + rng.uniform(0.0, 2.5)
        said = spoken(turns)
        windows = plan_windows(said, clips_of(said), 200.0, WindowLimits(max_seconds=45))
        assert windows
        for window in windows:
            assert window.end - window.start <= 45
            for utterance in [*said["left"], *said["right"]]:
                spans = [(w.start, w.end) for w in utterance.words] or [(utterance.start, utterance.end)]
                for start, end in spans:
                    assert not any(start < cut < end for cut in (window.start, window.end)), (seed, window, start, end)


def test_no_window_cuts_through_a_word_that_is_broken_off() -> None:
    said = spoken(in_turns(200))
    left = [replace(utterance, unwritten=((utterance.end + 0.1, utterance.end + 0.3),)) for utterance in said["left"]]
    said = {"left": left, "right": said["right"]}
    windows = plan_windows(said, clips_of(said), 200.0, WindowLimits(max_seconds=30))
    spans = [span for utterance in left for span in utterance.unwritten]
    assert len(windows) > 3
    assert not [cut for w in windows for cut in (w.start, w.end) if any(start < cut < end for start, end in spans)]


def test_a_side_with_much_uncertain_speech_is_no_agent() -> None:
    turns = [(a, b, side, n != 4) for n, (a, b, side, _) in enumerate(in_turns(200))]
    said = spoken(turns)
    clips, limits = clips_of(said), WindowLimits(max_seconds=150)
    window = judge(said, clips, 0.0, 60.0, limits)
    assert set(window.clips) == {"right"} and "17 % of its speech has no words" in window.refusals["left"]
    assert set(judge(said, clips, 0.0, 130.0, limits).clips) == {"left", "right"}
    for window in plan_windows(said, clips, 200, WindowLimits(max_seconds=30)):
        assert "left" not in window.clips or window.start >= turns[4][1] or window.end <= turns[4][0]


@pytest.mark.parametrize("seconds", [60, 90, 200, 400])
@pytest.mark.parametrize("silent", ["none", "at first", "at last"])
def test_no_voice_clip_lies_in_any_window_of_its_recording(seconds: int, silent: str) -> None:
    turns = in_turns(seconds)
    if silent != "none":  # The right side says nothing in half of the recording.
        turns = [turn for turn in turns if turn[2] == "left" or (turn[0] > seconds / 2) == (silent == "at first")]
    said = spoken(turns)
    windows = plan_windows(said, clips_of(said), float(seconds), WindowLimits(max_seconds=60))
    for window in windows:
        for clip in [clip for own in window.clips.values() for clip in own]:
            assert all(clip.is_outside(other.start, other.end) for other in windows)
    assert {side for window in windows for side in window.clips} == {"left", "right"}
    assert sum(window.end - window.start for window in windows if window.clips) > 0.5 * seconds


def test_windows_of_a_ten_minute_recording_leave_little_out_and_few_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[Window] = []

    def noted(*given: Any) -> Window:
        judged.append(judge(*given))
        return judged[-1]

    monkeypatch.setattr("data_pipelines.recordings.windows.judge", noted)
    rng = random.Random(0)
    turns: list[Turn] = []
    time = 0.0
    while time < 590:
        length = rng.uniform(0.5, 6)
        turns.append((time, time + length, rng.choice(SIDES), True))
        time += length + rng.uniform(-0.3, 0.5)
    said = spoken(turns)
    windows = plan_windows(said, clips_of(said), 600.0, WindowLimits(max_seconds=150))
    assert len(judged) < 12 * len(turns)  # It is 57 for each turn if a window may start anywhere.
    assert sum(window.end - window.start for window in windows) > 500
    assert all(window.end - window.start <= 150 and set(window.clips) == {"left", "right"} for window in windows)
    assert all(first.end <= second.start for first, second in itertools.pairwise(windows))


@pytest.mark.parametrize("length", [0.05, 0.2, 0.31, 0.6])
def test_no_voice_clip_holds_what_was_masked(length: float) -> None:
    start, masked = 1.0, (5.0, 5.0 + length)
    before = [Word(text="word", start=start + 0.4 * n, end=start + 0.4 * (n + 1)) for n in range(10)]
    after = [Word(text="word", start=masked[1] + 0.4 * n, end=masked[1] + 0.4 * (n + 1)) for n in range(10)]
    name = Word(text="[name]", start=masked[0], end=masked[1])
    whole = Utterance(start=start, end=after[-1].end, words=(*before, name, *after))
    cut = [
        Utterance(start=start, end=masked[1], words=(*before, name)),
        Utterance(start=masked[1], end=after[-1].end, words=tuple(after)),
    ]
    for said in ([whole], cut):
        clips = candidate_clips(said, 8.0)
        assert any(len(clip.pieces) == 2 for clip in clips)
        middle = sum(masked) / 2
        assert not any(a < middle < b for clip in clips for a, b in clip.pieces if length > 0.2)
        assert all(b <= masked[0] + 0.1 or a >= masked[1] - 0.05 for clip in clips for a, b in clip.pieces)
