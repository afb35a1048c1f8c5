"""The sound of a call on the wire: one stream of Ogg-Opus, or of PCM16 little-endian, mono at 24 kHz.

A stream may be cut into messages anywhere. Each direction of each call has a stream of its own.
"""

# Shapes: S samples (at 24 kHz)

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np

from model.config import SAMPLE_RATE
from model.errors import UserError
from model.extras import require
from ppx_train.inference.session import Audio

EXTRA = "serve"
CodecName = Literal["opus", "pcm16"]
SLICE_BYTES = 256
"""Bytes that are decoded at once: Opus may hide ten seconds of silence in so few."""


class SoundReader(Protocol):
    """The receiving end of a stream."""

    def read(self, data: bytes) -> Iterator[Audio]:
        """Yields the samples [S], float32, that become readable with some more bytes, piece by piece.

        Raises: UserError ("bad-audio") if the stream cannot be decoded; it is of no use from then on.
        """


class SoundWriter(Protocol):
    """The sending end of a stream."""

    def write(self, wav_S: Audio) -> bytes:
        """The bytes that follow with some more samples; they may be none yet."""


class Pcm16Reader:
    """Reads PCM16; half of a sample waits for the other half."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> Iterator[Audio]:
        """As `SoundReader.read`; nothing is undecodable."""
        data = self._rest + data
        whole = len(data) // 2 * 2
        self._rest = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(2**15)


class Pcm16Writer:
    """Writes PCM16; what is beyond full scale is clipped."""

    def write(self, wav_S: Audio) -> bytes:
        """As `SoundWriter.write`."""
        return np.clip(np.rint(wav_S * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()


class OpusReader:
    """Reads Ogg-Opus with sphn."""

    def __init__(self) -> None:
        """Raises: UserError ("missing-package") without sphn."""
        self._stream: Any = require("sphn", extra=EXTRA).OpusStreamReader(SAMPLE_RATE)

    def read(self, data: bytes) -> Iterator[Audio]:
        """As `SoundReader.read`."""
        for start in range(0, len(data), SLICE_BYTES):
            try:
                samples = self._stream.append_bytes(data[start : start + SLICE_BYTES])
            except ValueError as why:
                raise UserError(f"audio that is not Ogg-Opus ({why})", code="bad-audio") from why
            if len(samples):
                yield np.array(samples, dtype=np.float32)


class OpusWriter:
    """Writes Ogg-Opus with sphn: packets of 40 ms, each a page."""

    def __init__(self) -> None:
        """Raises: UserError ("missing-package") without sphn."""
        self._stream: Any = require("sphn", extra=EXTRA).OpusStreamWriter(SAMPLE_RATE)

    def write(self, wav_S: Audio) -> bytes:
        """As `SoundWriter.write`."""
        return bytes(self._stream.append_pcm(np.ascontiguousarray(wav_S, np.float32)))


def codecs_here() -> tuple[CodecName, ...]:
    """The codecs that are installed."""
    return ("opus", "pcm16") if find_spec("sphn") is not None else ("pcm16",)


def reader_of(codec: CodecName) -> SoundReader:
    """A new receiving end. Raises: UserError ("missing-package") if the codec is not installed."""
    return OpusReader() if codec == "opus" else Pcm16Reader()


def writer_of(codec: CodecName) -> SoundWriter:
    """A new sending end. Raises: UserError ("missing-package") if the codec is not installed."""
    return OpusWriter() if codec == "opus" else Pcm16Writer()
