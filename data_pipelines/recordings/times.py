"""Finds impossible times: beyond the audio, reversed, or of one speaker who says two things at once."""

import math
from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.recordings.utterances import Sides, SideText, Utterance
from data_pipelines.records.schema import Word
from model.errors import UserError

MAX_BAD_SHARE = 0.05
"""Largest share of words or utterances with impossible times; more of them mean another recording's transcript."""
BEYOND_SECONDS = 0.25
"""How far times may reach beyond the audio, because data sets round them."""
MAX_OVERLAP_SECONDS = 0.5
"""Two utterances of one speaker may overlap this much, which is a matter of rounding."""


def drop_bad_times(sides: Sides, seconds: float, where: str) -> tuple[Sides, int]:
    """Returns the sides without words and utterances of impossible times, and how many were dropped.

    Raises: UserError naming `where` and an example if more than one in twenty is impossible (code "bad-transcript").
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
            f"{example}): the transcript does not match the audio",
            code="bad-transcript",
        )
    return kept, dropped


def _is_good(start: float, end: float, seconds: float) -> bool:
    return math.isfinite(start) and math.isfinite(end) and -0.01 <= start <= end <= seconds + BEYOND_SECONDS


def _bounded(utterance: Utterance, words: Sequence[Word], seconds: float) -> Utterance:
    """Brings times into the audio; a word that overlaps the next one ends at its start."""
    fixed = []
    for n, word in enumerate(words):
        start, end = min(max(word.start, 0.0), seconds), min(word.end, seconds)
        if n + 1 < len(words) and start < words[n + 1].start < end:
            end = words[n + 1].start
        fixed.append(Word(text=word.text, start=start, end=end))
    start, end = (fixed[0].start, fixed[-1].end) if fixed else (max(utterance.start, 0.0), min(utterance.end, seconds))
    return Utterance(start=start, end=end, text=utterance.text, words=tuple(fixed))


def mute_overlapping(sides: Sides) -> tuple[Sides, int]:
    """Takes the text from utterances without word times that overlap another one of their side; returns how many.

    Only one of the two can be right, and nobody knows which, so they stay as speech without words.
    """
    kept, num_muted = {}, 0
    for name, side in sides.items():
        found = overlapping([(utterance.start, utterance.end) for utterance in side.utterances])
        muted = {n for n in found if not side.utterances[n].words}
        num_muted += len(muted)
        utterances = tuple(replace(u, text="") if n in muted else u for n, u in enumerate(side.utterances))
        kept[name] = replace(side, utterances=utterances)
    return kept, num_muted


def overlapping(spans: Sequence[tuple[float, float]]) -> set[int]:
    """Returns the numbers of the utterances of one side, in order of time, that overlap another one."""
    found: set[int] = set()
    latest = 0  # This utterance ends last so far.
    for n, (start, end) in enumerate(spans):
        if n and spans[latest][1] - start > MAX_OVERLAP_SECONDS:
            found |= {latest, n}
        if end > spans[latest][1]:
            latest = n
    return found
