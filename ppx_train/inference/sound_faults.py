"""Sound that is no speech: at a constant level, or with the spectrum of noise.

Measured on 7 synthetic voices and 3 recordings (2 for the level): within 2 s the level of speech varies by 3 dB or more
(standard deviation), that of white noise or a tone by 0.5 dB or less; the median flatness of speech is 0.04 or less,
that of white noise 0.76 or more. Through our small Mimi speech has 0.02 or less (21 utterances of 8 voices that it has
not heard), and white noise 0.26 (-14 dBFS) to 0.44 (-34 dBFS).
"""

# Shapes: S samples (at 24 kHz), T frames

import itertools

import numpy as np

from model.config import FRAME_SAMPLES
from ppx_train.inference.session import Audio
from ppx_train.inference.speaking import Frames, frames_of, levels

CLIPPED_LEVEL = 0.999
"""Samples from here on are clipped."""
STEADY_SECONDS, STEADY_DB = 2.0, 1.5
"""Sound of this length whose frames' levels deviate by less than this, in dB, is steady."""
BAND_BINS = 8
"""Bins of the spectrum of a frame that are one band, 100 Hz wide: single bins of noise are far from flat."""
FLAT_SECONDS = 1.0
"""The least sound whose flatness is worth a number."""


def longest_steady(audio_S: Audio, sounds_T: Frames) -> int:
    """Returns the frames of the longest sound that keeps its level; 0 if none does for STEADY_SECONDS."""
    window, levels_T = frames_of(STEADY_SECONDS), levels(audio_S)
    if len(levels_T) < window:
        return 0
    views = np.lib.stride_tricks.sliding_window_view
    is_steady_T = views(sounds_T, window).all(axis=1) & (views(levels_T, window).std(axis=1) < STEADY_DB)
    groups = [len(list(group)) for is_steady, group in itertools.groupby(is_steady_T) if is_steady]
    return max(groups, default=1 - window) - 1 + window


def flatness(audio_S: Audio, sounds_T: Frames) -> float:
    """Returns the median spectral flatness of the frames that sound; 0.0 for less than FLAT_SECONDS of sound.

    It is the geometric over the arithmetic mean of the power in bands of 100 Hz: 1 for white noise, 0 for a tone.
    """
    if sounds_T.sum() < frames_of(FLAT_SECONDS):
        return 0.0
    frames_TS = np.pad(audio_S.astype(np.float64), (0, -len(audio_S) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
    bins = np.abs(np.fft.rfft(frames_TS[sounds_T] * np.hanning(FRAME_SAMPLES), axis=1)[:, :-1]) ** 2 + 1e-12
    bands = bins.reshape(len(bins), -1, BAND_BINS).mean(axis=2)
    return float(np.median(np.exp(np.log(bands).mean(axis=1)) / bands.mean(axis=1)))
