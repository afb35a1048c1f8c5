"""Options of `ppx-chat` that are missing, contradict each other or have no effect."""

from pathlib import Path
from typing import Any

import pytest

from model.errors import Code
from ppx_train.cli import chat as chat_command
from ppx_train.inference.chat_settings import ROLE, ChatSettings
from tests.refusals import refused

ONE: dict[str, Any] = {"model": "m", "input_wav": Path("a.wav"), "output_wav": Path("b.wav")}
REPLAY: dict[str, Any] = {"model": "m", "replay": Path("call-settings.json")}
MANY: dict[str, Any] = {"model": "m", "say": ("Hello.",), "out": Path("chats")}


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ({**ONE, "input_wav": None}, "missing-option", "give one of --input-wav, --say, --script, --mic"),
        ({**ONE, "mic": True}, "bad-combination", "--input-wav and --mic"),
        ({**ONE, "say": ("a",)}, "bad-combination", "--input-wav and --say"),
        ({**ONE, "output_wav": None}, "missing-option", "either --output-wav"),
        ({**ONE, "out": Path("chats")}, "bad-combination", "either --output-wav"),
        ({**ONE, "model": None}, "missing-option", "give --model, or --server"),
        ({**ONE, "server": "http://x"}, "bad-combination", "--model and --server"),
        ({**ONE, "token": "t"}, "bad-combination", "--token has no effect with --model"),
        ({**ONE, "voices": ("a", "b")}, "bad-combination", "--voices has no effect with --output-wav"),
        ({**ONE, "roles": Path("r")}, "bad-combination", "--roles has no effect with --output-wav"),
        ({**ONE, "batch": 2}, "bad-combination", "--batch has no effect with --output-wav"),
        ({**ONE, "text_prompts": ("a", "b")}, "bad-combination", "--text-prompt twice"),
        ({**ONE, "user_voice": "espeak/x"}, "bad-combination", "--user-voice has no effect with --input-wav"),
        ({**ONE, "tail": -1.0}, "bad-value", "--tail -1"),
        ({**ONE, "tail": float("nan")}, "bad-value", "--tail nan"),
        ({**ONE, "seed": -2}, "bad-value", "--seed -2"),
        ({**ONE, "model": None, "server": "u", "gate": True}, "bad-combination", "--gate has no effect with --server"),
        ({**MANY, "say": (), "mic": True}, "bad-combination", "--mic has no effect with --out"),
        ({**MANY, "model": None, "server": "http://x"}, "bad-combination", "--server has no effect with --out"),
        ({**MANY, "timeline": Path("t.png")}, "bad-combination", "--timeline has no effect with --out"),
        ({**MANY, "overwrite": True}, "bad-combination", "--overwrite has no effect with --out"),
        ({**MANY, "batch": 0}, "bad-value", "--batch 0"),
        ({**MANY, "voices": ("a", "")}, "bad-value", "--voices a,"),
        ({**MANY, "voices": ("a", "b", "a")}, "bad-value", "names a twice"),
        ({**MANY, "voices": ("a",), "voice_prompt": "b"}, "bad-combination", "--voices and --voice-prompt"),
        ({**ONE, "precision": "fp8"}, "bad-value", "--precision fp8: give one of fp32, bf16, fp16, int8"),
        ({**ONE, "past_window": "keep"}, "bad-value", "--past-window keep: give one of forget, pin, refresh"),
        ({**REPLAY, "model": None}, "missing-option", "--replay without --model"),
        ({**REPLAY, "seed": 0}, "bad-combination", "--seed has no effect with --replay"),
        ({**REPLAY, "precision": "int8"}, "bad-combination", "--precision has no effect with --replay"),
        ({**REPLAY, "past_window": "pin"}, "bad-combination", "--past-window has no effect with --replay"),
        ({**REPLAY, "gate": True}, "bad-combination", "--gate has no effect with --replay"),
        ({**REPLAY, "server": "http://x"}, "bad-combination", "--server has no effect with --replay"),
        ({**REPLAY, "out": Path("chats")}, "bad-combination", "--out has no effect with --replay"),
        ({**REPLAY, "timeline": Path("t.png")}, "bad-combination", "--timeline has no effect with --replay without"),
        ({**MANY, "roles": Path("r"), "text_prompts": ("a",)}, "bad-combination", "--roles and --text-prompt"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], code: Code, named: str) -> None:
    with refused(code, named):
        ChatSettings(**given).check()


def test_a_microphone_has_no_tail() -> None:
    with refused("bad-combination", "--tail has no effect with --mic"):
        ChatSettings(model="m", mic=True, output_wav=Path("b.wav"), tail=2.0).check()


def test_defaults_depend_on_the_user() -> None:
    one, many = ChatSettings(**ONE), ChatSettings(**MANY)
    one.check()
    many.check()
    assert (one.tail_seconds, many.tail_seconds, one.text_prompt) == (0.0, 8.0, ROLE)
    assert (one.text_path, one.timeline_path) == (Path("b.json"), Path("b.png"))


def test_the_command_reads_lists() -> None:
    with refused("not-found", "no/such/file.wav"):
        words = ["--model", "m", "--input-wav", "no/such/file.wav", "--out", "chats", "--voices", "a, b", "--tail", "1"]
        chat_command.command(words)
