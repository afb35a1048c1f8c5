"""Dialogue folders on disk: finding them, and reading a record with what later stages have put beside it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipelines.files import digest
from data_pipelines.records.provenance import GATE_ENGINES, GATE_LIMITS
from data_pipelines.records.schema import ID_PATTERN, SIDES, SOURCE_PATTERN, SPLITS, Dialogue
from data_pipelines.records.typed import record
from model.errors import UserError

ROLES, GATES = "roles.json", "gates.json"
SIDECARS = (ROLES, GATES)
"""What later stages learn about a dialogue, beside its meta.json, which they never rewrite.

roles.json: {"format": 1, "left": {"prompt", "level"}, "right": {...}, "provenance": {...}}, agent sides only;
  "rejected": {side: reason} names sides that must not be the agent.
gates.json: values of the gates, reasons to leave the dialogue out, limits and engines, as `GatesRecord` below says.
"""


def find_dialogues(folders: Sequence[Path]) -> list[Path]:
    """All dialogue folders directly below `folders`, by id; unfinished ones (no meta.json) included.

    Raises: UserError if a folder is missing or holds no dialogue, or if two dialogues have the same id.
    """
    by_id: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder: make dialogues with `ppx-data speak` or `ppx-data fisher`")
        inside = [d for d in sorted(folder.iterdir()) if (d / "meta.json").is_file() or (d / "audio.flac").is_file()]
        if not inside:
            raise UserError(f"{folder}: holds no dialogue folder (ID/meta.json, ID/audio.flac): give their parent")
        for dialogue in inside:
            if dialogue.name in by_id:
                raise UserError(
                    f"dialogue {dialogue.name} is in {by_id[dialogue.name].parent} and in {folder}: "
                    "give each folder once, or write one of them with another seed"
                )
            by_id[dialogue.name] = dialogue
    return [by_id[name] for name in sorted(by_id)]


def load_dialogue(folder: Path, sidecars: Sequence[str] = SIDECARS) -> Dialogue:
    """Reads ID/meta.json and what `sidecars` say.

    Raises: UserError if the record is missing, it or a sidecar is broken, its names cannot be packed, or no side may
    be the agent.
    """
    if not (folder / "meta.json").is_file():
        raise UserError(f"{folder}: unfinished (no meta.json): finish the stage that made it")
    try:
        text = (folder / "meta.json").read_text("utf-8")
    except UnicodeDecodeError as why:
        raise UserError(f"{folder / 'meta.json'}: not a dialogue record ({why}): make it again") from why
    dialogue = Dialogue.from_json(text, str(folder / "meta.json"))
    _check_names(folder, dialogue)
    if ROLES in sidecars:
        dialogue = _with_roles(folder, dialogue)
    return _with_gates(folder, dialogue) if GATES in sidecars else dialogue


def rejections(folder: Path) -> list[str]:
    """Why the gates reject a dialogue; [] if they do not, or were not asked. Raises UserError for a broken sidecar."""
    return list(_read_gates(folder).rejected)


def _with_roles(folder: Path, dialogue: Dialogue) -> Dialogue:
    roles = read_sidecar(folder, ROLES)
    try:
        for name in (name for name in SIDES if name in roles):
            if not dialogue.side(name).is_agent:
                raise UserError(f"{folder / ROLES}: a role for the {name} side, which is no agent: delete the file")
            prompt, level = str(roles[name]["prompt"]), str(roles[name]["level"])
            dialogue = _with_side(dialogue, name, role_prompt=prompt, prompt_level=level)
        rejected = dict(roles.get("rejected", {}))
        for name in rejected.keys() & set(SIDES):
            dialogue = _with_side(dialogue, name, is_agent=False, role_prompt="", prompt_level="")
    except (KeyError, TypeError, ValueError) as why:
        raise UserError(f"{folder / ROLES}: not a record of roles ({why}): delete it and annotate again") from why
    if not dialogue.agent_sides:
        raise UserError(f"{folder}: no side has a role prompt ({'; '.join(sorted(map(str, rejected.values())))})")
    if roles.get("provenance"):
        dialogue = replace(dialogue, provenance=dialogue.provenance | {"roles": roles["provenance"]})
    return dialogue


def _with_side(dialogue: Dialogue, name: str, **changes: Any) -> Dialogue:
    side = replace(dialogue.side(name), **changes)
    return replace(dialogue, left=side) if name == "left" else replace(dialogue, right=side)


def _with_gates(folder: Path, dialogue: Dialogue) -> Dialogue:
    if not (folder / GATES).is_file():
        return dialogue
    gates = _read_gates(folder)
    noted = {GATE_ENGINES: gates.engines, GATE_LIMITS: gates.limits}
    return replace(dialogue, gates=dialogue.gates | gates.values, provenance=dialogue.provenance | noted)


@dataclass(kw_only=True, frozen=True)
class GatesRecord:
    """The content of gates.json."""

    format: int = 1
    values: dict[str, float] = field(default_factory=dict)
    """What was measured, by gate."""
    rejected: tuple[str, ...] = ()
    """Reasons to leave the dialogue out."""
    limits: dict[str, Any] = field(default_factory=dict)
    """The limits that it was judged by, by gate."""
    engines: dict[str, Any] = field(default_factory=dict)
    """Who listened."""


def _read_gates(folder: Path) -> GatesRecord:
    try:
        return record(GatesRecord, json.dumps(read_sidecar(folder, GATES)))
    except ValueError as why:
        where = folder / GATES
        raise UserError(f"{where}: not a record of gates ({why}): delete it and run `ppx-data gate` again") from why


def read_sidecar(folder: Path, name: str) -> dict[str, Any]:
    """A sidecar's content; {} if there is none."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as why:
        raise UserError(f"{path}: not JSON ({why}): delete it and run its stage again") from why
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path}: not a sidecar of format 1: delete it and run its stage again")
    return content


def _check_names(folder: Path, dialogue: Dialogue) -> None:
    if dialogue.id != folder.name or not ID_PATTERN.fullmatch(dialogue.id):
        raise UserError(f"{folder}: id {dialogue.id!r} must be the folder's name, of letters, digits, '-' and '_' only")
    if dialogue.split not in SPLITS:
        raise UserError(f"{folder}: split {dialogue.split!r}: use one of {', '.join(SPLITS)}")
    if not SOURCE_PATTERN.fullmatch(dialogue.source):
        raise UserError(f"{folder}: source {dialogue.source!r}: use lower-case letters, digits and '_'")
    if not dialogue.licence.strip():
        raise UserError(f"{folder}: no licence: say under which terms it may be used")


def signature(folder: Path, sidecars: Sequence[str] = SIDECARS) -> str:
    """Identity of a dialogue folder: its record with sidecars, and names and sizes of its audio.

    Audio is not hashed: that would take hours.
    """
    texts = [folder / name for name in ("meta.json", *sidecars)]
    flacs = sorted(folder.glob("*.flac"))
    lines = [path.read_text("utf-8", errors="replace") if path.is_file() else "" for path in texts]
    return digest(*lines, *(f"{f.name} {f.stat().st_size}" for f in flacs))
