"""Dialogue folders on disk: finding them, and reading a record with the sidecars that later stages put beside it.

A sidecar holds what a later stage learns about a dialogue; meta.json itself is never rewritten. There are two:

    roles.json    role prompts for the sides of a recorded call: `Roles`
    gates.json    what the gates measured, and their reasons to leave the dialogue out: `Gates`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from data_pipelines.files import digest, write_json
from data_pipelines.records.provenance import GATE_ENGINES, GATE_LIMITS
from data_pipelines.records.schema import ID_PATTERN, SIDES, SOURCE_PATTERN, SPLITS, Dialogue
from data_pipelines.records.typed import record_of
from model.errors import UserError

T = TypeVar("T")

ROLES, GATES = "roles.json", "gates.json"
SIDECARS = (ROLES, GATES)


@dataclass(kw_only=True, frozen=True)
class Role:
    """The role prompt of one side and its level."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "ignore", "strict": True}
    prompt: str
    level: str


@dataclass(kw_only=True, frozen=True)
class Roles:
    """The content of roles.json; keys that no field names are ignored."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "ignore", "strict": True}
    format: int = 1
    left: Role | None = None
    right: Role | None = None
    """Only agent sides have a role. Without one a side keeps the prompt of its record."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Sides that must not be the agent, with the reasons."""
    provenance: Any = None
    """How the roles were made, which is only stored and shown."""

    def side(self, name: str) -> Role | None:
        """The role of the side "left" or "right"."""
        return self.left if name == "left" else self.right

    def write(self, folder: Path) -> None:
        """Writes ID/roles.json; what is empty is left out."""
        write_json(folder / ROLES, {name: value for name, value in asdict(self).items() if value not in (None, {})})


@dataclass(kw_only=True, frozen=True)
class Gates:
    """The content of gates.json."""

    format: int = 1
    values: dict[str, float] = field(default_factory=dict)
    """What was measured, by the name of the gate."""
    rejected: tuple[str, ...] = ()
    """Reasons to leave the dialogue out; without any it passes."""
    limits: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Any] = field(default_factory=dict)


def find_dialogues(folders: Sequence[Path]) -> list[Path]:
    """All dialogue folders directly below `folders`, by id; unfinished ones (no meta.json) included.

    Raises: UserError if a folder is missing ("not-found") or holds no dialogue ("no-data"), or if two dialogues have
    the same id ("bad-combination").
    """
    by_id: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder: make dialogues with `ppx-data speak` or `ppx-data fisher`", code="not-found"
            )
        inside = [d for d in sorted(folder.iterdir()) if (d / "meta.json").is_file() or (d / "audio.flac").is_file()]
        if not inside:
            raise UserError(
                f"{folder}: holds no dialogue folder (ID/meta.json, ID/audio.flac): give their parent", code="no-data"
            )
        for dialogue in inside:
            if dialogue.name in by_id:
                raise UserError(
                    f"dialogue {dialogue.name} is in {by_id[dialogue.name].parent} and in {folder}: "
                    "give each folder once; where both are right, make one of them again with other names "
                    "(synth --seed, import --source, standin --first-call)",
                    code="bad-combination",
                )
            by_id[dialogue.name] = dialogue
    return [by_id[name] for name in sorted(by_id)]


def load_dialogue(folder: Path, sidecars: Sequence[str] = SIDECARS) -> Dialogue:
    """Reads ID/meta.json and merges into it what `sidecars` say.

    Raises: UserError if the record is missing ("not-found"), it or a sidecar is broken ("unreadable", "bad-record",
    "bad-transcript"), it states no licence ("licence"), or all sides are rejected ("no-data").
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(f"{folder}: unfinished (no meta.json): finish the stage that made it", code="not-found")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as why:
        raise UserError(f"{path}: not a dialogue record ({why}): make it again", code="unreadable") from why
    dialogue = Dialogue.from_json(text, str(path))
    _check_names(folder, dialogue)
    if ROLES in sidecars:
        dialogue = _with_roles(folder, dialogue)
    return _with_gates(folder, dialogue) if GATES in sidecars else dialogue


def rejections(folder: Path) -> list[str]:
    """Why the gates reject a dialogue; [] if they pass it or have not judged it.

    Raises: UserError for a broken sidecar ("unreadable", "bad-record").
    """
    gates = read_gates(folder)
    return list(gates.rejected) if gates else []


def read_roles(folder: Path) -> Roles | None:
    """The roles of a dialogue; None if it has no roles.json.

    Raises: UserError for a broken sidecar ("unreadable", "bad-record").
    """
    return _read_sidecar(folder / ROLES, Roles, "prompts")


def read_gates(folder: Path) -> Gates | None:
    """What the gates found of a dialogue; None if it has no gates.json.

    Raises: UserError for a broken sidecar ("unreadable", "bad-record").
    """
    return _read_sidecar(folder / GATES, Gates, "gate")


def _read_sidecar(path: Path, kind: type[T], verb: str) -> T | None:
    if not path.is_file():
        return None
    fix = f"delete it and run `ppx-data {verb}` again"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as why:
        raise UserError(f"{path}: not JSON ({why}): {fix}", code="unreadable") from why
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path}: not a sidecar of format 1: {fix}", code="unreadable")
    try:
        return record_of(kind, content)
    except ValueError as why:
        raise UserError(f"{path}: not a record of {path.stem} ({why}): {fix}", code="bad-record") from why


def _with_roles(folder: Path, dialogue: Dialogue) -> Dialogue:
    roles = read_roles(folder)
    if roles is None:
        return dialogue
    for name in SIDES:
        if role := roles.side(name):
            if not dialogue.side(name).is_agent:
                raise UserError(
                    f"{folder / ROLES}: the {name} side has a role but is no agent: "
                    "delete it and run `ppx-data prompts` again",
                    code="bad-record",
                )
            dialogue = _with_side(dialogue, name, role_prompt=role.prompt, prompt_level=role.level)
    for name in roles.rejected.keys() & set(SIDES):
        dialogue = _with_side(dialogue, name, is_agent=False, role_prompt="", prompt_level="")
    if not dialogue.agent_sides:
        reasons = "; ".join(sorted(roles.rejected.values()))
        raise UserError(f"{folder}: no side has a role prompt ({reasons})", code="no-data")
    if roles.provenance:
        dialogue = replace(dialogue, provenance=dialogue.provenance | {"roles": roles.provenance})
    return dialogue


def _with_side(dialogue: Dialogue, name: str, **changes: Any) -> Dialogue:
    side = replace(dialogue.side(name), **changes)
    return replace(dialogue, left=side) if name == "left" else replace(dialogue, right=side)


def _with_gates(folder: Path, dialogue: Dialogue) -> Dialogue:
    gates = read_gates(folder)
    if gates is None:
        return dialogue
    noted = {GATE_ENGINES: gates.engines, GATE_LIMITS: gates.limits}
    return replace(dialogue, gates=dialogue.gates | gates.values, provenance=dialogue.provenance | noted)


def _check_names(folder: Path, dialogue: Dialogue) -> None:
    if dialogue.id != folder.name or not ID_PATTERN.fullmatch(dialogue.id):
        raise UserError(
            f"{folder}: id {dialogue.id!r} must be the folder's name, of letters, digits, '-' and '_' only",
            code="bad-record",
        )
    if dialogue.split not in SPLITS:
        raise UserError(f"{folder}: split {dialogue.split!r}: use one of {', '.join(SPLITS)}", code="bad-record")
    if not SOURCE_PATTERN.fullmatch(dialogue.source):
        raise UserError(
            f"{folder}: source {dialogue.source!r}: use lower-case letters, digits and '_'", code="bad-record"
        )
    if not dialogue.licence.strip():
        raise UserError(f"{folder}: no licence: say under which terms it may be used", code="licence")


def signature(folder: Path, sidecars: Sequence[str] = SIDECARS) -> str:
    """Identity of a dialogue folder: its record with sidecars, and names and sizes of its audio files.

    The audio itself is not hashed, because that would take hours.
    """
    texts = [folder / name for name in ("meta.json", *sidecars)]
    flacs = sorted(folder.glob("*.flac"))
    lines = [path.read_text("utf-8", errors="replace") if path.is_file() else "" for path in texts]
    return digest(*lines, *(f"{f.name} {f.stat().st_size}" for f in flacs))
