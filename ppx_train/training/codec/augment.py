"""What crops go through before a codec hears them: level, telephone lines, noise, gaps, tones."""

# Shapes: S samples (at 24 kHz)

import numpy as np
import numpy.typing as npt

from model.config import SAMPLE_RATE
from ppx_train.config.codec import CodecData

Audio = npt.NDArray[np.float32]


def augment(audio_S: Audio, data: CodecData, rng: np.random.Generator) -> Audio:
    """A varied copy of a crop, [S] in -1..1; the shares of `data` say how often which change is made."""
    if rng.random() < data.tones:
        times = np.arange(len(audio_S)) / SAMPLE_RATE
        pitch = 440.0 if rng.random() < 0.5 else rng.uniform(100, 2000)
        audio_S = 0.5 * np.sin(2 * np.pi * (pitch * times + rng.random())).astype(np.float32)
    audio_S = audio_S * np.float32(10 ** (rng.uniform(-18, 6) / 20))
    if rng.random() < data.noise:
        level = np.float32(10 ** (rng.uniform(-70, -35) / 20))
        audio_S = audio_S + rng.standard_normal(len(audio_S), np.float32) * level
    if rng.random() < data.telephone:
        audio_S = telephone(audio_S)
    if rng.random() < data.gaps:
        first, last = np.sort(rng.integers(0, len(audio_S), 2))
        audio_S = audio_S.copy()
        audio_S[first:last] = 0
    return audio_S / np.float32(max(1.0, float(np.abs(audio_S).max())))


def telephone(audio_S: Audio) -> Audio:
    """200 to 3700 Hz at 8 kHz, through 8-bit mu-law (ITU-T G.711)."""
    bins = np.fft.rfft(audio_S)
    hertz = np.fft.rfftfreq(len(audio_S), 1 / SAMPLE_RATE)
    kept = np.where((hertz > 200) & (hertz < 3700), bins, 0)
    narrow = np.fft.irfft(kept[: len(audio_S) // 6 + 1], len(audio_S) // 3) / 3
    bent = np.sign(narrow) * np.log1p(255 * np.minimum(np.abs(narrow), 1)) / np.log(256)
    rounded = np.round(bent * 127) / 127
    narrow = np.sign(rounded) * np.expm1(np.abs(rounded) * np.log(256)) / 255
    wide = np.zeros(len(audio_S) // 2 + 1, np.complex128)
    wide[: len(narrow) // 2 + 1] = np.fft.rfft(narrow)
    return (np.fft.irfft(wide, len(audio_S)) * 3).astype(np.float32)
