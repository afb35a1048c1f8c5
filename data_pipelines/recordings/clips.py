"""Voice clips out of a recording: which stretches of one side can be one, which of them is taken, and its sound."""

# Shapes: S samples

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.recordings.utterances import Utterance
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import RATE_HZ, VOICE_SECONDS, Audio, fade_in, fade_out
from data_pipelines.text.personal_words import is_marker

MIN_CLIP_SECONDS, MAX_CLIP_SECONDS = VOICE_SECONDS
CLIP_PAUSE = 0.3
"""Longer pauses are cut out of a voice clip, in seconds, except for the margins of the words."""
APART_SECONDS = 30.0
"""Utterances further apart than this are not joined to one clip."""
AFTER_SECONDS = 0.10
"""Sound that is kept after the words of a clip."""
_BEFORE_SECONDS = 0.05
_FADE_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class VoiceClip:
    """A voice clip: pieces of one channel, played one after the other; `seconds` is what they add up to."""

    pieces: tuple[tuple[float, float], ...]
    seconds: float

    @property
    def span(self) -> tuple[float, float]:
        """The start of the first piece and the end of the last one."""
        return self.pieces[0][0], self.pieces[-1][1]

    def is_outside(self, start: float, end: float) -> bool:
        """True if no piece lies between the two times."""
        return self.span[1] <= start or self.span[0] >= end


def candidate_clips(utterances: Sequence[Utterance], longest: float) -> list[VoiceClip]:
    """Returns voice clips of one side, two for each utterance that one can start with: the shortest and the longest.

    Units: `longest` is in seconds; no clip is shorter than MIN_CLIP_SECONDS.
    """
    found: list[VoiceClip] = []
    for first in range(len(utterances)):
        pieces: list[tuple[float, float]] = []
        shortest: VoiceClip | None = None
        was_masked = False
        for utterance in utterances[first:]:
            if utterance.is_wordless or (pieces and utterance.start - pieces[-1][1] > APART_SECONDS):
                break
            grown, is_full = _grow(pieces, utterance.words, longest, is_apart=was_masked)
            was_masked = bool(utterance.words) and is_marker(utterance.words[-1].text)
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


def draw_clip(clips: Sequence[VoiceClip], rng: random.Random) -> VoiceClip:
    """Draws one of the clips that are at least nine tenths as long as the longest."""
    longest = max(clip.seconds for clip in clips)
    return rng.choice([clip for clip in clips if clip.seconds >= 0.9 * longest])


def play_clip(clip: VoiceClip, audio_S: Audio) -> Audio:
    """Joins the pieces of a clip, with soft edges, so that longer pauses between them are gone.

    Shapes: audio_S [samples] at 24 kHz is the whole channel; the result is [samples of the clip].
    """
    fade = int(_FADE_SECONDS * RATE_HZ)
    pieces = [audio_S[round(start * RATE_HZ) : round(end * RATE_HZ)] for start, end in clip.pieces]
    return np.concatenate([fade_out(fade_in(piece, fade), fade) for piece in pieces])


def _grow(
    pieces: Sequence[tuple[float, float]], words: Sequence[Word], longest: float, *, is_apart: bool
) -> tuple[list[tuple[float, float]], bool]:
    """Adds words until the clip would pass `longest`; words less than a pause apart share a piece.

    With `is_apart` the first word begins a piece. Masked words are in no piece, and the word after them begins one.
    """
    grown = list(pieces)
    for word in words:
        if is_marker(word.text):
            is_apart = True
            continue
        start, end = max(0.0, word.start - _BEFORE_SECONDS), word.end + AFTER_SECONDS
        if grown and not is_apart and start - grown[-1][1] < CLIP_PAUSE:
            longer = [*grown[:-1], (grown[-1][0], max(end, grown[-1][1]))]
        else:
            longer = [*grown, (start, end)]
        if _clip(longer).seconds > longest:
            return grown, True
        grown, is_apart = longer, False
    return grown, False


def _clip(pieces: Sequence[tuple[float, float]]) -> VoiceClip:
    return VoiceClip(pieces=tuple(pieces), seconds=sum(end - start for start, end in pieces))
