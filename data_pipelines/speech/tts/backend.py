"""What is common to engines that only make sound: the request, the checks of the answer, and the store on disk."""

# Shapes: C channels, S samples

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from data_pipelines.files import digest
from data_pipelines.sound.audio import Audio, read_audio, write_flac
from data_pipelines.speech.protocols import EngineGone
from model.errors import UserError

SECONDS_A_LETTER = (0.02, 0.3)
"""Speech has about 15 letters a second; outside of this range it is not the text that was said."""
EXTRA_SECONDS = 2.0
"""Silence and breath that may come on top."""
TRIES = 3
"""How often a text is said, with other seeds, before an unusable answer is final."""

PACKAGES = {"chatterbox": "chatterbox-tts", "dia": "'ppx-train[dia]'"}

Said = TypeVar("Said")


class Backend(Protocol):
    """Something that makes sound from text: a package in this process or a server."""

    def identity(self) -> dict[str, Any]:
        """As of data_pipelines.speech.protocols.Engine."""

    def say(self, text: str, reference: bytes, seed: int, options: dict[str, float]) -> tuple[Audio, int]:
        """Mono float32 [samples] and its rate. `reference` is a WAV of the voice to clone, or empty."""


def open_backend(name: str, url: str, model: str | None, device: str) -> Backend:
    """Chatterbox or Dia: at a URL, or in this process. Raises UserError if it is not there."""
    if url:
        from data_pipelines.speech.tts.remote import HttpBackend

        return HttpBackend(url, name)
    from data_pipelines.speech.tts import server

    if model is not None and not Path(model).is_dir():
        raise EngineGone(f"--model {model}: no such folder: give the one with the weights of {name}")
    try:
        return LocalBackend(server.ENGINES[name](model, device))
    except (ImportError, PackageNotFoundError) as why:
        raise EngineGone(
            f"{name} cannot be imported ({why}): install {PACKAGES[name]} here, or give the --url of "
            f"`python scripts/tts_server.py {name}` that runs where it is installed"
        ) from why
    except (OSError, ValueError, RuntimeError) as why:
        raise EngineGone(f"{name} does not start ({' '.join(str(why).split())[:200]}): give --model DIR") from why


@dataclass
class LocalBackend:
    """An engine of data_pipelines.speech.tts.server in this process."""

    engine: Any

    def identity(self) -> dict[str, Any]:
        return dict(self.engine.identity())

    def say(self, text: str, reference: bytes, seed: int, options: dict[str, float]) -> tuple[Audio, int]:
        """As Backend.say. Raises: UserError with the reason if the engine refuses or fails."""
        try:
            audio, rate = self.engine.say(text, reference, seed, options)
        except (ValueError, RuntimeError, IndexError, KeyError, AssertionError) as why:
            raise UserError(f"the engine failed: {type(why).__name__}: {' '.join(str(why).split())[:200]}") from why
        return audio, int(rate)


def checked(audio: Audio, rate: int, letters: int) -> Audio:
    """The sound as float32 [samples] with a peak of at most 1.

    Raises: UserError with the reason if it is no mono sound, holds NaN, is silent, or far too short or long for
    its text.
    """
    audio = np.squeeze(np.asarray(audio, np.float32))
    if audio.ndim != 1 or not 8000 <= rate <= 192_000:
        raise UserError(f"the engine answered {audio.ndim} dimensions at {rate} Hz, not mono sound")
    if not len(audio) or not np.isfinite(audio).all():
        raise UserError("the engine answered NaN" if len(audio) else "the engine answered no sound")
    peak = float(np.abs(audio).max())
    if peak < 1e-3:
        raise UserError("the engine answered silence")
    if peak > 4:
        raise UserError(f"the engine answered samples up to {peak:.0f}, not -1 to 1")
    seconds, (low, high) = len(audio) / rate, SECONDS_A_LETTER
    if not low * letters <= seconds <= high * letters + EXTRA_SECONDS:
        raise UserError(f"the engine answered {seconds:.1f} s for {letters} letters")
    return audio / np.float32(max(peak, 1.0))


@dataclass
class StoredBackend:
    """A backend whose checked answers are kept on disk, so that what was said once costs nothing again.

    A file is named by a hash of the request and the engine's identity, and appears whole or not at all. What is
    answered is always what the file holds (16 bits), so that it does not depend on who made it.
    """

    backend: Backend
    folder: Path

    def __post_init__(self) -> None:
        self._identity = self.backend.identity()

    def identity(self) -> dict[str, Any]:
        return self._identity

    def say(
        self, text: str, reference: bytes, seed: int, options: dict[str, float], *, letters: int
    ) -> tuple[Audio, int]:
        """As Backend.say; `letters` are those of the answer. Raises: UserError if the answer fails its checks."""
        request = {
            "engine": self._identity,
            "text": text,
            "reference": hashlib.sha256(reference).hexdigest(),
            "seed": seed,
            "options": options,
            "letters": letters,
        }
        key = digest(json.dumps(request, sort_keys=True))
        path = self.folder / key[:2] / f"{key}.flac"
        if not path.is_file():
            audio, rate = self.backend.say(text, reference, seed, options)
            audio = checked(audio, rate, letters)
            path.parent.mkdir(parents=True, exist_ok=True)
            own = path.with_name(f".{key}.{os.getpid()}.flac")  # another worker may be at the same request
            try:
                write_flac(own, audio, rate)
                os.replace(own, path)
            finally:
                own.unlink(missing_ok=True)
        samples_CS, rate = read_audio(path)
        return samples_CS[0], rate


def with_other_seeds(say: Callable[[int], Said], seed: int) -> Said:
    """say(seed), and with TRIES - 1 other seeds while it raises UserError; the last reason is raised.

    An engine that samples may well say a text the second time that it has swallowed the first time.
    """
    for attempt in range(TRIES - 1):
        try:
            return say(seed + 7919 * attempt)
        except EngineGone:
            raise
        except UserError:
            continue
    return say(seed + 7919 * (TRIES - 1))
