"""`ppx-voice add`, `list`, `play`, `remove` and `check` with clips that espeak-ng speaks."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_pipelines.files import sha256_file
from data_pipelines.sound.audio import RATE_HZ, Audio, loudness_normalise
from model.mimi.codec import Mimi
from ppx_train.cli import voice
from ppx_train.voices.clip import check_length
from ppx_train.voices.voice_file import read_voice
from tests.data_pipelines.kill import kill_everywhere
from tests.ppx_train.fixtures import make_codec
from tests.ppx_train.inference.noise import CONFIG
from tests.ppx_train.voices.conftest import write
from tests.refusals import refused

has_embedder = pytest.mark.skipif(importlib.util.find_spec("resemblyzer") is None, reason="Resemblyzer is missing")
CONSENT = ("--consent", "release of 2026-03-01")


@pytest.fixture
def voices(tmp_path: Path, codec_file: Path) -> list[str]:
    """The words that say which folder and codec are meant."""
    return ["--voice-prompt-dir", str(tmp_path / "voices"), "--codec", str(codec_file)]


def add(clip: Path, voices: list[str], *more: str) -> None:
    voice.command(["add", str(clip), *voices, *CONSENT, "--skip", "speakers", *more])


@has_embedder
def test_a_good_clip_becomes_a_voice_with_its_terms_that_is_listed_checked_played_and_removed(
    clip: Path,
    voices: list[str],
    spoken: dict[str, Audio],
    codec: Mimi,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    voice.command(["add", str(clip), *voices, *CONSENT, "--label", "Anna Müller", "--licence", "CC-BY-4.0"])
    assert "voice anna of " in capsys.readouterr().out
    made = read_voice(tmp_path / "voices" / "anna.safetensors", CONFIG)
    assert made.texts() == {
        "id": "anna",
        "label": "Anna Müller",
        "licence": "CC-BY-4.0",
        "consent": "release of 2026-03-01",
        "codec": codec.fingerprint(),
        "source": sha256_file(clip),
    }
    levelled = loudness_normalise(soundfile.read(clip, dtype="float32")[0], RATE_HZ)
    codes_QP = codec.encode(torch.from_numpy(levelled)[None, None])[0]
    assert torch.equal(made.codes_QP, codes_QP)
    voice.command(["list", *voices[:2]])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "seconds", "label", "licence", "consent"]
    assert row.split("  ")[0] == "anna" and "Anna Müller  CC-BY-4.0  release of 2026-03-01" in row
    voice.command(["check", *voices])
    assert "anna.safetensors: good" in capsys.readouterr().out
    voice.command(["play", "anna", *voices, "--out", str(tmp_path / "heard.wav")])
    heard, rate = soundfile.read(tmp_path / "heard.wav", dtype="float32")
    expected = codec.decode(codes_QP[None])[0, 0].clamp(-1, 1).numpy()
    assert rate == RATE_HZ and np.abs(heard - expected).max() <= 2 / 32768
    with refused("exists", "heard.wav", "--overwrite"):
        voice.command(["play", "anna", *voices, "--out", str(tmp_path / "heard.wav")])
    voice.command(["remove", "anna", *voices[:2], "--yes"])
    assert not list((tmp_path / "voices").iterdir())
    with refused("no-data", "holds no voice"):
        voice.command(["check", *voices])


@has_embedder
def test_two_speakers_in_one_clip_are_refused(spoken: dict[str, Audio], voices: list[str], tmp_path: Path) -> None:
    man, woman = (spoken[name][: 4 * RATE_HZ] for name in ("man", "woman"))
    for name, parts in {
        "turns": (man, woman),
        "inside": (man[: 2 * RATE_HZ], woman[: 3 * RATE_HZ], man[2 * RATE_HZ :]),
    }.items():
        clip = write(tmp_path / f"{name}.wav", np.concatenate(parts))
        with refused("bad-audio", clip, "more than one person", "--skip speakers"):
            voice.command(["add", str(clip), *voices, *CONSENT])
        add(clip, voices)
    assert len(list((tmp_path / "voices").iterdir())) == 2


def noise(gain: float, seconds: float = 4.0) -> Audio:
    return (gain * np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda x: noise(0.05), ["noisy", "quiet room"]),
        (lambda x: x + noise(0.03, len(x) / RATE_HZ), ["noisy"]),
        (lambda x: np.zeros_like(x), ["silent"]),
        (lambda x: x * np.float32(0.003), ["too quiet", "closer"]),
        (lambda x: np.clip(8 * x, -1, 1), ["clipped", "lower level"]),
        (lambda x: np.concatenate([x[: 2 * RATE_HZ], np.zeros(4 * RATE_HZ, np.float32)]), ["of it is speech"]),
        (lambda x: x[: RATE_HZ // 2], ["0.5 s", "1 to 30 s"]),
        (lambda x: np.tile(x, 8), ["1 to 30 s"]),
    ],
)
def test_what_is_wrong_is_one_line_with_what_to_do(
    damage: object, said: list[str], spoken: dict[str, Audio], voices: list[str], tmp_path: Path
) -> None:
    assert callable(damage)
    clip = write(tmp_path / "a.wav", damage(spoken["man"]))
    with refused("bad-audio", clip, *said):
        add(clip, voices)
    assert not (tmp_path / "voices").exists()


def test_a_check_that_is_skipped_does_not_refuse_and_is_named(
    spoken: dict[str, Audio], voices: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write(tmp_path / "a.wav", np.clip(2 * spoken["man"] / np.abs(spoken["man"]).max(), -1, 1)[: 2 * RATE_HZ])
    add(clip, voices, "--skip", "clipping", "--name", "loud-1")
    out = capsys.readouterr().out
    assert "not checked: speakers, clipping" in out and "note: 2.0 s; models are trained with 3 to 10 s" in out
    assert (tmp_path / "voices" / "loud-1.safetensors").is_file()


def test_an_id_that_is_taken_stays_unless_asked_for(
    clip: Path, spoken: dict[str, Audio], voices: list[str], tmp_path: Path
) -> None:
    add(clip, voices)
    path = tmp_path / "voices" / "anna.safetensors"
    before = path.read_bytes()
    add(clip, voices)  # The same voice may be added again.
    other = write(tmp_path / "other.wav", spoken["woman"])
    with refused("exists", path, "--overwrite"):
        add(other, voices, "--name", "anna")
    assert path.read_bytes() == before
    add(other, voices, "--name", "anna", "--overwrite")
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["--name", "../anna"], "bad-value", "'../anna'"),
        (["--consent", " "], "bad-value", "--consent"),
        (["--label", "x" * 501], "bad-record", "label"),
        (["--skip", "everything"], "bad-value", "everything"),
        (["--model", "m"], "bad-combination", "--codec"),
        (["--codec", "none.safetensors"], "not-found", "none.safetensors"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    clip: Path, voices: list[str], tmp_path: Path, words: list[str], code: object, named: str
) -> None:
    with refused(code, named):  # type: ignore[arg-type]
        add(clip, voices, *words)
    assert not (tmp_path / "voices").exists()


def test_consent_and_a_place_must_be_given(clip: Path, voices: list[str]) -> None:
    with refused("missing-option", "--consent"):
        voice.command(["add", str(clip), *voices])
    with refused("missing-option", "--model"):
        voice.command(["add", str(clip), *CONSENT, *voices[2:]])
    with refused("missing-option", "--codec"):
        voice.command(["check", *voices[:2]])
    with refused("bad-value", "--name"):
        add(clip.rename(clip.with_name("anna müller.wav")), voices)


def test_another_codecs_voice_is_not_played_and_is_a_fault(
    clip: Path, voices: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(clip, voices)
    with refused("bad-combination", "anna", "another codec"):
        voice.command(["play", "anna", *voices[:2], "--codec", "small", "--out", str(tmp_path / "a.wav")])
    with refused("bad-record", "1 of 1 voices have faults"):
        voice.command(["check", *voices[:2], "--codec", "small"])


def test_removing_asks(
    clip: Path, voices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    add(clip, voices)
    path = tmp_path / "voices" / "anna.safetensors"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with refused("missing-option", path, "--yes"):
        voice.command(["remove", "anna", *voices[:2]])
    for answer in ("n", "", "yesterday"):
        monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
        voice.command(["remove", "anna", *voices[:2]])
        assert path.is_file()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    voice.command(["remove", "anna", *voices[:2]])
    assert not path.exists()
    with refused("unknown-name", "anna"):
        voice.command(["remove", "anna", *voices[:2], "--yes"])


def test_without_a_sound_device_a_file_is_offered(
    clip: Path, voices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCard:
        class PortAudioError(Exception):
            pass

        def play(self, *_: object, **more: object) -> None:
            raise self.PortAudioError("Error querying device -1")

    add(clip, voices)
    monkeypatch.setitem(sys.modules, "sounddevice", NoCard())  # type: ignore[arg-type]
    with refused("no-device", "device -1", "--out FILE.wav"):
        voice.command(["play", "anna", *voices])
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]
    with refused("missing-package", "sounddevice", "ppx-train[mic]"):
        voice.command(["play", "anna", *voices])


def test_a_model_folder_has_its_voices_in_a_folder_of_its_own(clip: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    make_codec(model / "mimi.safetensors")
    add(clip, ["--model", str(model)])
    assert (model / "voices" / "anna.safetensors").is_file()
    with refused("not-found", "nowhere"):
        voice.command(["list", "--model", str(tmp_path / "nowhere")])


def test_kill_9_at_any_moment_leaves_no_half_voice(
    clip: Path, spoken: dict[str, Audio], codec_file: Path, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    (before / "mimi.safetensors").write_bytes(codec_file.read_bytes())
    clip.rename(before / "anna.wav")
    words = ["add", "anna.wav", "--voice-prompt-dir", "voices", "--codec", "mimi.safetensors", *CONSENT]
    assert kill_everywhere(tmp_path, [*words, "--skip", "speakers"], main="ppx_train.cli.voice:command") > 2


@pytest.mark.parametrize("seconds", [0.9, 30.1])
def test_a_length_that_is_no_prompt_is_refused(seconds: float) -> None:
    with refused("bad-audio", "a.wav", f"{seconds} s", "3 to 10 s", "1 to 30 s"):
        check_length(seconds, "a.wav")
    for accepted in (1.0, 30.0):
        check_length(accepted, "a.wav")
