"""The common part of engines that only make sound: the request, the checks of the answer, and the store on disk."""

# Shapes: C channels, S samples

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from data_pipelines.files import digest
from data_pipelines.sound.audio import Audio, read_audio, write_flac
from data_pipelines.speech.protocols import EngineGone
from data_pipelines.speech.tts.server import Refused
from model.errors import UserError
from model.files import whole_file

SECONDS_A_LETTER = (0.02, 0.3)
"""Speech has about 15 letters a second; outside of this range the engine did not say the text."""
EXTRA_SECONDS = 2.0
"""Silence and breath may add up to this."""
TRIES = 3
"""An unusable answer is final after this many attempts, each with another seed."""

PACKAGES = {"chatterbox": "chatterbox-tts", "dia": "'ppx-train[dia]'"}

Said = TypeVar("Said")


class Backend(Protocol):
    """Something that makes sound from text: a package in this process or a server."""

    def identity(self) -> dict[str, Any]:
        """Returns the provenance, as data_pipelines.speech.protocols.Engine.identity does."""

    def say(self, text: str, reference: bytes, seed: int, options: dict[str, float]) -> tuple[Audio, int]:
        """Returns mono float32 [samples] and the rate in Hz. `reference` is a WAV of the voice to clone, or empty."""


def open_backend(name: str, url: str, model: str | None, device: str) -> Backend:
    """Chatterbox or Dia: at a URL, or in this process. Raises UserError if it is not there."""
    if url:
        from data_pipelines.speech.tts.remote import HttpBackend

        return HttpBackend(url, name)
    from data_pipelines.speech.tts import server

    if model is not None and not Path(model).is_dir():
        raise EngineGone(
            f"--engine-model {model}: no such folder: give the one with the weights of {name}", code="not-found"
        )
    try:
        return LocalBackend(server.ENGINES[name](model, device))
    except (ImportError, PackageNotFoundError) as why:
        raise EngineGone(
            f"{name} cannot be imported ({why}): install {PACKAGES[name]} here, or give the --url of "
            f"`python scripts/tts_server.py {name}` that runs where it is installed",
            code="missing-package",
        ) from why
    except (OSError, ValueError, RuntimeError) as why:
        raise EngineGone(
            f"{name} does not start ({' '.join(str(why).split())[:200]}): give --engine-model DIR",
            code="missing-engine",
        ) from why


@dataclass
class LocalBackend:
    """An engine of data_pipelines.speech.tts.server in this process."""

    engine: Any

    def identity(self) -> dict[str, Any]:
        """Returns the provenance that the engine gives."""
        return dict(self.engine.identity())

    def say(self, text: str, reference: bytes, seed: int, options: dict[str, float]) -> tuple[Audio, int]:
        """Speaks as Backend.say does. Raises: UserError with the reason if the engine refuses or fails."""
        try:
            audio, rate = self.engine.say(text, reference, seed, options)
        except (ValueError, RuntimeError, IndexError, KeyError, AssertionError) as why:
            raise UserError(
                f"the engine failed: {type(why).__name__}: {' '.join(str(why).split())[:200]}",
                code="bad-value" if isinstance(why, Refused) else "program-failed",
            ) from why
        return audio, int(rate)


def checked(audio: Audio, rate: int, letters: int) -> Audio:
    """Returns the sound as float32 [samples] with a peak of at most 1.

    Raises: UserError with the reason if it is no mono sound, holds NaN, is silent, or far too short or long for
    its text.
    """
    audio = np.squeeze(np.asarray(audio, np.float32))
    if audio.ndim != 1 or not 8000 <= rate <= 192_000:
        raise UserError(f"the engine returned {audio.ndim} dimensions at {rate} Hz, not mono sound", code="bad-answer")
    if not len(audio) or not np.isfinite(audio).all():
        raise UserError("the engine returned NaN" if len(audio) else "the engine returned no sound", code="bad-answer")
    peak = float(np.abs(audio).max())
    if peak < 1e-3:
        raise UserError("the engine returned silence", code="bad-answer")
    if peak > 4:
        raise UserError(f"the engine returned samples up to {peak:.0f}, not -1 to 1", code="bad-answer")
    seconds, (low, high) = len(audio) / rate, SECONDS_A_LETTER
    if not low * letters <= seconds <= high * letters + EXTRA_SECONDS:
        raise UserError(f"the engine returned {seconds:.1f} s for {letters} letters", code="bad-answer")
    return audio / np.float32(max(peak, 1.0))


@dataclass
class StoredBackend:
    """A backend whose checked answers are kept on disk, so that a repeated request costs nothing.

    A file is named by a hash of the request and the engine's identity, and appears whole or not at all. The result
    is always what the file holds (16 bits), so that it does not depend on who made it.
    """

    backend: Backend
    folder: Path

    def __post_init__(self) -> None:
        self._identity = self.backend.identity()

    def identity(self) -> dict[str, Any]:
        """Returns the provenance of the backend."""
        return self._identity

    def say(
        self, text: str, reference: bytes, seed: int, options: dict[str, float], *, letters: int
    ) -> tuple[Audio, int]:
        """Speaks as Backend.say does; `letters` counts those of the text.

        Raises: UserError if the sound fails its checks.
        """
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
            with whole_file(path, shared=True) as own:  # another worker may speak the same request
                write_flac(own, audio, rate)
        samples_CS, rate = read_audio(path)
        return samples_CS[0], rate


def with_other_seeds(say: Callable[[int], Said], seed: int) -> Said:
    """Calls say(seed), and again with TRIES - 1 other seeds while it raises UserError; raises the last reason.

    An engine that samples may say a text the second time of which it lost words the first time.
    """
    for attempt in range(TRIES - 1):
        try:
            return say(seed + 7919 * attempt)
        except EngineGone:
            raise
        except UserError:
            continue
    return say(seed + 7919 * (TRIES - 1))
