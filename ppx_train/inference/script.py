"""The file of `--script`: what the user says, and when, turn by turn."""

# Shapes: S samples (at 24 kHz)

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.sound.audio import Audio, read_audio, to_mono_24k
from model.errors import UserError
from model.files import inside
from ppx_train.inference.user_side import UserTurn, When

WHENS: tuple[When, ...] = ("after", "at", "barge_in")
KEYS = ("say", "wav", *WHENS)
LONGEST_SECONDS = 3600.0
MOST_TURNS = 500
MOST_LETTERS = 2000
"""Bounds of a script, far beyond any use, so that a file that is something else does not run for days."""
KOKORO, ESPEAK = "kokoro", "espeak"


@dataclass(frozen=True, kw_only=True)
class ScriptLine:
    """One turn of a script: the text to say, or the recording to play."""

    text: str = ""
    wav: Path | None = None
    when: When = "after"
    seconds: float = 1.0


def read_script(path: Path) -> list[ScriptLine]:
    """Reads a YAML list of turns.

    A turn is a text, or a mapping with `say` or `wav` (a file in the script's folder), and at most one of `after`, `at`
    and `barge_in`, in seconds.
    Raises: UserError that names the turn and what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such script", code="not-found")
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as why:
        reason = " ".join(str(why).split())
        raise UserError(
            f"{path}: is not YAML in UTF-8 ({reason:.200}): write a list of turns", code="unreadable"
        ) from why
    if not isinstance(found, list) or not 0 < len(found) <= MOST_TURNS:
        raise UserError(
            f"{path}: holds no list of 1 to {MOST_TURNS} turns: begin each with a dash, such as `- Hello there`",
            code="bad-record",
        )
    lines = [_line(path, f"{path}, turn {number}", turn) for number, turn in enumerate(found, start=1)]
    times = [line.seconds for line in lines if line.when == "at"]
    if times != sorted(times):
        raise UserError(f"{path}: the times of `at` must increase: sort the turns", code="bad-record")
    return lines


def _line(path: Path, where: str, turn: Any) -> ScriptLine:
    if isinstance(turn, str):
        turn = {"say": turn}
    if not isinstance(turn, dict):
        raise UserError(
            f"{where}: {reprlib.repr(turn)} is no text: put it in quotes, or write `say: ...`", code="bad-record"
        )
    if unknown := [key for key in turn if key not in KEYS]:
        raise UserError(f"{where}: {reprlib.repr(unknown[0])} is no key: use {', '.join(KEYS)}", code="unknown-name")
    if ("say" in turn) == ("wav" in turn):
        raise UserError(f"{where}: must have either `say` or `wav`", code="bad-record")
    content = turn.get("say", turn.get("wav"))
    if not isinstance(content, str) or not content.strip() or len(content) > MOST_LETTERS:
        raise UserError(
            f"{where}: {reprlib.repr(content)} is no text of 1 to {MOST_LETTERS} letters: put it in quotes",
            code="bad-record",
        )
    when, seconds = _when(where, turn)
    if "wav" in turn:
        return ScriptLine(wav=inside(path.parent, content, f"{where}: wav"), when=when, seconds=seconds)
    return ScriptLine(text=" ".join(content.split()), when=when, seconds=seconds)


def _when(where: str, turn: dict[str, Any]) -> tuple[When, float]:
    given = [key for key in WHENS if key in turn]
    if len(given) > 1:
        raise UserError(f"{where}: has {' and '.join(given)}: keep one of them", code="bad-combination")
    if not given:
        return "after", 1.0
    value = turn[given[0]]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST_SECONDS:
        raise UserError(
            f"{where}: {given[0]} {reprlib.repr(value)} is no number of seconds from 0 to {LONGEST_SECONDS:.0f}",
            code="bad-value",
        )
    return given[0], float(value)


def speak_script(lines: Sequence[ScriptLine], voice: str | None) -> list[UserTurn]:
    """Speaks the texts of a script and reads its recordings.

    voice: key of a voice of Kokoro or espeak-ng, such as "kokoro/af_kore"; None for one of Kokoro that never speaks in
    training data, or of espeak-ng if Kokoro was not fetched.
    Raises: UserError if there is no such voice or no engine, a text cannot be said, or a recording cannot be read.
    """
    engine: Any = None
    if any(line.wav is None for line in lines):
        engine, voice = _open(voice)
    elif voice is not None:
        raise UserError(f"--user-voice {voice}: the script holds no text to say, leave it out", code="bad-combination")
    turns, spoken = [], dict[str, Audio]()
    for line in lines:
        if line.wav is not None:
            audio_S = to_mono_24k(*read_audio(line.wav))
        else:
            if line.text not in spoken:
                speech = engine.speak(line.text, voice, seed=0)
                spoken[line.text] = to_mono_24k(speech.audio, speech.rate)
            audio_S = spoken[line.text]
        turns.append(UserTurn(text=line.text, audio_S=audio_S, when=line.when, seconds=line.seconds))
    return turns


def _open(voice: str | None) -> tuple[Any, str]:
    from data_pipelines.speech.engines import choose_engine, open_engine

    name = choose_engine("auto") if voice is None else voice.partition("/")[0]
    if name not in (KOKORO, ESPEAK):
        raise UserError(
            f"--user-voice {voice}: name a voice of {KOKORO} or {ESPEAK}, such as {KOKORO}/af_kore", code="unknown-name"
        )
    engine = open_engine(name)
    keys = [known.key for known in engine.voices()]
    if voice is None:
        return engine, next((known.key for known in engine.voices() if known.held_out), keys[0])
    if voice not in keys:
        raise UserError(f"--user-voice {voice}: no such voice, choose one of {', '.join(keys)}", code="unknown-name")
    return engine, voice
