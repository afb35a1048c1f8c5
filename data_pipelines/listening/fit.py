"""Whether a text is what is said: judged by how well a speaker's other utterances fit theirs, and by what is unsaid.

An aligner finds a place for any text, so its path alone says nothing. Two signs tell wrong texts from right ones: their
phones score worse than the same speaker's usually do, and they leave speech over that none of their words covers.
"""

# Shapes: S samples

from collections.abc import Sequence

import numpy as np

from data_pipelines.listening.align import Alignment
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio

MAX_DROP, MAX_DROP_AGAIN = 25.0, 15.0
"""How far below the median of its speaker's utterances the phone score of a text may lie: at its own times, elsewhere.

Medians are -30 to -41 for espeak-ng and -15 to -22 for recorded people; texts of other lines mostly score -50 to -90.
"""
LOWEST, HIGHEST = -66.0, -40.0
"""The limit of no speaker lies outside of these."""
MIN_MEDIAN, STRICT = -48.0, -50.0
"""A median below the first is of texts that are mostly wrong: they do not set the limit, which is the second then."""
MAX_UNSAID_SECONDS = 0.35
"""Sound that no word covers and that still may be breath or clatter; beside right texts it is 0.2 s or less."""
NEAR_SECONDS = 0.05
"""Sound this near to a word belongs to it, because its times are no better."""


def limit_of(phone_scores: Sequence[float], max_drop: float = MAX_DROP) -> float:
    """Returns the least phone score of a text that is what is said, from the scores of one speaker's utterances."""
    if not phone_scores:
        return HIGHEST
    median = float(np.median(phone_scores))
    return min(max(median - max_drop, LOWEST), HIGHEST) if median >= MIN_MEDIAN else STRICT


def unsaid_seconds(audio_S: Audio, rate: int, words: Sequence[Word], start: float, end: float) -> float:
    """Returns how long there is sound between two times of the audio that is not within 50 ms of a word.

    Sound is a frame of 10 ms whose peak is above 20 % of the loudest, or above twice the quietest in noise.
    """
    hop = rate // 100
    peaks = np.abs(audio_S[: len(audio_S) // hop * hop]).reshape(-1, hop).max(axis=1, initial=0.0)
    if not len(peaks):
        return 0.0
    loudest, quietest = np.quantile(peaks, (0.95, 0.1))
    is_loud = peaks > max(0.2 * loudest, min(2 * quietest, 0.3 * loudest))
    is_loud[: max(round(start * 100), 0)] = is_loud[max(round(end * 100), 0) :] = False
    for word in words:
        first, last = (max(round(100 * time), 0) for time in (word.start - NEAR_SECONDS, word.end + NEAR_SECONDS))
        is_loud[first:last] = False
    return float(is_loud.sum()) / 100


def fits(found: Alignment, unsaid: float, limit: float) -> bool:
    """True if the words of an alignment are what is said, with `unsaid` seconds of sound beside them."""
    return found.phone_score >= limit and unsaid <= MAX_UNSAID_SECONDS
