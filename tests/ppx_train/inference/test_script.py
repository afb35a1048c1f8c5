"""Scripts of the user: what can be written, what is refused, and how it is spoken."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.speech import engines
from model.errors import Code
from ppx_train.inference.script import ScriptLine, read_script, speak_script
from tests.paths import ROOT
from tests.ppx_train.inference.noise import noise
from tests.refusals import refused


def script(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "caller.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_kind_of_turn_is_read(tmp_path: Path) -> None:
    text = """
- Hello there,
  is this the clinic?
- {say: "No, Tuesday!", barge_in: 2}
- {wav: "sub/cough.wav", at: 30.5}
- say: "yes"
  after: 0
"""
    assert read_script(script(tmp_path, text)) == [
        ScriptLine(text="Hello there, is this the clinic?"),
        ScriptLine(text="No, Tuesday!", when="barge_in", seconds=2.0),
        ScriptLine(wav=tmp_path / "sub" / "cough.wav", when="at", seconds=30.5),
        ScriptLine(text="yes", when="after", seconds=0.0),
    ]


def test_the_script_of_the_guide_is_read(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide" / "inference.md").read_text("utf-8")
    (text,) = re.findall(r"```yaml\n(- Hello.*?)```", guide, re.DOTALL)
    lines = read_script(script(tmp_path, text))
    assert [line.when for line in lines] == ["after", "after", "barge_in", "at"] and lines[3].wav is not None


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("hello", "bad-record", "dash"),
        ("[]", "bad-record", "1 to 500 turns"),
        ("- yes", "bad-record", "turn 1: True is no text: put it in quotes"),
        ("- hello\n- 12", "bad-record", "turn 2: 12 is no text"),
        ("- {say: 12}", "bad-record", "12 is no text"),
        ("- {say: ' '}", "bad-record", "no text of 1 to 2000 letters"),
        ("- {after: 1}", "bad-record", "either `say` or `wav`"),
        ("- {say: a, wav: b.wav}", "bad-record", "either `say` or `wav`"),
        ("- {say: a, until: 3}", "unknown-name", "'until' is no key"),
        ("- {say: a, at: 3, after: 1}", "bad-combination", "after and at"),
        ("- {say: a, at: -1}", "bad-value", "at -1"),
        ("- {say: a, at: .nan}", "bad-value", "at nan"),
        ("- {say: a, at: yes}", "bad-value", "at True"),
        ("- {say: a, at: '3'}", "bad-value", "at '3'"),
        ("- {say: a, at: 5}\n- b\n- {say: c, at: 4}", "bad-record", "must increase"),
        ("- {wav: ../secret.wav}", "unsafe", "turn 1: wav '../secret.wav' leads out of"),
        ("- {wav: /etc/passwd}", "unsafe", "'/etc/passwd'"),
        ("- {say: a", "unreadable", "is not YAML"),
        (b"- \xff\xfe", "unreadable", "is not YAML"),
        ("- !!python/object/apply:os.system ['true']", "unreadable", "is not YAML"),
        ("- &a [x, x]\n- &b [*a, *a, *a, *a, *a, *a]\n- [*b, *b, *b, *b, *b]", "bad-record", "turn 1"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str | bytes, code: Code, named: str) -> None:
    with refused(code, named, tmp_path / "caller.yaml" if code != "unsafe" else named):
        read_script(script(tmp_path, text))


def test_a_missing_script_is_refused(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "none.yaml"):
        read_script(tmp_path / "none.yaml")


def test_texts_are_spoken_and_recordings_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "cough.wav", noise(0.5, 44100, channels=2), 44100)
    lines = [
        ScriptLine(text="Hello."),
        ScriptLine(wav=tmp_path / "cough.wav", when="at", seconds=3.0),
        ScriptLine(text="Hello."),
    ]
    first, cough, again = speak_script(lines, "espeak/en-us+m1")
    assert (cough.when, cough.seconds, cough.text, len(cough.audio_S)) == ("at", 3.0, "", 12000)
    assert 0.2 < len(first.audio_S) / 24000 < 1.5 and first.audio_S.dtype == np.float32
    assert np.array_equal(first.audio_S, again.audio_S)
    other, _, _ = speak_script(lines, "espeak/en-us+f5")
    assert not np.array_equal(other.audio_S, first.audio_S)


@pytest.mark.parametrize(
    ("voice", "code", "named"),
    [
        ("espeak/robot", "unknown-name", "espeak/robot"),
        ("dia/x", "unknown-name", "kokoro or espeak"),
        ("anna", "unknown-name", "kokoro or espeak"),
    ],
)
def test_an_unknown_voice_of_the_user_is_refused(voice: str, code: Code, named: str) -> None:
    with refused(code, f"--user-voice {voice}", named):
        speak_script([ScriptLine(text="Hello.")], voice)


def test_a_voice_without_a_text_has_no_effect_and_a_missing_recording_is_named(tmp_path: Path) -> None:
    with refused("bad-combination", "--user-voice espeak/en-us+m1"):
        speak_script([ScriptLine(wav=tmp_path / "a.wav")], "espeak/en-us+m1")
    with refused("not-found", tmp_path / "a.wav"):
        speak_script([ScriptLine(wav=tmp_path / "a.wav")], None)


def test_without_any_engine_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PPX_CACHE", str(tmp_path))
    assert not engines.is_kokoro_fetched()
    (turn,) = speak_script([ScriptLine(text="Hello.")], None)  # espeak-ng, with a warning
    assert len(turn.audio_S) and "Kokoro is not fetched" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with refused("missing-package", "espeakng_loader", "pip install 'ppx-train[tts]'"):
        speak_script([ScriptLine(text="Hello.")], None)
    with refused("missing-engine", "ppx-data fetch kokoro"):
        speak_script([ScriptLine(text="Hello.")], "kokoro/af_kore")
