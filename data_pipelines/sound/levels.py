"""Levels of audio: peaks, clipping, silence, and whether a channel sounds where its words are."""

# Shapes: C channels, S samples

from collections.abc import Sequence

import numpy as np

from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio

SILENCE_DBFS = -50.0
"""Below this peak 10 ms of audio are silent."""
FLAT_TOPS, LOUD_PEAK = 3, 0.05
"""So often, three samples in a row at the very peak are clipping. A softer peak is a few steps of 16 bits."""


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


def level_spread(x: Audio, rate: int) -> float:
    """Returns the difference in dB between the 90th and 10th percentile of the levels of 20 ms. Shape: [samples]."""
    hop = rate // 50
    power = np.square(x[: len(x) // hop * hop].astype(np.float64)).reshape(-1, hop).mean(axis=1)
    quiet, loud = np.percentile(10 * np.log10(power + 1e-12), (10, 90))
    return float(loud - quiet)


def flat_tops(x: Audio) -> int:
    """Returns how often three equal samples in a row are the highest of all, if that is more often than by chance.

    It finds clipping that was turned down afterwards, but not what was resampled or compressed since.
    """
    size = np.abs(x)
    peak = size.max(initial=0.0)
    top = size == peak
    runs = int((top[..., :-2] & top[..., 1:-1] & top[..., 2:]).sum())
    return runs if runs >= FLAT_TOPS and peak > LOUD_PEAK else 0
