"""Voice clips out of a call: which one, and its sound."""

# Shapes: S samples

import random
from collections.abc import Sequence

import numpy as np

from data_pipelines.recordings.windows import Clip
from data_pipelines.sound.audio import RATE_HZ, Audio, fade_in, fade_out

_FADE_SECONDS = 0.005


def draw_clip(clips: Sequence[Clip], rng: random.Random) -> Clip:
    """One of the clips that are about as long as the longest."""
    longest = max(clip.seconds for clip in clips)
    return rng.choice([clip for clip in clips if clip.seconds >= 0.9 * longest])


def play_clip(clip: Clip, audio_S: Audio) -> Audio:
    """The pieces of a clip one after the other, with soft edges. Longer pauses between them are gone."""
    fade = int(_FADE_SECONDS * RATE_HZ)
    pieces = [audio_S[round(start * RATE_HZ) : round(end * RATE_HZ)] for start, end in clip.pieces]
    return np.concatenate([fade_out(fade_in(piece, fade), fade) for piece in pieces])
