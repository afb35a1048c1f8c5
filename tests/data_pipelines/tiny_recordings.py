"""Conversations of noise bursts: a burst for each word, so that channels match their words and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from data_pipelines.records.schema import Word

RATE = 24_000
Words = dict[str, list[Word]]
"""The words of "left" and "right"."""


def turns(seconds: float, *, first: float = 0.5, length: float = 3.0) -> Words:
    """Words of both sides that take turns of `length` seconds: six words of 0.3 s, then the other side."""
    words: Words = {"left": [], "right": []}
    start, n = first, 0
    while start + length <= seconds:
        side = ("left", "right")[n % 2]
        for k in range(6):
            at = round(start + 0.4 * k, 2)
            words[side].append(Word(text=f"{side[0]}{n}.{k}", start=at, end=round(at + 0.3, 2)))
        start, n = start + length, n + 1
    return words


def bursts(words: Sequence[Word], seconds: float, rate: int = RATE, seed: int = 0) -> npt.NDArray[np.float32]:
    """float32 [samples]: noise inside the words, near silence outside."""
    rng = np.random.default_rng(seed)
    audio = rng.standard_normal(round(seconds * rate)).astype(np.float32) * np.float32(1e-4)
    for word in words:
        at = slice(round(word.start * rate), round(word.end * rate))
        audio[at] = rng.uniform(-0.3, 0.3, len(audio[at]))
    return audio


def conversation(seconds: float = 40.0, rate: int = RATE, seed: int = 0) -> tuple[npt.NDArray[np.float32], Words]:
    """(float32 [2, samples], words by side)."""
    words = turns(seconds)
    audio = [bursts(words[side], seconds, rate, seed + n) for n, side in enumerate(("left", "right"))]
    return np.stack(audio), words


def write_wav(path: Path, audio: npt.NDArray[Any], rate: int = RATE) -> None:
    """[samples] or [channels, samples] as 16-bit WAV or FLAC; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, rate, subtype="PCM_16")


def without_length(data: bytes) -> bytes:
    """A FLAC as an encoder writes it that cannot seek back: the header states 0 samples, which means unknown."""
    assert data[:4] == b"fLaC" and data[4] & 127 == 0  # STREAMINFO is first; its bits 108 to 143 are the length
    return data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]
