"""What each recording gave, kept beside the dialogues so that a stopped run can resume, and the report of them all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.files import write_json
from data_pipelines.records.schema import Dialogue
from data_pipelines.records.typed import record, values_of
from model.errors import UserError

AnyDraft = TypeVar("AnyDraft")
"""A dataclass whose field `rejected` says why a recording gave nothing, else it is ""."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Why a recording or dialogue, named by its id, is rejected or gives less than it could."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CutDialogue:
    """A dialogue that was written: its length in seconds, its split, and the sides that may be the agent.

    `licence` is the one that its record states; None if --licence counts.
    """

    id: str
    seconds: float
    split: str
    agents: tuple[str, ...]
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordingDraft:
    """What one recording gave, or why it is `rejected`."""

    name: str
    dialogues: tuple[CutDialogue, ...] = ()
    notes: tuple[str, ...] = ()
    rejected: str = ""


def write_draft(path: Path, draft: Any) -> None:
    """Writes a draft as JSON, with `rejected` only if it is."""
    path.parent.mkdir(exist_ok=True)
    write_json(path, {name: value for name, value in values_of(draft).items() if name != "rejected" or value})


def read_draft(path: Path, kind: type[AnyDraft]) -> AnyDraft:
    """Reads a draft. Raises UserError if the file is anything else (code "bad-record")."""
    try:
        return record(kind, path.read_bytes())
    except ValueError as why:
        raise UserError(f"{path}: not a draft ({why}); delete it to do its recording again", code="bad-record") from why


def read_drafts(folder: Path, kind: type[AnyDraft]) -> dict[str, AnyDraft]:
    """Reads all drafts of a folder, in the order of their names."""
    return {path.stem: read_draft(path, kind) for path in sorted(folder.glob("*.json"))}


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What all recordings of a folder gave; `skipped` of them were done by an earlier run."""

    recordings: int
    dialogues: Sequence[Dialogue | CutDialogue]
    rejected: Sequence[Note]
    notes: Sequence[Note]
    skipped: int = 0

    @property
    def num_heldout(self) -> int:
        """The number of held-out dialogues."""
        return sum(dialogue.split == "heldout" for dialogue in self.dialogues)

    @property
    def hours(self) -> float:
        """The length of all dialogues."""
        return round(sum(dialogue.seconds for dialogue in self.dialogues) / 3600, 4)

    def write(self, out: Path, **more: Any) -> None:
        """Writes OUT/report.json; `more` are entries of one format.

        What this run alone did (`skipped`) is left out, so that a run that was stopped and resumed ends with the same
        file as one that was not.
        Raises: UserError if no recording gave a dialogue (code "no-data").
        """
        counts = {"dialogues": len(self.dialogues), "heldout": self.num_heldout, "hours": self.hours}
        notes = {"rejected": [asdict(note) for note in self.rejected], "notes": [asdict(note) for note in self.notes]}
        write_json(out / "report.json", counts | notes | more)
        if not self.dialogues:
            first = "".join(f"; the first reason: {note.id}: {note.reason}" for note in self.rejected[:1])
            raise UserError(f"no recording gave a dialogue, see {out / 'report.json'}{first}", code="no-data")

    def summary(self, out: Path) -> str:
        """Returns the counts in one line."""
        before = f" ({self.skipped} of them by an earlier run)" if self.skipped else ""
        return (
            f"{len(self.dialogues)} dialogues ({self.hours:.2f} h; {self.num_heldout} held out) from "
            f"{self.recordings} recordings{before}, {len(self.rejected)} rejected, {len(self.notes)} notes: "
            f"{out / 'report.json'}"
        )
