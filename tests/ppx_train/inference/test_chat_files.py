"""`ppx-chat`: WAV to WAV, with text and picture."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import save_file

from model.errors import Code, UserError
from ppx_train.cli import chat as chat_command
from ppx_train.inference.loading import load_release
from tests.ppx_train.inference.noise import noise
from tests.refusals import refused


def words(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    """A command line for a user's file of 1.5 s, which is made if it is not there."""
    user = tmp_path / "user.wav"
    if not user.exists():
        soundfile.write(user, noise(1.5), 24000)
    fixed = ["--model", str(folder), "--input-wav", str(user), "--output-wav", str(tmp_path / "out.wav")]
    return [*fixed, "--device", "cpu", *more]


LONG_ROLE = "You tell long tales of the sea. " * 40
"""More than half of the small model's window."""


def test_the_command_writes_wav_text_and_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "user.wav", noise(1.5, 44100, channels=2), 44100)
    soundfile.write(tmp_path / "voice.flac", noise(3.0, 16000, seed=1), 16000)
    more = ["--voice-prompt", str(tmp_path / "voice.flac"), "--text-prompt", "It is april.", "--seed", "3"]
    chat_command.command(words(folder, tmp_path, *more))
    audio, rate = soundfile.read(tmp_path / "out.wav")
    assert (rate, audio.shape) == (24000, (36000,))
    pieces = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert len(pieces) == 19 and all(isinstance(piece, str) for piece in pieces)
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    role_frames = len(load_release(folder).tokenizer.encode("<system> It is april. <system>"))
    assert f"prompt of {(38 + 6 + role_frames + 6) * 0.08:.1f} s" in printed
    assert "x real time" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.json", "out.png", "out.wav", "user.wav", "voice.flac",
    ]  # fmt: skip


def test_existing_outputs_stay_unless_overwriting_is_asked_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("mine")
    with refused("exists", tmp_path / "out.json", "--overwrite"):
        chat_command.command(words(folder, tmp_path))
    assert not (tmp_path / "out.wav").exists() and (tmp_path / "out.json").read_text() == "mine"
    chat_command.command(words(folder, tmp_path, "--overwrite", "--voice-prompt", "none"))
    assert (tmp_path / "out.json").read_text() != "mine"


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        (["--voice-prompt", "NATF0"], "unknown-name", "voice NATF0"),
        (["--voice-prompt", "NATF0.pt"], "unreadable", "`ppx-voice convert NATF0.pt --model MODEL --out NATF0.safete"),
        (["--voice-prompt-dir", "voices"], "missing-option", "--voice-prompt-dir voices without --voice-prompt"),
        (["--seed", "-2"], "bad-value", "--seed -2"),
        (["--device", "fpga"], "no-device", "'fpga'"),
        (["--model", "no/such/folder"], "not-found", "no/such/folder"),
        (["--output-wav", "no_folder/out.wav"], "not-found", "no_folder/out.wav"),
        (["--timeline", "out.json", "--output-text", "out.json"], "bad-combination", "out.json"),
        (["--revision", "main"], "bad-combination", "revision main"),
        (["--topk", "4"], "bad-value", "--topk"),
        (["--text-prompt", LONG_ROLE], "bad-combination", "of 1500"),
        (["--precision", "int8"], "bad-combination", "int8 with temporal"),
        (["--past-window", "pin", "--text-prompt", ""], "bad-combination", "no effect without voice and role"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    folder: Path, tmp_path: Path, more: list[str], code: Code, named: str
) -> None:
    with refused(code, named):
        chat_command.command(words(folder, tmp_path, *more))


def test_precision_and_past_window_are_those_of_a_server(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "user.wav", noise(2), 24000)
    voice = tmp_path / "anna.safetensors"
    save_file({"codes": torch.randint(64, (8, 6), dtype=torch.int32)}, voice)
    made = {}
    for precision in ("fp32", "bf16"):
        fixed = ["--output-wav", str(tmp_path / f"{precision}.wav"), "--voice-prompt", str(voice), "--text-prompt", ""]
        chat_command.command(words(folder, tmp_path, *fixed, "--seed", "3", "--precision", precision))
        made[precision] = (tmp_path / f"{precision}.wav").read_bytes()
    assert made["fp32"] != made["bf16"]
    # Only a prompt that may be forgotten can be so long.
    assert chat_command.command(words(folder, tmp_path, "--text-prompt", LONG_ROLE, "--past-window", "forget")) == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--input-wav", "none.wav"], "none.wav"), (["--temp-audio", "0"], "audio_temperature=0.0")],
)
def test_what_the_audio_reader_and_the_sampler_refuse_is_one_line(
    folder: Path, tmp_path: Path, more: list[str], named: str
) -> None:
    with pytest.raises(UserError, match=named) as why:
        chat_command.command(words(folder, tmp_path, *more))
    assert "\n" not in str(why.value)


def test_the_input_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    line = words(folder, tmp_path, "--output-wav", str(tmp_path / "user.wav"), "--overwrite")
    with refused("bad-combination", tmp_path / "user.wav", "is the input"):
        chat_command.command(line)
