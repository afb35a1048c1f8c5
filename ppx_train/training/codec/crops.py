"""Crops of recordings for a codec: batch n of a seed is always the same, whatever ran before."""

# Shapes: B batch, S samples (at 24 kHz), T frames (of 80 ms), D width (of the recogniser's features)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import FRAME_SAMPLES, SAMPLE_RATE
from ppx_train.config.codec import CodecData
from ppx_train.training.codec.augment import augment
from ppx_train.training.codec.tracks import Track

SOUNDS_A_FRAME = 4
"""Labels of 20 ms in a frame of 80 ms."""
SOUND_SECONDS = 0.02
SPEED = (0.85, 1.2)
EDGE_SECONDS = 0.5
"""Silence that a crop may have before and after a recording: speech must be able to start and to stop."""
UNKNOWN = -1
"""The label of a sound that nobody wrote down."""


@dataclass
class CropBatch:
    """Audio [B, 1, S] in -1..1, labels [B, 4 T] int64 (UNKNOWN where there are none), features [B, T, D] or None.

    is_known_BT says in which frames the features count.
    """

    wav_B1S: Tensor
    labels: Tensor
    features_BTD: Tensor | None
    is_known_BT: Tensor

    def to(self, device: torch.device) -> "CropBatch":
        """A copy on `device`."""
        features = None if self.features_BTD is None else self.features_BTD.to(device)
        return CropBatch(self.wav_B1S.to(device), self.labels.to(device), features, self.is_known_BT.to(device))


class Crops:
    """Draws batches of augmented crops. `symbols` are the classes of the labels; others are unknown."""

    def __init__(self, recordings: Sequence[Track], data: CodecData, symbols: Sequence[str], seed: int) -> None:
        self.recordings, self.data, self.seed = recordings, data, seed
        self.samples = round(data.seconds * SAMPLE_RATE)
        self.frames = self.samples // FRAME_SAMPLES
        lengths = np.array([len(recording.audio_S) for recording in recordings], np.float64)
        self.shares = np.cumsum(lengths / lengths.sum())
        classes = {symbol: number for number, symbol in enumerate(symbols)}
        self.labels = [_grid(recording, classes) for recording in recordings]

    def __call__(self, step: int) -> CropBatch:
        """Batch number `step`."""
        rng = np.random.default_rng([self.seed, step])
        return collate([self._crop(rng) for _ in range(self.data.batch)])

    def _crop(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], Tensor | None]:
        number = min(int(np.searchsorted(self.shares, rng.random(), side="right")), len(self.recordings) - 1)
        recording = self.recordings[number]
        speed = float(rng.uniform(*SPEED)) if rng.random() < self.data.speed else 1.0
        edge = int(EDGE_SECONDS * SAMPLE_RATE)
        start = int(rng.integers(-edge, max(1, len(recording.audio_S) + edge - int(self.samples * speed))))
        return self.cut(recording, self.labels[number], start, speed, rng)

    def cut(
        self,
        recording: Track,
        labels: npt.NDArray[np.int64] | None,
        start: int,
        speed: float,
        rng: np.random.Generator | None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], Tensor | None]:
        """Audio [S], labels [4 T] and features [T, D] from sample `start` on; `rng` None leaves the audio as it is."""
        needed = int(np.ceil(self.samples * speed)) + 1
        piece = np.zeros(needed, np.float32)
        inside = recording.audio_S[max(0, start) : max(0, start + needed)]
        piece[max(0, -start) : max(0, -start) + len(inside)] = inside / np.float32(32768)
        if speed == 1.0:
            audio_S = piece[: self.samples]
        else:
            audio_S = np.interp(np.arange(self.samples) * speed, np.arange(needed), piece).astype(np.float32)
        # Where each 20 ms of the crop lies in the recording, by its middle.
        times = start / SAMPLE_RATE + (np.arange(self.frames * SOUNDS_A_FRAME) + 0.5) * SOUND_SECONDS * speed
        places = np.floor(times / SOUND_SECONDS).astype(np.int64)
        marks = _at(labels, places, UNKNOWN)
        features_TD = None
        if recording.features_TD is not None:
            rows = _at(recording.features_TD, places, 0).astype(np.float32)
            features_TD = torch.from_numpy(rows).view(self.frames, SOUNDS_A_FRAME, -1).mean(1)
            is_known = ((places >= 0) & (places < len(recording.features_TD))).reshape(self.frames, -1).all(1)
            features_TD = torch.cat([features_TD, torch.from_numpy(is_known)[:, None].float()], dim=1)
        return augment(audio_S, self.data, rng) if rng is not None else audio_S, marks, features_TD

    def fixed(self, count: int) -> Iterator[CropBatch]:
        """`count` crops spread evenly over the recordings, without augmentation, in batches."""
        chosen = np.linspace(0, len(self.recordings) - 1, count).round().astype(int)
        crops = [self.cut(self.recordings[n], self.labels[n], 0, 1.0, None) for n in chosen]
        for at in range(0, len(crops), self.data.batch):
            yield collate(crops[at : at + self.data.batch])


def collate(crops: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], Tensor | None]]) -> CropBatch:
    """One batch of crops; the last column of features says whether a frame's are known."""
    wav_B1S = torch.from_numpy(np.stack([audio for audio, _, _ in crops]))[:, None]
    labels = torch.from_numpy(np.stack([marks for _, marks, _ in crops]))
    given = [features for _, _, features in crops if features is not None]
    if not given:
        return CropBatch(wav_B1S, labels, None, torch.zeros(len(crops), labels.shape[1] // SOUNDS_A_FRAME))
    both = torch.stack([torch.zeros_like(given[0]) if features is None else features for _, _, features in crops])
    return CropBatch(wav_B1S, labels, both[..., :-1], both[..., -1])


def _grid(recording: Track, classes: dict[str, int]) -> npt.NDArray[np.int64] | None:
    """The class of each 20 ms of a recording, by its middle."""
    if not recording.sounds:
        return None
    places = round(len(recording.audio_S) / SAMPLE_RATE / SOUND_SECONDS)
    grid = np.full(places, UNKNOWN, np.int64)
    for start, end, symbol in recording.sounds:
        first, last = (int(np.ceil(seconds / SOUND_SECONDS - 0.5)) for seconds in (start, end))
        grid[max(0, first) : max(0, last)] = classes.get(symbol, UNKNOWN)
    return grid


def _at(values: npt.NDArray[Any] | None, places: npt.NDArray[np.int64], missing: int) -> npt.NDArray[Any]:
    """Rows of `values` at some places; `missing` outside."""
    if values is None or not len(values):
        return np.full(len(places), missing, np.int64)
    inside = (places >= 0) & (places < len(values))
    found = values[np.clip(places, 0, len(values) - 1)]
    found[~inside] = missing
    return found
