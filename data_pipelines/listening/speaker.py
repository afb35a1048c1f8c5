"""Who speaks: embeddings of a voice as unit vectors, whose dot product is the similarity of two voices.

`resemblyzer` are the weights of the package Resemblyzer, run by the few lines below instead of its own code, which
drags in librosa and numba; they agree to 1e-6. `wavlm:MODEL` is a WavLMForXVector of transformers. Similarities of
different embedders cannot be compared: every number must be stored with `identity()`.
On Kokoro's voices Resemblyzer gives 0.84 and more for one voice, 0.83 and less for two, with 2 s of voice or more.
"""

# Shapes: B batch, D width, L layers, S samples

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_pipelines.files import sha256_file
from data_pipelines.sound.audio import Audio, to_rate
from model.errors import UserError
from model.extras import require

RATE_HZ = 16_000
WEIGHTS_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
MIN_VOICED_SECONDS = 2.0
"""Similarities of less voice mean little: at 1.2 s those of one voice and of two overlap, at 0.7 s they are alike."""
INSTALL = "pip install --no-deps Resemblyzer==0.1.4"
"""Its requirements do not resolve (a source build of webrtcvad, a package `typing`), and are not needed."""
LEVEL_DBFS = -30.0
FFT, HOP, BANDS = 400, 160, 40
SLICE_FRAMES, SLICE_STEP, MIN_COVERAGE = 160, 77, 0.75
VAD_SAMPLES, VAD_SMOOTH, VAD_REACH = 480, 8, 7
"""Voice activity in windows of 30 ms, averaged over 8 of them, then widened by 3 on either side."""

Vector = npt.NDArray[np.float32]


class Embedder(Protocol):
    """The part of an embedder that the speaker gates need."""

    name: str
    """The name under which the limits of the gates list its similarities."""

    def embed(self, voiced: Audio) -> Vector:
        """Returns a unit vector for speech at 16 kHz without its silences."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns the provenance: name, version, weights, and whether it is deterministic."""
        ...


def open_speaker(name: str = "resemblyzer") -> Embedder:
    """Opens the embedder that `name` means: resemblyzer, or wavlm:MODEL (a folder or a repository of the hub).

    Raises: UserError naming what is missing.
    """
    if name == "resemblyzer":
        return Resemblyzer()
    if name.startswith("wavlm:"):
        return WavLM(name.partition(":")[2])
    raise UserError(f"speaker {name!r}: give resemblyzer or wavlm:MODEL, a folder or ORG/NAME", code="unknown-name")


def similarity(a: Vector, b: Vector) -> float:
    """Returns the cosine of two embeddings of one embedder."""
    return float(np.dot(a, b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))


def voiced(audio: Audio, rate: int) -> Audio:
    """Returns the speech of one channel at 16 kHz, raised to -30 dBFS if softer, without long silences: [samples].

    Pauses of up to a quarter of a second stay. Raises: UserError if the package webrtcvad is missing.
    """
    x = to_rate(audio, rate, RATE_HZ)
    rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0
    if 0 < rms < 10 ** (LEVEL_DBFS / 20):
        x = x * np.float32(10 ** (LEVEL_DBFS / 20) / rms)
    x = x[: len(x) - len(x) % VAD_SAMPLES]
    if not len(x) or rms == 0:
        return x[:0]
    vad = require("webrtcvad", extra="speaker").Vad(3)
    pcm = np.clip(np.round(x * 32767), -32768, 32767).astype("<i2").reshape(-1, VAD_SAMPLES)
    flags = np.array([vad.is_speech(window.tobytes(), RATE_HZ) for window in pcm], float)
    padded = np.concatenate([np.zeros((VAD_SMOOTH - 1) // 2), flags, np.zeros(VAD_SMOOTH // 2)])
    mean = np.convolve(padded, np.ones(VAD_SMOOTH) / VAD_SMOOTH, "valid")
    spread = np.convolve(np.pad(np.round(mean), VAD_REACH // 2), np.ones(VAD_REACH), "valid")
    return x.reshape(-1, VAD_SAMPLES)[spread > 0.5].reshape(-1)


class Resemblyzer:
    """The GE2E speaker encoder: a mel spectrogram, three LSTM layers, the mean over slices of 1.6 s.

    Source: Generalized End-to-End Loss for Speaker Verification (arXiv 1710.10467), weights of Resemblyzer 0.1.4.
    """

    name = "resemblyzer"

    def __init__(self) -> None:
        """Raises UserError if the package is missing or its weights are not the pinned ones."""
        require("webrtcvad", extra="speaker")
        spec = find_spec("resemblyzer")
        if spec is None or spec.origin is None:
            raise UserError(f"Resemblyzer is not installed: {INSTALL}", code="missing-package")
        path = Path(spec.origin).parent / "pretrained.pt"
        check_weights(path)
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        self._lstm = torch.nn.LSTM(BANDS, 256, 3, batch_first=True)
        self._linear = torch.nn.Linear(256, 256)
        for module, prefix in ((self._lstm, "lstm."), (self._linear, "linear.")):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def identity(self) -> dict[str, Any]:
        """Returns the provenance: name, version, checksum and licence of the weights."""
        return {
            "name": "resemblyzer",
            "version": version("Resemblyzer"),
            "weights_sha256": WEIGHTS_SHA256,
            "licence": "Apache-2.0",
            "deterministic": True,
        }

    @torch.inference_mode()
    def embed(self, voiced: Audio) -> Vector:
        """Returns float32 [256] of norm 1. Shape: voiced [samples] at 16 kHz, as `voiced` gives it."""
        starts = _slice_starts(len(voiced))
        padded = np.pad(voiced, (0, max(0, (starts[-1] + SLICE_FRAMES) * HOP - len(voiced))))
        mel = mel_spectrogram(torch.from_numpy(padded.astype(np.float32)))
        _, (hidden_LBD, _) = self._lstm(torch.stack([mel[i : i + SLICE_FRAMES] for i in starts]))
        each_BD = torch.nn.functional.normalize(torch.relu(self._linear(hidden_LBD[-1])), dim=1)
        return torch.nn.functional.normalize(each_BD.mean(0), dim=0).numpy()


def check_weights(path: Path) -> None:
    """Raises UserError if the file is missing or not Resemblyzer's weights as pinned."""
    found = sha256_file(path) if path.is_file() else None
    if found != WEIGHTS_SHA256:
        fault = f"sha256 is {found[:16]}..., pinned is {WEIGHTS_SHA256[:16]}..." if found else "no such file"
        raise UserError(f"{path}: {fault}: {INSTALL}", code="checksum" if found else "missing-engine")


def _slice_starts(samples: int) -> Sequence[int]:
    """First frames of the slices; the last one is dropped if the audio covers less than 75 % of it."""
    frames = -(-(samples + 1) // HOP)
    starts = range(0, max(1, frames - SLICE_FRAMES + SLICE_STEP + 1), SLICE_STEP)
    covered = (samples / HOP - starts[-1]) / SLICE_FRAMES
    return starts[:-1] if covered < MIN_COVERAGE and len(starts) > 1 else starts


def mel_spectrogram(wav_S: Tensor) -> Tensor:
    """Power mel spectrogram, not its logarithm: [samples] at 16 kHz -> [frames, 40]."""
    spectrum = torch.stft(
        wav_S, FFT, HOP, window=torch.hann_window(FFT), center=True, pad_mode="constant", return_complex=True
    )
    return (_mel_filters() @ spectrum.abs().square()).T


@cache
def _mel_filters() -> Tensor:
    """Slaney's triangles, of equal area, up to 8 kHz: [40, 201]. Linear below 1 kHz, logarithmic above."""
    top = 15 + np.log(8.0) / (np.log(6.4) / 27)  # This is 8 kHz in mel.
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    bins = np.linspace(0, RATE_HZ / 2, FFT // 2 + 1)
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles.astype(np.float32))


class WavLM:
    """A WavLMForXVector of transformers, such as microsoft/wavlm-base-plus-sv."""

    def __init__(self, model: str) -> None:
        """Raises UserError if transformers is missing or `model` is neither a folder nor a model of the hub."""
        require("webrtcvad", extra="speaker")
        transformers = require("transformers", extra="wavlm")
        self.name = f"wavlm:{model}"
        try:
            self._model: Any = transformers.WavLMForXVector.from_pretrained(model).eval()
        except (OSError, ValueError) as why:
            raise UserError(
                f"speaker wavlm:{model}: {str(why).splitlines()[0]}: give a folder or ORG/NAME", code="missing-engine"
            ) from why

    def identity(self) -> dict[str, Any]:
        """Returns the provenance: name, version, and the model's own record of what it is."""
        config = self._model.config
        return {
            "name": self.name,
            "version": f"transformers {version('transformers')}",
            "revision": getattr(config, "_commit_hash", None) or "local",
            "weights": _fingerprint(self._model),
            "deterministic": True,
        }

    @torch.inference_mode()
    def embed(self, voiced: Audio) -> Vector:
        """Returns float32 [dimensions of the model] of norm 1. Shape: voiced [samples] at 16 kHz."""
        x = torch.from_numpy(voiced.astype(np.float32))[None]
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-7)  # Its feature extractor normalises like this.
        return torch.nn.functional.normalize(self._model(x).embeddings[0], dim=0).numpy()


def _fingerprint(module: torch.nn.Module) -> str:
    """A short hash of a module's weights, which names them wherever they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
