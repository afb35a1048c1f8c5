"""Word times for engines that give none: forced alignment of what was said, mapped back to what was written."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.listening.align import MIN_SCORE, shared_aligner
from data_pipelines.sound.audio import Audio
from data_pipelines.speech.protocols import Speech, trim_silence, trim_word_ends
from data_pipelines.text.spoken import SpokenWord
from model.errors import UserError

MAX_UNSAID_SECONDS = 0.6
"""Sound before the first or after the last word that is still a breath; longer, the engine said more than its text."""

MIXTURE_SCORE = -80.0
"""Least alignment score of a mixture, where two voices share one normalisation; its pieces are aligned again alone."""

HUMS = frozenset("mm mm-hm mm-hmm mhm hm hmm uh-huh uh um".split())
"""Every voice hums in its own way, which no dictionary has: where nothing else is said, the hum is all of the sound."""

Times = list[tuple[str, float, float]]


def spoken_line(words: Sequence[SpokenWord]) -> str:
    """The text for an engine: as it is said, with the punctuation that shapes it."""
    return " ".join(" ".join(word.spoken) + word.tail for word in words)


def aligned_words(audio: Audio, rate: int, words: Sequence[SpokenWord], *, min_score: float = MIN_SCORE) -> Times:
    """Written words with times. Raises UserError if they are not found in the sound."""
    said = [f"{piece.lower()}." if len(piece) == 1 and piece.isupper() and piece != "I" else piece
            for word in words for piece in word.spoken]  # fmt: skip
    found = shared_aligner().align(audio, rate, said, min_score=min_score)
    if found is None:
        text = " ".join(word.written for word in words)
        raise UserError(f"the words are not found in the sound: {text[:60]!r}", code="bad-answer")
    times, at = [], 0
    for word in words:
        first, last = found.words[at], found.words[at + len(word.spoken) - 1]
        at += len(word.spoken)
        times.append((word.written, first.start, last.end))
    return times


def timed_speech(audio: Audio, rate: int, words: Sequence[SpokenWord]) -> Speech:
    """One utterance with its word times, trimmed. Raises UserError if more or less than its words is heard."""
    hop = rate // 100
    frames = np.abs(audio[: len(audio) // hop * hop]).reshape(-1, hop).max(axis=1, initial=0.0)
    loud = np.flatnonzero(frames > 0.05 * float(frames.max(initial=0.0))) / 100
    if len(words) == 1 and words[0].written.lower().strip(".,!?") in HUMS:
        times = [(words[0].written, float(loud[0]), float(loud[-1] + 0.01))]
    else:
        times = aligned_words(audio, rate, words)
    trimmed = trim_word_ends(times, audio, rate)
    unsaid = [float((loud < trimmed[0][1]).sum() / 100), float((loud > trimmed[-1][2]).sum() / 100)]
    if max(unsaid) > MAX_UNSAID_SECONDS:
        raise UserError(
            f"{max(unsaid):.1f} s of sound are heard beside the words: more than the text was said", code="bad-answer"
        )
    return trim_silence(Speech(audio=audio, rate=rate, words=trimmed))
