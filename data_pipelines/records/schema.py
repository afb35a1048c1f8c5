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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipelines.records.typed import OpenRecord, keys_of, record
from model.errors import UserError

SIDES = ("left", "right")
"""The two channels of a dialogue, in the order of its audio."""
SPLITS = ("train", "heldout")

ID_CHARACTERS, ID_LENGTH = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-", 120
"""The characters of ids, and how long an id may be."""
# webdataset cuts a member's name at its first dot and skips names that begin with "__".
ID_PATTERN = re.compile(f"(?!__)[{ID_CHARACTERS}]{{1,{ID_LENGTH}}}")
SOURCE_PATTERN = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


@dataclass(kw_only=True, frozen=True)
class Word:
    """One spoken word as written, with its times in seconds from the start of the dialogue."""

    text: str
    start: float
    end: float


@dataclass(kw_only=True, frozen=True)
class Side:
    """One channel of a dialogue: who speaks, which words, and the role if it can be the agent."""

    speaker: str
    """The key of the voice, such as "kokoro/af_heart"."""
    words: tuple[Word, ...] = ()
    """The words of this channel only."""
    is_agent: bool = False
    role_prompt: str = ""
    """The text prompt without `<system>` tags; "" means no text prompt."""
    prompt_level: str = ""
    """How much a prompt of a recorded call says: "a", "b" or "c"; "" where there are no levels."""


@dataclass(kw_only=True, frozen=True)
class Event(OpenRecord):
    """Something that one side does beside its words, with times in seconds from the start of the dialogue."""

    kind: str
    """ "barge_in", "backchannel", "laughter", "user_silence", or a kind of the user's own."""
    side: str
    start: float
    end: float | None = None
    stop: float | None = None
    """When the side that a barge-in interrupts falls silent; None for other kinds."""

    @property
    def span(self) -> tuple[float, float]:
        """Start and end; an event without an end is a moment."""
        return self.start, self.start if self.end is None else self.end


@dataclass(kw_only=True, frozen=True)
class Fact(OpenRecord):
    """A value that a role prompt states."""

    type: str
    """ "money", "time", "date", "number", "id", "name" or "phrase"."""
    text: str
    """The value as it stands in the prompt."""
    label: str | None = None
    used: str | None = None
    """ "yes" if the dialogue says the value, "no" if nobody mentions it."""


@dataclass(kw_only=True, frozen=True)
class Probe(OpenRecord):
    """A question of the user that an evaluation can ask again."""

    kind: str
    """ "Q0" to "Q6"."""
    turn: int | None = None
    """Index of the turn of the script that asks."""
    question: str | None = None
    facts: tuple[str, ...] | None = None
    """Labels of the facts that the question is about."""
    answer: str | None = None
    """The text of the answer, or what a good answer does."""


@dataclass(kw_only=True, frozen=True)
class Dialogue:
    """A two-channel recording with all that training and reports need; JSON on disk."""

    id: str
    source: str
    split: str
    scenario: str
    seconds: float
    left: Side
    right: Side
    licence: str
    facts: tuple[Fact, ...] = ()
    probes: tuple[Probe, ...] = ()
    """The probes of the script, whose `turn` counts the script's turns."""
    events: tuple[Event, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)
    """What was measured, by the name of the gate."""

    def side(self, name: str) -> Side:
        """The side "left" or "right"."""
        return self.left if name == "left" else self.right

    @property
    def agent_sides(self) -> tuple[str, ...]:
        """The sides that may be trained as the agent: one for a role, both for a call between equals."""
        return tuple(name for name in SIDES if self.side(name).is_agent)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return _line(self)

    @staticmethod
    def from_json(text: str, where: str) -> "Dialogue":
        """Parses and checks one dialogue.

        Raises: UserError naming `where` and the field that is wrong (code "bad-record"), or as `check`.
        """
        try:
            dialogue = record(Dialogue, text)
        except ValueError as why:
            raise UserError(
                f"{where}: not a dialogue record ({why}): rebuild it with ppx-data", code="bad-record"
            ) from why
        dialogue.check(where)
        return dialogue

    def check(self, where: str) -> None:
        """Compares the words with the audio, and looks for an agent.

        Raises: UserError if word times are not increasing or lie outside the audio (code "bad-transcript"), or if no
        side is an agent or the length is no number of seconds (code "bad-record").
        """
        if not 0 < self.seconds < math.inf:
            raise UserError(f"{where}: {self.seconds:g} seconds: give the length of the audio", code="bad-record")
        if not self.agent_sides:
            raise UserError(
                f"{where}: neither side is an agent: set is_agent on the side to be trained", code="bad-record"
            )
        for name in SIDES:
            last = 0.0
            for word in self.side(name).words:
                if not (last <= word.start + 1e-6 and word.start <= word.end <= self.seconds + 0.05):
                    raise UserError(
                        f"{where}: {name} word {word.text!r} at {word.start:.2f}-{word.end:.2f} s does not fit the "
                        f"words before it or the audio of {self.seconds:.2f} s: the transcript does not match the "
                        "audio",
                        code="bad-transcript",
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
    facts: tuple[Fact, ...] = ()
    """What the prompt states."""
    probes: tuple[Probe, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return _line(self)

    @staticmethod
    def from_json(text: str, where: str) -> "Script":
        """Parses one line. Raises UserError naming `where` and the field that is wrong (code "bad-record")."""
        try:
            script = record(Script, text)
            if not ID_PATTERN.fullmatch(script.id):
                raise ValueError(f"id is {script.id!r}: use 1 to 120 letters, digits, '-' and '_'")
            if not SOURCE_PATTERN.fullmatch(script.source):
                raise ValueError(f"source is {script.source!r}: use lower-case letters, digits and '_'")
            if script.split not in SPLITS:
                raise ValueError(f"split is {script.split!r}: use one of {', '.join(SPLITS)}")
            if not any(turn.text.strip() for turn in script.turns):
                raise ValueError("nobody says a word")
        except ValueError as why:
            raise UserError(
                f"{where}: not a script line ({why}): write scripts with `ppx-data synth`", code="bad-record"
            ) from why
        return script


def _line(item: Dialogue | Script) -> str:
    return json.dumps(keys_of(item), default=keys_of, ensure_ascii=False, sort_keys=True)


def read_scripts(path: Path) -> list[Script]:
    """Reads a scripts file.

    Raises: UserError if it is missing ("not-found"), empty ("no-data") or not UTF-8 ("unreadable"), or a line is
    broken ("bad-record").
    """
    return list(iterate_scripts(path))


def iterate_scripts(path: Path) -> Iterator[Script]:
    """Like `read_scripts`, one at a time."""
    if not path.is_file():
        raise UserError(f"{path}: no such scripts file: make one with `ppx-data synth --out {path}`", code="not-found")
    empty = True
    with path.open("rb") as lines:
        for n, line in enumerate(lines, 1):
            if line.strip():
                empty = False
                try:
                    text = line.decode()
                except UnicodeDecodeError as why:
                    raise UserError(f"{path}:{n}: not UTF-8 ({why}): convert the file", code="unreadable") from why
                yield Script.from_json(text, f"{path}:{n}")
    if empty:
        raise UserError(f"{path}: holds no script: make some with `ppx-data synth --out {path}`", code="no-data")
