"""A stand-in for the package `sounddevice`: a microphone that hears a given sound, and a speaker that keeps all.

Both run in real time, as those of a sound card do, each in its own thread.
"""

# Shapes: S samples

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np


class Stream:
    """Calls `callback` once per block of samples, as long as the block `with` lasts."""

    def __init__(self, samplerate: float, channels: int, blocksize: int, callback: Callable[..., None]) -> None:
        self.seconds, self.shape, self.callback = blocksize / samplerate, (blocksize, channels), callback
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        started, number = time.monotonic(), 0
        while not self._stops.is_set():
            self.block(number)
            number += 1
            self._stops.wait(max(0.0, started + number * self.seconds - time.monotonic()))

    def block(self, number: int) -> None:
        raise NotImplementedError

    def __enter__(self) -> "Stream":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stops.set()
        self._thread.join()


class SoundCard:
    """What a program imports as `sounddevice`."""

    def __init__(self, user_S: np.ndarray) -> None:
        self.user_S = user_S
        self.played: list[np.ndarray] = []
        card = self

        class InputStream(Stream):
            def block(self, number: int) -> None:
                size = self.shape[0]
                said = np.resize(card.user_S, (number + 1) * size)[number * size :]
                self.callback(said[:, None].astype(np.float32), size, None, None)

        class OutputStream(Stream):
            def block(self, number: int) -> None:
                out = np.full(self.shape, np.nan, np.float32)
                self.callback(out, self.shape[0], None, None)
                card.played.append(out[:, 0].copy())

        self.InputStream: Any = InputStream
        self.OutputStream: Any = OutputStream
