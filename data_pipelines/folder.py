"""Dialogue folders on disk: finding them, and reading a record with what later stages have put beside it."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.files import digest
from data_pipelines.schema import ID_PATTERN, SOURCE_PATTERN, SPLITS, Dialogue
from model.errors import UserError


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


def load_dialogue(folder: Path) -> Dialogue:
    """Reads ID/meta.json. Raises UserError if it is missing or broken, or if its names cannot be packed."""
    if not (folder / "meta.json").is_file():
        raise UserError(f"{folder}: unfinished (no meta.json): finish the stage that made it")
    try:
        dialogue = Dialogue.from_json((folder / "meta.json").read_text("utf-8"), str(folder / "meta.json"))
        _check_names(folder, dialogue)
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError) as why:  # values of wrong types, bytes that are no UTF-8
        raise UserError(f"{folder / 'meta.json'}: not a dialogue record ({why}): make it again") from why
    return dialogue


def _check_names(folder: Path, dialogue: Dialogue) -> None:
    if dialogue.id != folder.name or not ID_PATTERN.fullmatch(dialogue.id):
        raise UserError(f"{folder}: id {dialogue.id!r} must be the folder's name, of letters, digits, '-' and '_' only")
    if dialogue.split not in SPLITS:
        raise UserError(f"{folder}: split {dialogue.split!r}: use one of {', '.join(SPLITS)}")
    if not SOURCE_PATTERN.fullmatch(dialogue.source):
        raise UserError(f"{folder}: source {dialogue.source!r}: use lower-case letters, digits and '_'")
    if not dialogue.licence.strip():
        raise UserError(f"{folder}: no licence: say under which terms it may be used")


def signature(folder: Path) -> str:
    """Identity of a dialogue folder: its meta.json, and names and sizes of its audio (hashing that takes hours)."""
    meta = folder / "meta.json"
    flacs = sorted(folder.glob("*.flac"))
    text = meta.read_text("utf-8", errors="replace") if meta.is_file() else ""
    return digest(text, *(f"{f.name} {f.stat().st_size}" for f in flacs))
