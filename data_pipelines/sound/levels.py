"""Levels of audio: peaks, clipping, silence, and whether a channel sounds where its words are."""

# Shapes: C channels, S samples

from collections.abc import Sequence

import numpy as np

from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio

SILENCE_DBFS = -50.0
"""Below this peak 10 ms of audio are silent."""


def dbfs(x: Audio) -> float:
    """Returns the peak level in dBFS; -120 for silence or nothing."""
    return max(-120.0, 20 * float(np.log10(max(float(np.abs(x).max(initial=0.0)), 1e-6))))


def swap_ratio(channel: Audio, rate: int, words: Sequence[Word], pad: float = 0.05) -> float:
    """Returns the RMS of a channel inside its own words over its RMS outside them, the latter at least -80 dBFS.

    It is far above 1 if the words are those of the channel. `pad` seconds around each word count as inside.
    Shape: channel [samples].
    """
    inside = np.zeros(len(channel), bool)
    for word in words:
        inside[max(0, int((word.start - pad) * rate)) : int((word.end + pad) * rate)] = True

    def rms(x: Audio) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0

    return rms(channel[inside]) / max(rms(channel[~inside]), 1e-4)


def clipped_runs(x: Audio) -> int:
    """Returns how often three samples in a row are at or above 0.999."""
    hot = np.abs(x) >= 0.999
    return int((hot[..., :-2] & hot[..., 1:-1] & hot[..., 2:]).sum())


def longest_silence(audio_CS: Audio, rate: int) -> float:
    """Returns the longest stretch, in seconds, in which every 10 ms of both channels peaks below -50 dBFS."""
    hop = rate // 100
    num = audio_CS.shape[1] // hop
    frames = np.abs(audio_CS[:, : num * hop]).reshape(audio_CS.shape[0], num, hop).max(axis=(0, 2))
    loud = np.flatnonzero(frames > 10 ** (SILENCE_DBFS / 20))
    edges = np.concatenate(([-1], loud, [num]))
    return float((np.diff(edges) - 1).max(initial=0)) / 100
