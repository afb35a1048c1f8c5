"""Measures of a recording that is to be a voice, with what only listening finds: how much is speech, how many speak."""

# Shapes: C channels, N rows (windows of speech), D width, S samples

from collections.abc import Sequence

import numpy as np

from data_pipelines.listening.speaker import RATE_HZ, Embedder, Vector, similarity, voiced
from data_pipelines.sound.audio import Audio, loudness
from data_pipelines.sound.clip_faults import ClipFacts
from data_pipelines.sound.levels import clipped_runs, flat_tops, level_spread

WINDOW_SECONDS, HOP_SECONDS = 1.6, 0.4
"""Length and distance of the windows of speech that are compared; 1.6 s is what the embedder was trained on."""


def measure_clip(audio_CS: Audio, rate: int, embedder: Embedder | None, skip: Sequence[str] = ()) -> ClipFacts:
    """Measures a clip of at least 1 s. embedder: None if "speakers" is skipped.

    Raises: UserError if the package webrtcvad is missing and neither "speech" nor "speakers" are skipped.
    """
    mono_S = audio_CS.mean(axis=0, dtype=np.float32)
    speech = None if {"speech", "speakers"} <= set(skip) else voiced(mono_S, rate)
    return ClipFacts(
        seconds=len(mono_S) / rate,
        lufs=loudness(mono_S, rate),
        clipped=clipped_runs(audio_CS) or flat_tops(audio_CS),
        spread_db=level_spread(mono_S, rate),
        speech_share=None if speech is None or "speech" in skip else len(speech) / RATE_HZ / (len(mono_S) / rate),
        likeness=None if speech is None or embedder is None else likeness(speech, embedder),
    )


def likeness(speech: Audio, embedder: Embedder) -> float | None:
    """Returns the similarity of the two most different parts of some speech at 16 kHz; None with less than 3.2 s.

    Speech is cut into windows; a part is a stretch of windows, and the other part all windows that share no sample
    with it. Two people who speak at the same time are not found.
    """
    length, hop = (round(seconds * RATE_HZ) for seconds in (WINDOW_SECONDS, HOP_SECONDS))
    windows = [embedder.embed(speech[at : at + length]) for at in range(0, len(speech) - length + 1, hop)]
    apart = length // hop
    return stretches_apart(np.array(windows), apart) if len(windows) > apart else None


def stretches_apart(windows_ND: Vector, apart: int) -> float:
    """Returns the least similarity of a stretch of windows and all others that are at least `apart` windows from it.

    Shapes: windows_ND unit vectors, in order of time, more than `apart` of them.
    """
    sums_ND = np.concatenate((np.zeros_like(windows_ND[:1]), np.cumsum(windows_ND, axis=0)))
    count, least = len(windows_ND), 1.0
    for first in range(count):
        for last in range(first, count):
            before, after = max(0, first - apart + 1), min(count, last + apart)
            if before or after < count:
                others_D = sums_ND[before] + sums_ND[count] - sums_ND[after]
                least = min(least, similarity(sums_ND[last + 1] - sums_ND[first], others_D))
    return least
