"""SPHERE files: decoders written by others must read what our encoder writes, bit for bit."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.recordings.fisher.sphere import (
    SHORTEN_CODING,
    decode,
    mulaw_bytes,
    shorten,
    telephone,
    write_sphere,
)
from tests.refusals import refused


def every_mulaw_byte(num_samples: int, seed: int = 0) -> np.ndarray:
    """Random stereo mu-law bytes of all 256 values, as floats, which is the worst case for a coder of differences."""
    wild = np.random.default_rng(seed).integers(0, 256, (num_samples, 2)).astype(np.uint8)
    return np.asarray(
        soundfile.read(
            io.BytesIO(wild.tobytes()), samplerate=8000, channels=2, format="RAW", subtype="ULAW", dtype="float32"
        )[0]
    )


def speech_like(num_samples: int) -> np.ndarray:
    """Two tones that swell and fade: float32 [samples, 2]."""
    times = np.arange(num_samples)[:, None] / 8000
    return (0.3 * np.sin(2 * np.pi * np.array([210.0, 130.0]) * times) * np.sin(3 * times)).astype(np.float32)


@pytest.mark.parametrize("num_samples", [0, 1, 255, 256, 257, 8000])
@pytest.mark.parametrize("decoder", ["desphere", "desphere_native"])
def test_foreign_decoders_read_our_shorten_files_bit_for_bit(tmp_path: Path, num_samples: int, decoder: str) -> None:
    module = pytest.importorskip(decoder)
    samples = every_mulaw_byte(max(num_samples, 1))[:num_samples]
    write_sphere(tmp_path / "a.sph", samples, coding=SHORTEN_CODING)
    transcode = module.transcode if decoder == "desphere_native" else module.transcode_bytes
    heard, rate = soundfile.read(
        io.BytesIO(transcode((tmp_path / "a.sph").read_bytes())), dtype="float32", always_2d=True
    )
    assert rate == 8000
    np.testing.assert_array_equal(heard, samples)


@pytest.mark.parametrize("coding", ["ulaw", SHORTEN_CODING])
def test_sphere_is_read_back_exactly_whatever_its_name(tmp_path: Path, coding: str) -> None:
    if coding != "ulaw":
        pytest.importorskip("desphere_native")
    samples = speech_like(4000)
    write_sphere(tmp_path / "call.wav", samples, coding=coding)  # type: ignore[arg-type]
    heard, rate, _ = decode(tmp_path / "call.wav")
    assert rate == 8000 and heard.dtype == np.float32 and heard.shape == (4000, 2)
    np.testing.assert_array_equal(heard, telephone(samples))
    assert np.abs(heard - samples).max() < 0.01


def test_a_file_named_sph_that_is_a_wav_is_read(tmp_path: Path) -> None:
    samples = telephone(speech_like(4000))
    soundfile.write(tmp_path / "call.sph", samples, 8000, format="WAV", subtype="FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "call.sph")[0], samples)


def test_a_shorten_stream_is_whole_words_of_four_bytes_behind_its_mark(tmp_path: Path) -> None:
    """Otherwise sph2pipe, which lhotse and Kaldi use, decodes a wrong end or crashes."""
    for num_samples in range(0, 600, 7):
        path = tmp_path / "a.sph"
        write_sphere(path, speech_like(num_samples), coding=SHORTEN_CODING)
        assert (path.stat().st_size - 1024 - 5) % 4 == 0, num_samples


def test_shorten_packs_speech_smaller_than_mulaw() -> None:
    mulaw = mulaw_bytes(speech_like(8000))
    assert len(shorten(mulaw)) < 0.7 * mulaw.size


@pytest.mark.parametrize("coding", ["ulaw", SHORTEN_CODING])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_cut_file_is_an_error_that_names_it(tmp_path: Path, coding: str, keep: float) -> None:
    path = tmp_path / "fe_03_00001.sph"
    write_sphere(path, speech_like(8000), coding=coding)  # type: ignore[arg-type]
    raw = path.read_bytes()
    path.write_bytes(raw[: 1024 + int(keep * (len(raw) - 1024))])
    with refused("unreadable", path):
        decode(path)


def test_a_cut_wav_is_refused_and_one_that_was_piped_is_read(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    soundfile.write(path, speech_like(8000), 8000)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with refused("unreadable", path, "shorter than its header promises"):
        decode(path)
    path.write_bytes(raw[:4] + b"\xff\xff\xff\xff" + raw[8:])
    assert len(decode(path)[0]) == 8000


def sphere(path: Path, body: bytes, **changes: str) -> Path:
    """A SPHERE file of 16-bit PCM, whose header has fields changed or (with "") left out."""
    fields = {
        "sample_rate": "-i 8000",
        "channel_count": "-i 2",
        "sample_n_bytes": "-i 2",
        "sample_count": f"-i {len(body) // 4}",
        "sample_coding": "-s3 pcm",
        "sample_byte_format": "-s2 01",
    } | changes
    lines = ["NIST_1A", "   1024", *(f"{name} {value}" for name, value in fields.items() if value), "end_head", ""]
    path.write_bytes("\n".join(lines).encode().ljust(1024) + body)
    return path


def test_pcm_sphere_is_read_and_a_cut_one_is_refused(tmp_path: Path) -> None:
    samples = speech_like(8000)
    body = np.round(samples * 32767).astype("<i2").tobytes()
    heard, rate, decoder = decode(sphere(tmp_path / "a.sph", body))
    assert (rate, decoder) == (8000, "libsndfile") and np.abs(heard - samples).max() < 1e-4
    with refused("unreadable", "a.sph", "7500 of the 8000 samples"):
        decode(sphere(tmp_path / "a.sph", body[:30000], sample_count="-i 8000"))


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_coding": "-s27 ulaw,embedded-shorten-v2.00"},
        {"sample_coding": "-s5 mpeg4"},
        {"channel_count": "-i 0"},
        {"channel_count": "-i many"},
        {"sample_rate": "-i 0"},
        {"sample_count": "-i 99999999"},
    ],
)
def test_a_wrong_header_is_an_error_that_names_the_file(
    tmp_path: Path, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # sph2pipe takes some of these headers
    body = np.round(speech_like(2000) * 32767).astype("<i2").tobytes()
    with refused("unreadable", "b.sph"):
        decode(sphere(tmp_path / "b.sph", body, **changes))


def test_the_decoder_is_the_fast_one_and_the_others_stand_in_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("desphere_native")
    monkeypatch.setenv("PATH", str(tmp_path))  # a sph2pipe of this machine would stand in, too
    samples = telephone(speech_like(2000))
    write_sphere(tmp_path / "c.sph", samples, coding=SHORTEN_CODING)
    assert decode(tmp_path / "c.sph")[2] == "desphere_native"
    monkeypatch.setitem(sys.modules, "desphere_native", None)
    heard, _, decoder = decode(tmp_path / "c.sph")
    assert decoder == "desphere"
    np.testing.assert_array_equal(heard, samples)
    monkeypatch.setitem(sys.modules, "desphere", None)
    with refused("unreadable", "c.sph", "desphere_native", "desphere", "sph2pipe"):
        decode(tmp_path / "c.sph")
    soundfile.write(tmp_path / "answer.wav", samples, 8000, subtype="FLOAT")
    tool = tmp_path / "bin" / "sph2pipe"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "-f wav -p" ] && cat {tmp_path}/answer.wav\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    heard, _, decoder = decode(tmp_path / "c.sph")
    assert decoder == "sph2pipe"
    np.testing.assert_array_equal(heard, samples)


def test_garbage_an_empty_file_and_a_missing_file_are_errors_that_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "garbage.sph").write_bytes(b"NIST_1A\n   1024\n" + bytes(range(256)) * 8)
    (tmp_path / "text.sph").write_bytes(b"not audio")
    (tmp_path / "empty.sph").write_bytes(b"")
    for name in ("garbage", "text", "empty", "missing"):
        with refused("unreadable", f"{name}.sph", "copy it again from the disc"):
            decode(tmp_path / f"{name}.sph")


def test_mono_samples_without_a_channel_axis_and_unknown_codings_are_refused(tmp_path: Path) -> None:
    with refused("bad-audio", "[samples, channels]", "(10,)"):
        write_sphere(tmp_path / "a.sph", np.zeros(10))
    with refused("bad-value", "'pcm'", "'ulaw'"):
        write_sphere(tmp_path / "a.sph", np.zeros((10, 2)), coding="pcm")  # type: ignore[arg-type]
