"""Audio helpers, against signals whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.sound import audio
from tests.data_pipelines.tiny_recordings import without_length
from tests.refusals import refused


def tone(hz: float, seconds: float, rate: int, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_a_written_flac_reads_back_as_channels_by_samples(tmp_path: Path) -> None:
    stereo_CS = np.stack([tone(300, 1, 24000), tone(700, 1, 24000)])
    audio.write_flac(tmp_path / "a.flac", stereo_CS, 24000)
    back_CS, rate = audio.read_audio(tmp_path / "a.flac")
    assert rate == 24000 and back_CS.shape == (2, 24000) and back_CS.dtype == np.float32
    assert np.abs(back_CS - stereo_CS).max() < 1 / 32768
    assert soundfile.info(tmp_path / "a.flac").subtype == "PCM_16"
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    audio.write_flac(tmp_path / "a.flac", tone(300, 1, 24000), 24000)
    before = (tmp_path / "a.flac").read_bytes()
    with pytest.raises(Exception):  # noqa: B017 - whatever libsndfile says of nine channels
        audio.write_flac(tmp_path / "a.flac", np.zeros((9, 10), np.float32), 24000)
    assert (tmp_path / "a.flac").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]


@pytest.mark.parametrize("from_hz", [8000, 16000, 22050, 44100, 48000])
def test_resampling_keeps_a_tone_in_place(from_hz: int) -> None:
    got = audio.to_rate(tone(440, 1, from_hz), from_hz, 24000)
    want = tone(440, 1, 24000)
    assert abs(len(got) - len(want)) <= 1
    assert np.abs(got[2000:-2000] - want[2000 : len(got) - 2000]).max() < 1e-3


def test_resampling_two_channels_equals_resampling_each() -> None:
    x_CS = np.stack([tone(300, 0.5, 16000), tone(900, 0.5, 16000)])
    both = audio.to_rate(x_CS, 16000, 24000)
    assert both.shape[0] == 2
    np.testing.assert_allclose(both[1], audio.to_rate(x_CS[1], 16000, 24000), atol=1e-6)


def test_mono_is_the_mean_of_the_channels() -> None:
    x_CS = np.stack([tone(300, 0.5, 24000), np.zeros(12000, np.float32)])
    np.testing.assert_allclose(audio.to_mono_24k(x_CS, 24000), x_CS[0] / 2, atol=1e-7)


def test_full_scale_sine_at_1_khz_measures_minus_3_lufs() -> None:
    # By BS.1770, a 0 dBFS sine at 997 Hz in one channel reads -3.01 LKFS.
    assert audio.loudness(tone(997, 3, 48000, level=1.0), 48000) == pytest.approx(-3.01, abs=0.05)


def test_normalised_audio_measures_the_target() -> None:
    x = audio.loudness_normalise(tone(300, 2, 24000, 0.7), 24000)
    assert audio.loudness(x, 24000) == pytest.approx(-24.0, abs=0.05)


def test_silent_and_very_short_clips_cannot_be_normalised() -> None:
    with refused("bad-audio", "silent"):
        audio.loudness_normalise(np.zeros(24000, np.float32), 24000)
    with refused("bad-audio", "0.20 s is too short"):
        audio.loudness_normalise(tone(300, 0.2, 24000), 24000)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "none.wav"):
        audio.read_audio(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("not audio")
    with refused("unreadable", tmp_path / "text.wav", "convert it to WAV or FLAC"):
        audio.read_audio(tmp_path / "text.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 24000)
    with refused("bad-audio", tmp_path / "empty.wav"):
        audio.read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 24000, subtype="FLOAT")
    with refused("bad-audio", tmp_path / "nan.wav"):
        audio.read_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize("samples", [1, 4096, 100_000, 2_500_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path, samples: int, channels: int) -> None:
    x_CS = np.stack([tone(300 * (n + 1), samples / 24000, 24000) for n in range(channels)])
    audio.write_flac(tmp_path / "a.flac", x_CS, 24000)
    data = (tmp_path / "a.flac").read_bytes()
    expected_SC, _ = soundfile.read(tmp_path / "a.flac", dtype="float32", always_2d=True)
    (tmp_path / "b.flac").write_bytes(without_length(data))
    assert soundfile.info(tmp_path / "b.flac").frames != samples
    for source in (tmp_path / "b.flac", without_length(data), tmp_path / "a.flac", data):
        back_CS, rate = audio.read_audio(source)
        assert rate == 24000 and back_CS.flags.c_contiguous
        np.testing.assert_array_equal(back_CS, expected_SC.T)


@pytest.mark.parametrize("container", [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_24"), ("OGG", "VORBIS")])
def test_blocks_give_what_one_read_gives(
    tmp_path: Path, container: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1000)
    kind, subtype = container
    soundfile.write(tmp_path / "a", np.stack([tone(300, 1, 24000)] * 2, axis=1), 24000, format=kind, subtype=subtype)
    expected_SC, rate = soundfile.read(tmp_path / "a", dtype="float32", always_2d=True)
    back_CS, found = audio.read_audio(tmp_path / "a")
    np.testing.assert_array_equal(back_CS, expected_SC.T)
    assert found == rate


def test_a_dialogue_must_be_stereo_at_24_khz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "mono.wav", tone(300, 1, 24000), 24000)
    with refused("bad-audio", tmp_path / "mono.wav", "has 1 channel, a dialogue needs 2"):
        audio.require_stereo_24k(tmp_path / "mono.wav")
    soundfile.write(tmp_path / "slow.wav", np.zeros((1000, 2)), 16000)
    with refused("bad-audio", tmp_path / "slow.wav", 16000, 24000):
        audio.require_stereo_24k(tmp_path / "slow.wav")
    soundfile.write(tmp_path / "good.wav", np.zeros((1000, 2)), 24000)
    assert audio.require_stereo_24k(tmp_path / "good.wav").shape == (2, 1000)


def test_a_fade_out_ends_in_exact_silence_and_leaves_the_rest() -> None:
    x = np.ones(1000, np.float32)
    faded = audio.fade_out(x, 100)
    assert faded[-1] == 0 and (faded[:900] == 1).all() and (np.diff(faded[899:]) < 0).all()
    assert (x == 1).all()
    np.testing.assert_array_equal(audio.fade_in(x, 100), faded[::-1])
