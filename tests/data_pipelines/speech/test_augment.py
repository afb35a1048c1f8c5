"""Augmentation of the user's channel: each effect against its definition, times that stay, checked settings."""

import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio
from data_pipelines.speech.augment import (
    PRESETS,
    RANGES,
    Augmentation,
    augment,
    load_augmentation,
    looped,
    pink,
    reverberate,
    room_response,
    shifted,
    speech_rms,
    through_codec,
)
from tests.refusals import refused

RATE = 24000
WORDS = (Word(text="a", start=0.5, end=1.5), Word(text="b", start=2.0, end=2.8))


def voice(seconds: float = 4.0) -> Audio:
    """A buzz within the words, silence between them."""
    t = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 170 * k * t + k) / k for k in range(1, 12)) * (1 + 0.8 * np.sin(2 * np.pi * 5 * t))
    on = sum(((t >= w.start) & (t < w.end)).astype(float) for w in WORDS)
    return (0.12 * buzz * on).astype(np.float32)


def settings(tmp_path: Path, **sections: dict[str, Any]) -> Augmentation:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(sections))
    return load_augmentation(path)


def none() -> list[Audio]:
    raise AssertionError("no babble was asked for")


def rms(x: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


# ---- room
@pytest.mark.parametrize("rt60, drr_db", list(product([0.2, 0.6], [0.0, 10.0])))
def test_a_room_decays_by_60_db_in_its_time_and_has_its_direct_sound(rt60: float, drr_db: float) -> None:
    h = room_response(rt60, drr_db, np.random.default_rng(0)).astype(np.float64)
    assert h[0] == 1 and 10 * np.log10(h[0] ** 2 / np.sum(h[1:] ** 2)) == pytest.approx(drr_db, abs=1e-3)
    # The decay is Schroeder's backward integral, from -5 to -25 dB, extrapolated to 60 dB.
    energy = np.cumsum(h[:0:-1] ** 2)[::-1]
    level = 10 * np.log10(energy / energy[0])
    start, stop = np.argmax(level < -5), np.argmax(level < -25)
    slope = np.polyfit(np.arange(start, stop) / RATE, level[start:stop], 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.1)


def test_reverberation_is_a_convolution_that_keeps_time() -> None:
    rng = np.random.default_rng(1)
    x, h = rng.standard_normal(3000).astype(np.float32), room_response(0.1, 3.0, rng)
    np.testing.assert_allclose(reverberate(x, h), np.convolve(x, h)[:3000], atol=1e-4)


# ---- noise
def test_pink_noise_falls_3_db_an_octave() -> None:
    spectrum = np.abs(np.fft.rfft(pink(1 << 20, np.random.default_rng(0)).astype(np.float64))) ** 2
    hz = np.fft.rfftfreq(1 << 20, 1 / RATE)
    octaves = [spectrum[(hz >= f) & (hz < 2 * f)].mean() for f in (100, 200, 400, 800, 1600, 3200)]
    np.testing.assert_allclose(10 * np.diff(np.log10(octaves)), -3.01, atol=0.3)


@pytest.mark.parametrize("kind", ["white", "pink", "babble", "folder"])
def test_noise_has_its_ratio_to_the_speech(kind: str, tmp_path: Path) -> None:
    others = [np.random.default_rng(n).standard_normal(30000).astype(np.float32) * (n + 1) for n in range(6)]
    given = {"share": 1.0, "kinds": [kind], "snr_db": [12, 12]}
    if kind == "folder":
        (tmp_path / "street").mkdir()
        soundfile.write(tmp_path / "street" / "cars.wav", 0.1 * others[0][:16000, None].repeat(2, 1), 16000)
        given["folder"] = "street"
    clean = voice()
    noisy, record = augment(clean, WORDS, settings(tmp_path, noise=given), "0/a", lambda: others)
    assert 20 * np.log10(speech_rms(clean, WORDS) / rms(noisy - clean)) == pytest.approx(12, abs=0.05)
    assert record["noise"] == {"kind": kind, "snr_db": 12} | ({"file": "cars.wav"} if kind == "folder" else {})
    assert rms(noisy[: RATE // 4]) > 0  # where the user is silent too


def test_a_silent_user_still_gets_noise(tmp_path: Path) -> None:
    silent = np.zeros(2 * RATE, np.float32)
    asked = settings(tmp_path, noise={"share": 1, "kinds": ["white"], "snr_db": [20, 20]})
    noisy, _ = augment(silent, (), asked, "0/a", none)
    assert 20 * np.log10(rms(noisy)) == pytest.approx(-50, abs=0.1)


def test_short_noise_is_repeated() -> None:
    x = np.arange(5, dtype=np.float32)
    long = looped(x, 12, random.Random(0))
    assert len(long) == 12 and set(np.diff(long)) == {1.0, -4.0}


# ---- codecs
@pytest.mark.parametrize("kind", ["mulaw", "gsm", "opus", "mp3"])
def test_a_codec_changes_the_sound_and_not_its_time(kind: str) -> None:
    clean = voice()
    coded = through_codec(clean, kind)
    assert coded.shape == clean.shape and coded.dtype == np.float32
    assert 0 < rms(coded - clean) < 0.6 * rms(clean)
    cross = np.correlate(np.pad(coded, 2000), clean, "valid")
    assert abs(int(np.argmax(cross)) - 2000) <= 3  # samples, of 24000 a second


def test_the_telephone_has_no_sound_above_4_khz() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    for kind in ("mulaw", "gsm"):
        spectrum = np.abs(np.fft.rfft(through_codec(noise, kind)))
        assert spectrum[4200:].max() < 0.05 * spectrum[300:3000].mean()


@pytest.mark.parametrize("lag", [-700, -3, 0, 5, 1100])
def test_a_delay_is_found_and_taken_out(lag: int) -> None:
    x = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    late = np.concatenate([np.zeros(lag, np.float32), x]) if lag >= 0 else x[-lag:]
    back = shifted(x, late, RATE)
    np.testing.assert_array_equal(back[1000:20000], x[1000:20000])


# ---- all of it
MUCH = {
    "room": {"share": 1.0, "rt60": [0.3, 0.3], "drr_db": [6, 6]},
    "noise": {"share": 1.0, "kinds": ["pink"], "snr_db": [15, 25]},
    "codec": {"share": 1.0, "kinds": ["mulaw", "opus"]},
    "level": {"share": 1.0, "db": [-6, 6]},
}


def test_words_stay_on_their_sound_through_everything(tmp_path: Path) -> None:
    clean = voice()
    asked = settings(tmp_path, **MUCH)
    for n in range(6):
        changed, record = augment(clean, WORDS, asked, f"0/{n}", none)
        assert set(record) >= {"settings", "sha256", "room", "noise", "codec", "level"}
        cross = np.correlate(np.pad(changed, 2000), clean, "valid")
        assert abs(int(np.argmax(cross)) - 2000) <= 12  # half a millisecond, of the early reflections
        assert np.abs(changed).max() <= 0.8501 and len(changed) == len(clean)


def test_the_result_depends_on_the_key_alone(tmp_path: Path) -> None:
    asked = settings(tmp_path, **MUCH)
    one, again, other = (augment(voice(), WORDS, asked, key, none) for key in ("0/a", "0/a", "0/b"))
    np.testing.assert_array_equal(one[0], again[0])
    assert one[1] == again[1] and one[1] != other[1]


def test_a_section_changes_nothing_for_the_others(tmp_path: Path) -> None:
    alone = augment(voice(), WORDS, settings(tmp_path, level=MUCH["level"]), "0/a", none)[1]
    among = augment(voice(), WORDS, settings(tmp_path, **MUCH), "0/a", none)[1]
    assert alone["level"] == among["level"]


def test_shares_are_shares(tmp_path: Path) -> None:
    asked = settings(tmp_path, level={"share": 0.3, "db": [-6, 6]})
    done = [augment(voice(0.1), (), asked, f"0/{n}", none)[1].get("level", {}).get("db") for n in range(400)]
    given = [db for db in done if db is not None]
    assert len(given) == pytest.approx(120, abs=30) and -6 <= min(given) < -5 and 5 < max(given) <= 6


def test_a_level_that_would_clip_is_turned_down(tmp_path: Path) -> None:
    asked = settings(tmp_path, level={"share": 1.0, "db": [20, 20]})
    changed, record = augment(voice(), WORDS, asked, "0/a", none)
    assert np.abs(changed).max() == pytest.approx(0.85, abs=1e-3) and record["turned_down_db"] < 0


# ---- settings
@pytest.mark.parametrize("sections, named", [
    ({}, ["room, noise, codec, level"]),
    ({"echo": {}}, ["'echo'", "room, noise, codec, level"]),
    ({"level": {"share": 1.0}}, ["level has share", "needs db, share"]),
    ({"level": {"share": 1, "db": [0, 1], "gain": 3}}, ["level has db, gain, share", "needs db, share"]),
    ({"level": {"share": 1.5, "db": [0, 1]}}, ["level.share 1.5"]),
    ({"level": {"share": 1, "db": [3, -3]}}, ["level.db [3, -3]", "[LOW, HIGH] within -20 to 20"]),
    ({"level": {"share": 1, "db": 3}}, ["level.db 3", "[LOW, HIGH]"]),
    ({"level": {"share": 1, "db": ["low", "high"]}}, ["level.db ['low', 'high']", "[LOW, HIGH]"]),
    ({"level": 3}, ["level has 3"]),
    ({"codec": {"share": 1, "kinds": ["amr"]}}, ["codec.kinds ['amr']", "mulaw, gsm, opus, mp3"]),
    ({"codec": {"share": 1, "kinds": []}}, ["codec.kinds []"]),
    ({"noise": {"share": 1, "kinds": ["folder"], "snr_db": [1, 2]}}, ["`folder: DIR`"]),
    ({"noise": {"share": 1, "kinds": ["white"], "snr_db": [1, 2], "folder": "x"}}, ["`folder: DIR`"]),
    ({"noise": {"share": 1, "kinds": ["folder"], "snr_db": [1, 2], "folder": 3}}, ["`folder: DIR`"]),
    ({"level": {"share": 1, "db": [0, 1], 7: 8}}, ["level has share, db, 7", "needs db, share"]),
])  # fmt: skip
def test_settings_are_checked(sections: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    with refused("bad-record", tmp_path / "mine.yaml", *named):
        settings(tmp_path, **sections)


def test_a_folder_without_noise_is_refused(tmp_path: Path) -> None:
    with refused("no-data", tmp_path / "no"):
        settings(tmp_path, noise={"share": 1, "kinds": ["folder"], "snr_db": [1, 2], "folder": "no"})


def test_files_that_are_not_there_or_no_yaml_are_refused(tmp_path: Path) -> None:
    with refused("not-found", "--augment studio", "mixed, room, telephone"):
        load_augmentation("studio")
    for data in (b"room: [", b"\xff\xfe\x00"):
        (tmp_path / "x.yaml").write_bytes(data)
        with refused("unreadable", tmp_path / "x.yaml"):
            load_augmentation(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_the_presets_are_valid_and_keep_speech_recognisable(name: str) -> None:
    asked = load_augmentation(name)
    assert set(asked.sections) <= set(RANGES)
    others = [np.random.default_rng(n).standard_normal(30000).astype(np.float32) for n in range(6)]
    clean = voice()
    for n in range(8):
        changed, _ = augment(clean, WORDS, asked, f"0/{n}", lambda: others)
        inside = np.concatenate([changed[round(w.start * RATE) : round(w.end * RATE)] for w in WORDS])
        assert rms(inside) > 1.5 * rms(changed[: RATE // 3])


def test_other_noises_in_the_folder_are_other_settings(tmp_path: Path) -> None:
    given = {"share": 1.0, "kinds": ["folder"], "snr_db": [10, 10], "folder": "n"}
    (tmp_path / "n").mkdir()
    soundfile.write(tmp_path / "n" / "a.wav", np.ones(RATE) * 0.1, RATE)
    one = settings(tmp_path, noise=given)
    soundfile.write(tmp_path / "n" / "b.wav", np.ones(RATE) * 0.1, RATE)
    assert settings(tmp_path, noise=given).sha256 != one.sha256


def test_a_silent_noise_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    soundfile.write(tmp_path / "n" / "hush.wav", np.zeros(RATE), RATE)
    asked = settings(tmp_path, noise={"share": 1.0, "kinds": ["folder"], "snr_db": [10, 10], "folder": "n"})
    with refused("bad-audio", tmp_path / "n" / "hush.wav"):
        augment(voice(), WORDS, asked, "0/a", none)
