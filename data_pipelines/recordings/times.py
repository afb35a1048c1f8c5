"""Times that cannot be: beyond the audio, reversed, or one speaker who says two things at once."""

import math
from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.recordings.sides import Sides, SideText, Utterance
from data_pipelines.records.schema import Word
from model.errors import UserError

MAX_BAD_SHARE = 0.05
"""Of words or utterances with impossible times; what is beyond it is no slip, but another recording's transcript."""
BEYOND_SECONDS = 0.25
"""How far times may reach beyond the audio: data sets round them."""
MAX_OVERLAP_SECONDS = 0.5
"""Of two utterances of one speaker; less is a matter of rounding."""


def drop_bad_times(sides: Sides, seconds: float, where: str) -> tuple[Sides, int]:
    """Without words and utterances whose times cannot be, and how many these were.

    Raises: UserError if they are more than one in twenty: the transcript is of another recording.
    """
    dropped, total, example, kept = 0, 0, "", {}
    for name, side in sides.items():
        utterances = []
        for utterance in side.utterances:
            words = tuple(word for word in utterance.words if _is_good(word.start, word.end, seconds))
            bad = [word for word in utterance.words if not _is_good(word.start, word.end, seconds)]
            total += max(1, len(utterance.words))
            if utterance.words:
                dropped += len(bad)
                example = example or (f"{bad[0].text!r} at {bad[0].start:.2f}-{bad[0].end:.2f} s" if bad else "")
                if not words:
                    continue
            elif not _is_good(utterance.start, utterance.end, seconds):
                dropped += 1
                example = example or f"{utterance.text[:30]!r} at {utterance.start:.2f}-{utterance.end:.2f} s"
                continue
            utterances.append(_bounded(utterance, words, seconds))
        kept[name] = SideText(utterances=tuple(utterances), text=side.text)
    if dropped > MAX_BAD_SHARE * total:
        raise UserError(
            f"{where}: {dropped} of {total} times are reversed or beyond the audio of {seconds:.2f} s (the first: "
            f"{example}): the transcript does not match the audio"
        )
    return kept, dropped


def _is_good(start: float, end: float, seconds: float) -> bool:
    return math.isfinite(start) and math.isfinite(end) and -0.01 <= start <= end <= seconds + BEYOND_SECONDS


def _bounded(utterance: Utterance, words: Sequence[Word], seconds: float) -> Utterance:
    """Inside the audio, words one after the other: an end that overlaps the next word is brought back to its start."""
    fixed = []
    for n, word in enumerate(words):
        start, end = min(max(word.start, 0.0), seconds), min(word.end, seconds)
        if n + 1 < len(words) and start < words[n + 1].start < end:
            end = words[n + 1].start
        fixed.append(Word(text=word.text, start=start, end=end))
    start, end = (fixed[0].start, fixed[-1].end) if fixed else (max(utterance.start, 0.0), min(utterance.end, seconds))
    return Utterance(start=start, end=end, text=utterance.text, words=tuple(fixed))


def mute_overlapping(sides: Sides) -> tuple[Sides, int]:
    """Takes the text from utterances that are still to be aligned and overlap another one of their side; counts them.

    Only one of the two can be right, and nobody knows which: they stay as speech without words.
    """
    kept, num_muted = {}, 0
    for name, side in sides.items():
        muted: set[int] = set()
        latest = 0  # the utterance that ends last so far
        for n, utterance in enumerate(side.utterances):
            if n and side.utterances[latest].end - utterance.start > MAX_OVERLAP_SECONDS:
                muted |= {m for m in (latest, n) if not side.utterances[m].words}
            if utterance.end > side.utterances[latest].end:
                latest = n
        num_muted += len(muted)
        utterances = tuple(replace(u, text="") if n in muted else u for n, u in enumerate(side.utterances))
        kept[name] = replace(side, utterances=utterances)
    return kept, num_muted
