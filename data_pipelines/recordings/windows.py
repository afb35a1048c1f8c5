"""Cutting a call: windows that become dialogues, and voice clips from outside of all of them. Arithmetic on times."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipelines.records.schema import Event, Word

Letter = Literal["A", "B"]

LEAD_SECONDS = 0.5
"""Silence before the first word of a window."""
MIN_WINDOW_SECONDS = 10.0
MIN_CLIP_SECONDS, MAX_CLIP_SECONDS = 3.0, 10.0
CLIP_PAUSE = 0.3
"""Longer pauses are cut out of a voice clip, but for the margins of the words."""
_BEFORE, _AFTER = 0.05, 0.10  # kept around the words of a clip, seconds
_MARGIN = 0.03  # a cut keeps this distance from words: their times are not better
_SKIP_SECONDS = 30.0  # a window may start this much later than it could, if that makes it better


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a window must hold to be a sample."""

    max_seconds: float
    min_speech: float = 4.0
    """Of the agent, in seconds: less in a window teaches silence."""
    max_uncertain: float = 0.10
    """Share of the agent's speech: more of it without words teaches silence in the text stream."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """One utterance with word times from the start of the call. Without words it is audible but not written."""

    start: float
    end: float
    letter: Letter
    words: tuple[Word, ...]
    events: tuple[Event, ...] = ()
    is_silent: bool = False
    """Only a tag such as [noise]: nothing that words should stand for."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A voice clip: pieces of one channel, played one after the other; `seconds` is what they add up to."""

    pieces: tuple[tuple[float, float], ...]
    seconds: float

    @property
    def span(self) -> tuple[float, float]:
        return self.pieces[0][0], self.pieces[-1][1]

    def is_outside(self, start: float, end: float) -> bool:
        return self.span[1] <= start or self.span[0] >= end


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of the call and, for each side in it that can be the agent, its clip; else the reason why not."""

    start: float
    end: float
    clips: dict[Letter, tuple[Clip, ...]]
    refusals: dict[Letter, str]
    score: float


def plan_windows(
    spoken: Sequence[Spoken], clips: dict[Letter, list[Clip]], seconds: float, limits: Limits
) -> list[Window]:
    """Windows of at most `limits.max_seconds`, one after the other, that begin before utterances and cut no word.

    No voice clip lies in any window: clips are taken from the end of the call or from its beginning, and the windows
    from the rest; or one window is cut, and clips for it from all around. Whichever gives most speech is chosen.
    A call that is too short for anything gives windows without an agent (see their `refusals`).
    """
    sounds = Sounds(spoken)
    plans = []
    for start, end in _rests(clips, seconds):
        outside = {letter: [clip for clip in own if clip.is_outside(start, end)] for letter, own in clips.items()}
        plans.append(list(_in_turn(spoken, outside, sounds, start, end, limits)))
    whole = list(_in_turn(spoken, clips, sounds, 0.0, seconds, limits))
    plans += [[window] for window in whole if window.clips]
    best = max(plans, key=lambda plan: sum(window.score for window in plan if window.clips))
    return best if any(window.clips for window in best) else whole


def _rests(clips: dict[Letter, list[Clip]], seconds: float) -> list[tuple[float, float]]:
    """What is left of a call without its end or beginning, in which every side has one of its longest clips."""
    firsts, lasts = [], []
    for own in clips.values():
        if own and not any(clip.is_outside(0.0, seconds) for clip in own):
            spans = [clip.span for clip in own if clip.seconds >= 0.9 * max(clip.seconds for clip in own)]
            firsts.append(min(end for _, end in spans))
            lasts.append(max(start for start, _ in spans))
    return [(0.0, min(lasts, default=seconds)), (max(firsts, default=0.0), seconds)]


def _in_turn(
    spoken: Sequence[Spoken],
    clips: dict[Letter, list[Clip]],
    sounds: "Sounds",
    free: float,
    seconds: float,
    limits: Limits,
) -> Iterator[Window]:
    """Windows between `free` and `seconds`, each the best among those that start within half a minute: much speech, by
    both sides, with clips for both."""
    is_first = True
    while True:
        found = [
            judge(spoken, clips, start, end, limits)
            for start in _starts(spoken, sounds, free)
            for end in _ends(spoken, sounds, start, min(seconds, start + limits.max_seconds))
        ]
        if not found:
            return
        best = max(
            found,
            key=lambda window: (
                bool(window.clips),
                window.score - 0.1 * (window.start - free),
                -window.start,
                window.end,
            ),
        )
        if not best.clips and not is_first and seconds - best.start < limits.max_seconds:
            return  # the rest of the call gives no agent: nothing worth telling
        yield best
        free, is_first = best.end, False


def judge(
    spoken: Sequence[Spoken], clips: dict[Letter, list[Clip]], start: float, end: float, limits: Limits
) -> Window:
    """Says which sides can be the agent in this window, and how good it is."""
    usable: dict[Letter, tuple[Clip, ...]] = {}
    refusals: dict[Letter, str] = {}
    speech: dict[Letter, float] = {}
    sides: tuple[Letter, Letter] = ("A", "B")
    for side in sides:
        own = [turn for turn in spoken if turn.letter == side and turn.end > start and turn.start < end]
        wordless = sum(min(turn.end, end) - max(turn.start, start) for turn in own if is_wordless(turn))
        speech[side] = sum(_said(turn.words, start, end) for turn in own)
        outside = tuple(clip for clip in clips[side] if clip.is_outside(start, end))
        if speech[side] < limits.min_speech:
            refusals[side] = f"says {speech[side]:.1f} s, less than {limits.min_speech:g} s"
        elif wordless > limits.max_uncertain * (wordless + speech[side]):
            share, most = 100 * wordless / (wordless + speech[side]), 100 * limits.max_uncertain
            refusals[side] = (
                f"{share:.0f} % of its speech has no words (uncertain or not aligned), more than {most:g} %"
            )
        elif not outside:
            refusals[side] = (
                f"the call is too short: no {MIN_CLIP_SECONDS:.0f} s of it outside the window for a voice clip"
            )
        else:
            usable[side] = outside
    score = sum(speech[side] for side in usable) + min(speech.values())
    return Window(start=start, end=end, clips=usable, refusals=refusals, score=score)


def _said(words: Sequence[Word], start: float, end: float) -> float:
    """Seconds from the first to the last word of an utterance that lie in the window."""
    inside = [word for word in words if start <= word.start and word.end <= end]
    return inside[-1].end - inside[0].start if inside else 0.0


def is_wordless(turn: Spoken) -> bool:
    """True for speech that the text stream would pass over in silence."""
    return not turn.words and not turn.is_silent


def candidate_clips(spoken: Sequence[Spoken], letter: Letter, longest: float) -> list[Clip]:
    """Voice clips of one side, starting at each of its utterances: the shortest allowed and the longest."""
    turns = [turn for turn in spoken if turn.letter == letter]
    found: list[Clip] = []
    for first in range(len(turns)):
        pieces: list[tuple[float, float]] = []
        shortest: Clip | None = None
        for turn in turns[first:]:
            if is_wordless(turn) or (pieces and turn.start - pieces[-1][1] > _SKIP_SECONDS):
                break
            grown, is_full = _grow(pieces, turn.words, longest)
            for count in range(len(grown)):
                clip = _clip(grown[: count + 1])
                if shortest is None and clip.seconds >= MIN_CLIP_SECONDS:
                    shortest = clip
            pieces = grown
            if is_full:
                break
        if shortest is not None:
            found += {shortest: None, _clip(pieces): None}.keys()
    return found


def _grow(
    pieces: Sequence[tuple[float, float]], words: Sequence[Word], longest: float
) -> tuple[list[tuple[float, float]], bool]:
    """Adds words until the clip would pass `longest`; words less than a pause apart share a piece."""
    grown = list(pieces)
    for word in words:
        start, end = max(0.0, word.start - _BEFORE), word.end + _AFTER
        if grown and start - grown[-1][1] < CLIP_PAUSE:
            longer = [*grown[:-1], (grown[-1][0], max(end, grown[-1][1]))]
        else:
            longer = [*grown, (start, end)]
        if _clip(longer).seconds > longest:
            return grown, True
        grown = longer
    return grown, False


def _clip(pieces: Sequence[tuple[float, float]]) -> Clip:
    total = sum(end - start for start, end in pieces)
    return Clip(pieces=tuple(pieces), seconds=total)


class Sounds:
    """All that must not be cut through: words of both sides, speech without words, and laughter."""

    def __init__(self, spoken: Sequence[Spoken]) -> None:
        spans = [(word.start - _MARGIN, word.end + _MARGIN) for turn in spoken for word in turn.words]
        spans += [(turn.start, turn.end) for turn in spoken if is_wordless(turn)]
        spans += [event.span for turn in spoken for event in turn.events]
        self.starts, self.ends = np.array(sorted(spans)).reshape(-1, 2).T

    def quiet_after(self, time: float) -> float:
        """The first moment from `time` on in which nobody sounds."""
        while True:
            through = (self.starts < time) & (time < self.ends)
            if not through.any():
                return time
            time = float(self.ends[through].max())

    def is_quiet(self, time: float) -> bool:
        return not bool(((self.starts < time) & (time < self.ends)).any())


def _starts(spoken: Sequence[Spoken], sounds: Sounds, free: float) -> list[float]:
    """Moments from `free` on, up to half a second before an utterance, in which nobody speaks."""
    starts: list[float] = []
    for turn in sorted((turn for turn in spoken if turn.words), key=lambda turn: turn.words[0].start):
        first = turn.words[0].start
        if first < free or (starts and first > starts[0] + LEAD_SECONDS + _SKIP_SECONDS):
            continue
        quiet = sounds.quiet_after(max(free, first - LEAD_SECONDS))
        if quiet <= first and quiet not in starts:
            starts.append(quiet)
    return starts


def _ends(spoken: Sequence[Spoken], sounds: Sounds, start: float, latest: float) -> list[float]:
    """Ends of utterances in which nobody else speaks; without any, the last pause between words."""
    first = start + MIN_WINDOW_SECONDS
    ends = {max([turn.end + _AFTER, *(word.end + _MARGIN for word in turn.words[-1:])]) for turn in spoken}
    good = [end for end in sorted(ends | {latest}) if first <= end <= latest and sounds.is_quiet(end)]
    # All ends matter in a short call, where the rest must give the clips; in a long one the last few do.
    return (
        good[-40:]
        or [float(end) for end in np.sort(sounds.ends) if first <= end <= latest and sounds.is_quiet(end)][-1:]
    )
