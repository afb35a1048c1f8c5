"""Streams of sound that are cut anywhere, damaged, or hide more than they seem to."""

import sys

import numpy as np
import pytest

from model.config import FRAME_SAMPLES
from model.errors import UserError
from ppx_train.inference.session import Audio
from ppx_train.serve.opus import CodecName, OpusReader, Pcm16Reader, Pcm16Writer, reader_of, writer_of
from tests.refusals import refused

needs_opus = pytest.mark.skipif(sys.version_info < (3, 11), reason="sphn needs Python 3.11")


def tone(frames: int) -> Audio:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(frames * FRAME_SAMPLES) / 24000)).astype(np.float32)


def stream(codec: CodecName, wav_S: Audio) -> bytes:
    writer = writer_of(codec)
    return b"".join(writer.write(frame) for frame in wav_S.reshape(-1, FRAME_SAMPLES))


def read(codec: CodecName, data: bytes, size: int) -> Audio:
    reader = reader_of(codec)
    pieces = [piece for start in range(0, len(data), size) for piece in reader.read(data[start : start + size])]
    return np.concatenate(pieces)


@pytest.mark.parametrize("codec", ["pcm16", pytest.param("opus", marks=needs_opus)])
def test_a_stream_may_be_cut_anywhere(codec: CodecName) -> None:
    if codec == "opus":
        pytest.importorskip("sphn")
    sent = tone(25)
    data = stream(codec, sent)
    whole = read(codec, data, len(data))
    assert len(whole) == len(sent) and abs(np.sqrt((whole[4800:] ** 2).mean()) - 0.5 / np.sqrt(2)) < 0.02
    for size in (1, 333, 4000):
        np.testing.assert_array_equal(read(codec, data, size), whole)


def test_pcm16_is_exact_and_clips() -> None:
    values = np.array([-(2**15), -1, 0, 1, 2**15 - 1], np.int16)
    read_S = np.concatenate(list(Pcm16Reader().read(values.astype("<i2").tobytes())))
    assert Pcm16Writer().write(read_S) == values.astype("<i2").tobytes()
    assert Pcm16Writer().write(np.array([3.0, -3.0], np.float32)) == np.array([2**15 - 1, -(2**15)], "<i2").tobytes()


@needs_opus
def test_garbage_is_refused_also_in_the_middle() -> None:
    pytest.importorskip("sphn")
    with refused("bad-audio", "not Ogg-Opus"):
        list(OpusReader().read(bytes(3000)))
    reader = reader_of("opus")
    list(reader.read(stream("opus", tone(5))))
    with refused("bad-audio"):
        list(reader.read(b"x" * 300))


@needs_opus
def test_long_messages_come_out_in_pieces() -> None:
    pytest.importorskip("sphn")
    pieces = list(OpusReader().read(stream("opus", np.zeros(400 * FRAME_SAMPLES, np.float32))))
    assert len(pieces) > 4 and sum(map(len, pieces)) == 400 * FRAME_SAMPLES


def test_opus_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sphn", None)
    with pytest.raises(UserError, match=r"ppx-train\[serve\]"):
        reader_of("opus")
