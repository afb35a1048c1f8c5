"""Plans the cuts of a recording: windows that become dialogues, with voice clips from outside of all of them.

Everything here is arithmetic on times in seconds; no audio is touched.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from data_pipelines.recordings.clips import AFTER_SECONDS, MIN_CLIP_SECONDS, VoiceClip
from data_pipelines.recordings.utterances import Spoken, Utterance
from data_pipelines.records.schema import SIDES, Word

LEAD_SECONDS = 0.5
"""Silence before the first word of a window."""
MIN_WINDOW_SECONDS = 10.0
MARGIN_SECONDS = 0.15
"""A cut keeps this distance from words, in seconds, because the aligner's times are not better.

Of about 200 cuts of synthetic calls 5 went through a word at 0.03, 4 at 0.06, 2 at 0.10 and none at 0.15.
"""
_SKIP_SECONDS = 30.0  # A window may start this much later than it could if that makes it better.


@dataclass(frozen=True, kw_only=True)
class WindowLimits:
    """What a window must hold to be a sample."""

    max_seconds: float
    min_speech: float = 4.0
    """Seconds that the agent says at least; a window with less teaches silence."""
    max_uncertain: float = 0.10
    """Largest share of the agent's speech without words; more of it teaches silence in the text stream."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of the recording and, for each side in it that can be the agent, its clips; else the reason why not."""

    start: float
    end: float
    clips: Mapping[str, tuple[VoiceClip, ...]]
    refusals: Mapping[str, str]
    score: float


Clips = Mapping[str, Sequence[VoiceClip]]
"""The candidates for a voice clip of "left" and "right", both present."""


def plan_windows(spoken: Spoken, clips: Clips, seconds: float, limits: WindowLimits) -> list[Window]:
    """Returns windows of at most `limits.max_seconds`, in order, that begin before utterances and cut no word.

    No voice clip lies in any window. Clips are taken from the end of the recording or from its beginning, and the
    windows from the rest; or one window is cut, and clips for it from all around. The plan with most speech wins. A
    recording that is too short for anything gives windows without an agent (see their `refusals`).
    """
    sounds = OccupiedTimes(spoken)
    plans = []
    for start, end in _rests(clips, seconds):
        outside = {side: [clip for clip in own if clip.is_outside(start, end)] for side, own in clips.items()}
        plans.append(list(_in_turn(spoken, outside, sounds, start, end, limits)))
    whole = list(_in_turn(spoken, clips, sounds, 0.0, seconds, limits))
    plans += [[window] for window in whole if window.clips]
    best = max(plans, key=lambda plan: sum(window.score for window in plan if window.clips))
    return best if any(window.clips for window in best) else whole


def _rests(clips: Clips, seconds: float) -> list[tuple[float, float]]:
    """Returns what is left of a recording without its end, and what is left without its beginning.

    Every side has one of its longest clips in what is taken away.
    """
    firsts, lasts = [], []
    for own in clips.values():
        if own and not any(clip.is_outside(0.0, seconds) for clip in own):
            spans = [clip.span for clip in own if clip.seconds >= 0.9 * max(clip.seconds for clip in own)]
            firsts.append(min(end for _, end in spans))
            lasts.append(max(start for start, _ in spans))
    return [(0.0, min(lasts, default=seconds)), (max(firsts, default=0.0), seconds)]


def _in_turn(
    spoken: Spoken, clips: Clips, sounds: "OccupiedTimes", free: float, seconds: float, limits: WindowLimits
) -> Iterator[Window]:
    """Yields windows between `free` and `seconds`.

    Each is the best among those that start within half a minute: much speech, by both sides, with clips for both.
    """
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
            return  # The rest of the recording gives no agent, which is not worth a note.
        yield best
        free, is_first = best.end, False


def judge(spoken: Spoken, clips: Clips, start: float, end: float, limits: WindowLimits) -> Window:
    """Returns the window between two times: which sides can be the agent in it, and how good it is."""
    usable: dict[str, tuple[VoiceClip, ...]] = {}
    refusals: dict[str, str] = {}
    speech: dict[str, float] = {}
    for side in SIDES:
        own = [utterance for utterance in spoken[side] if utterance.end > start and utterance.start < end]
        wordless = sum(min(u.end, end) - max(u.start, start) for u in own if u.is_wordless)
        speech[side] = sum(_said(utterance.words, start, end) for utterance in own)
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
    """Returns the seconds from the first to the last word of an utterance that lie in the window."""
    inside = [word for word in words if start <= word.start and word.end <= end]
    return inside[-1].end - inside[0].start if inside else 0.0


class OccupiedTimes:
    """All that must not be cut through: words of both sides, broken-off ones, speech without words, and laughter."""

    def __init__(self, spoken: Spoken) -> None:
        utterances = list(_all(spoken))
        said = [(word.start, word.end) for u in utterances for word in u.words]
        said += [span for u in utterances for span in u.unwritten]
        spans = [(start - MARGIN_SECONDS, end + MARGIN_SECONDS) for start, end in said]
        spans += [(u.start, u.end) for u in utterances if u.is_wordless]
        spans += [(event.start, event.end) for u in utterances for event in u.events]
        self.starts, self.ends = np.array(sorted(spans)).reshape(-1, 2).T

    def quiet_after(self, time: float) -> float:
        """Returns the first moment from `time` on in which nobody sounds."""
        while True:
            through = (self.starts < time) & (time < self.ends)
            if not through.any():
                return time
            time = float(self.ends[through].max())

    def is_quiet(self, time: float) -> bool:
        """True if nobody sounds at `time`."""
        return not bool(((self.starts < time) & (time < self.ends)).any())


def _all(spoken: Spoken) -> Iterable[Utterance]:
    return chain.from_iterable(spoken.values())


def _starts(spoken: Spoken, sounds: OccupiedTimes, free: float) -> list[float]:
    """Returns moments from `free` on, up to half a second before an utterance, in which nobody speaks."""
    starts: list[float] = []
    for first in sorted(utterance.words[0].start for utterance in _all(spoken) if utterance.words):
        if first < free or (starts and first > starts[0] + LEAD_SECONDS + _SKIP_SECONDS):
            continue
        quiet = sounds.quiet_after(max(free, first - LEAD_SECONDS))
        if quiet <= first and quiet not in starts:
            starts.append(quiet)
    return starts


def _ends(spoken: Spoken, sounds: OccupiedTimes, start: float, latest: float) -> list[float]:
    """Returns ends of utterances in which nobody else speaks; without any, the last pause between words."""
    first = start + MIN_WINDOW_SECONDS
    ends = {max([u.end + AFTER_SECONDS, *(word.end + MARGIN_SECONDS for word in u.words[-1:])]) for u in _all(spoken)}
    good = [end for end in sorted(ends | {latest}) if first <= end <= latest and sounds.is_quiet(end)]
    # All ends matter in a short recording, where the rest must give the clips; in a long one the last few do.
    return (
        good[-40:]
        or [float(end) for end in np.sort(sounds.ends) if first <= end <= latest and sounds.is_quiet(end)][-1:]
    )
