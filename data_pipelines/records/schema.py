"""What every pipeline stage passes on: scripts (text only) and dialogues (two channels of audio).

A script is one JSON line. A dialogue is a folder named by its id:

    ID/audio.flac         stereo, 24 kHz: left and right side
    ID/left.voice.flac    mono, 24 kHz: voice prompt of the left side (likewise right), if it can be the agent
    ID/meta.json          a Dialogue, written last and atomically: a folder without it is incomplete
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipelines.records.typed import record
from model.errors import UserError

SIDES = ("left", "right")
SPLITS = ("train", "heldout")

# webdataset cuts a member's name at its first dot and skips names that begin with "__"
ID_PATTERN = re.compile(r"(?!__)[A-Za-z0-9_-]{1,120}")
SOURCE_PATTERN = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


@dataclass(kw_only=True, frozen=True)
class Word:
    """One spoken word as written, with its times in seconds from the start of the dialogue."""

    text: str
    start: float
    end: float


@dataclass(kw_only=True, frozen=True)
class Side:
    """One channel of a dialogue.

    `role_prompt` has no `<system>` tags; "" means no text prompt. `speaker` keys the voice
    ("kokoro/af_heart"); `words` are those of this channel only.
    """

    speaker: str
    words: tuple[Word, ...] = ()
    is_agent: bool = False
    role_prompt: str = ""
    prompt_level: str = ""


@dataclass(kw_only=True, frozen=True)
class Dialogue:
    """A two-channel recording with all that training and reports need. JSON on disk."""

    id: str
    source: str
    split: str
    scenario: str
    seconds: float
    left: Side
    right: Side
    licence: str
    facts: tuple[dict[str, str], ...] = ()
    probes: tuple[dict[str, Any], ...] = ()
    """Those of the script; `turn` counts the script's turns."""
    events: tuple[dict[str, Any], ...] = ()
    """Things that happened: {"kind": "barge_in"|"backchannel"|"laughter"|..., "side", "start", "end"}."""
    provenance: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)

    def side(self, name: str) -> Side:
        return self.left if name == "left" else self.right

    @property
    def agent_sides(self) -> tuple[str, ...]:
        """The sides that may be trained as the agent: one for a role, both for a call between equals."""
        return tuple(name for name in SIDES if self.side(name).is_agent)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @staticmethod
    def from_json(text: str, where: str) -> "Dialogue":
        """Parses and checks one dialogue. Raises UserError naming `where` and the field that is wrong."""
        try:
            dialogue = record(Dialogue, text)
            _check_labels(dialogue)
        except ValueError as why:
            raise UserError(f"{where}: not a dialogue record ({why}): rebuild it with ppx-data") from why
        dialogue.check(where)
        return dialogue

    def check(self, where: str) -> None:
        """Raises UserError if word times are not increasing or lie outside the audio, or no side is an agent."""
        if not 0 < self.seconds < math.inf:
            raise UserError(f"{where}: {self.seconds:g} seconds: give the length of the audio")
        if not self.agent_sides:
            raise UserError(f"{where}: neither side is an agent: set is_agent on the side to be trained")
        for name in SIDES:
            last = 0.0
            for word in self.side(name).words:
                if not (last <= word.start + 1e-6 and word.start <= word.end <= self.seconds + 0.05):
                    raise UserError(
                        f"{where}: {name} word {word.text!r} at {word.start:.2f}-{word.end:.2f} s does not fit the "
                        f"words before it or the audio of {self.seconds:.2f} s: the transcript does not match the audio"
                    )
                last = word.start


TurnKind = Literal["normal", "barge_in", "backchannel"]


@dataclass(kw_only=True, frozen=True)
class Turn:
    """One utterance.

    A barge_in starts inside the other side's turn and stops it; a backchannel overlaps without stopping anyone.
    """

    speaker: Literal["agent", "user"]
    text: str
    kind: TurnKind = "normal"


@dataclass(kw_only=True, frozen=True)
class Script:
    """A written dialogue before it is spoken; one JSON line in a scripts file."""

    id: str
    source: str
    split: str
    scenario: str
    role_prompt: str
    turns: tuple[Turn, ...]
    facts: tuple[dict[str, str], ...] = ()
    """Typed facts the prompt states: {"type": "money|time|date|number|id|name|phrase", "text": ..., "label": ...}."""
    probes: tuple[dict[str, Any], ...] = ()
    """Questions of the user that an evaluation can ask again: {"kind": "Q0".."Q6", "turn": index of the turn that
    asks, "question": text, "facts": labels of the facts it is about, "answer": text, or what a good answer does}."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @staticmethod
    def from_json(text: str, where: str) -> "Script":
        """Parses one line. Raises UserError naming `where` and the field that is wrong."""
        try:
            script = record(Script, text)
            _check_labels(script)
            if not ID_PATTERN.fullmatch(script.id):
                raise ValueError(f"id is {script.id!r}: use 1 to 120 letters, digits, '-' and '_'")
            if not SOURCE_PATTERN.fullmatch(script.source):
                raise ValueError(f"source is {script.source!r}: use lower-case letters, digits and '_'")
            if script.split not in SPLITS:
                raise ValueError(f"split is {script.split!r}: use one of {', '.join(SPLITS)}")
            if not any(turn.text.strip() for turn in script.turns):
                raise ValueError("nobody says a word")
        except ValueError as why:
            raise UserError(f"{where}: not a script line ({why}): write scripts with `ppx-data synth`") from why
        return script


def _check_labels(item: Dialogue | Script) -> None:
    """Raises ValueError if a fact, probe or event lacks what others look for in it."""
    labels = [("facts", n, fact, key) for n, fact in enumerate(item.facts) for key in ("type", "text")]
    labels += [("probes", n, probe, "kind") for n, probe in enumerate(item.probes)]
    for name, n, entry, key in labels:
        if not isinstance(entry.get(key), str):
            raise ValueError(f"{name}[{n}].{key} is {entry.get(key)!r}, not a text")
    for n, event in enumerate(item.events if isinstance(item, Dialogue) else ()):
        for key in ("start", "end"):
            if not isinstance(event.get(key, 0.0), (int, float)):
                raise ValueError(f"events[{n}].{key} is {event[key]!r}, not a number")


def read_scripts(path: Path) -> list[Script]:
    """Reads a scripts file. Raises UserError if it is missing, empty, or a line is broken."""
    return list(iterate_scripts(path))


def iterate_scripts(path: Path) -> Iterator[Script]:
    """Like `read_scripts`, one at a time."""
    if not path.is_file():
        raise UserError(f"{path}: no such scripts file: make one with `ppx-data synth --out {path}`")
    empty = True
    with path.open("rb") as lines:
        for n, line in enumerate(lines, 1):
            if line.strip():
                empty = False
                try:
                    text = line.decode()
                except UnicodeDecodeError as why:
                    raise UserError(f"{path}:{n}: not UTF-8 ({why}): convert the file") from why
                yield Script.from_json(text, f"{path}:{n}")
    if empty:
        raise UserError(f"{path}: holds no script: make some with `ppx-data synth --out {path}`")
