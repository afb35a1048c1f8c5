"""Voices without an engine: a buzz through formants, with pauses, different for every pitch and throat."""

import numpy as np

from data_pipelines.sound.audio import Audio

RATE = 16_000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))


def voice(seconds: float, pitch: float, throat: float = 1.0, seed: int = 0, rate: int = RATE) -> Audio:
    """float32 [samples]: syllables of vowels at a wandering pitch, a pause after every fifth."""
    draw = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    total = 0
    while total < seconds * rate:
        number = len(pieces)
        length = round(draw.uniform(0.14, 0.24) * rate)
        if number % 6 == 5:
            piece = np.zeros(2 * length)
        else:
            time = np.arange(length) / rate
            phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.06 * np.sin(2 * np.pi * 4 * time + draw.uniform(0, 6)))) / rate
            piece = np.zeros(length)
            for k in range(1, int(rate / 2.2 / pitch)):
                gain = sum(1 / (1 + ((k * pitch - f * throat) / 90) ** 2) for f in VOWELS[number % 5])
                piece += (gain + 0.003) / k**0.5 * np.sin(k * phase)
            piece *= np.sin(np.pi * np.arange(length) / length) ** 0.5
        pieces.append(piece)
        total += len(piece)
    x = np.concatenate(pieces)[: round(seconds * rate)]
    return (0.3 * x / np.abs(x).max() + draw.normal(0, 1e-4, len(x))).astype(np.float32)
