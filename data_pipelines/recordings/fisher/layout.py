"""Finds the files of a Fisher corpus by name at any depth, because every copy is laid out differently.

Audio and text are separate releases (part 1: LDC2004S13 and LDC2004T19, part 2: LDC2005S13 and LDC2005T19),
on discs named fe_03_p1_sph1 or fisher_eng_tr_sp_d1. A text release may be there twice (as delivered and unpacked
again); of two files of one call the first in the order of their paths counts.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import UserError

_CALL = re.compile(r"fe_03_(\d{5})\.(sph|wav|flac|txt|txo)", re.IGNORECASE)
_TABLES = {  # Some copies put something before the name of a table.
    "calldata": re.compile(r".*fe_03_p\d_calldata\.tbl", re.IGNORECASE),
    "pindata": re.compile(r".*fe_03(_p\d)?_pindata\.tbl", re.IGNORECASE),
    "filelist": re.compile(r".*fe_03_p\d_filelist\.tbl", re.IGNORECASE),
    "topics": re.compile(r".*fe_03(_p\d)?_topics\.sgml?", re.IGNORECASE),
    "filetable": re.compile(r"filetable\d*\.txt", re.IGNORECASE),
}
MARKER_FILE = "standin.json"
"""Names the audio of a stand-in corpus, by its first bytes, and its licence: `Marker`."""
MARKED_BYTES = 2048
"""So much of a file says which one it is: the header and the first of its sound, also where the rest is lost."""
EXPECTED = (
    "give the folders that hold fe_03_NNNNN.sph (LDC2004S13, LDC2005S13) and fe_03_NNNNN.txt (LDC2004T19, LDC2005T19)"
)


@dataclass(kw_only=True, frozen=True)
class Marker:
    """What a corpus says of itself: the licence of the files in `audio`, whose values are from `mark_of`."""

    licence: str
    audio: dict[str, str]


def mark_of(path: Path) -> str:
    """Returns the hex SHA-256 of the first MARKED_BYTES of a file."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(MARKED_BYTES)).hexdigest()


@dataclass(kw_only=True)
class FisherFiles:
    """The paths of one corpus, where calls are keyed by their five digits.

    `originals` are the transcripts as BBN/WordWave typed them, with case and punctuation and without times.
    """

    audio: dict[str, Path] = field(default_factory=dict)
    transcripts: dict[str, Path] = field(default_factory=dict)
    originals: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, list[Path]] = field(default_factory=lambda: {name: [] for name in _TABLES})
    markers: list[Path] = field(default_factory=list)

    @property
    def calls(self) -> list[str]:
        """The calls with both audio and transcript, in order."""
        return sorted(self.audio.keys() & self.transcripts.keys())


def find_corpus(roots: Sequence[Path]) -> FisherFiles:
    """Searches folders for calls and tables.

    Raises: UserError naming the folders if one is missing or cannot be read, or if no call has both audio and
    transcript (code "not-found").
    """
    corpus = FisherFiles()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; {EXPECTED}", code="not-found")
        above = root.parent / MARKER_FILE  # The discs of a stand-in corpus may be given one by one.
        for path in (*([above] if root.name and above.is_file() else []), *_files(root)):
            _sort_in(corpus, path)
    named = ", ".join(map(str, roots))
    if not corpus.audio:
        raise UserError(f"{named}: no Fisher audio in there; {EXPECTED}", code="not-found")
    if not corpus.transcripts:
        raise UserError(f"{named}: no Fisher transcript in there; {EXPECTED}", code="not-found")
    if not corpus.calls:
        example = min(corpus.audio.values())
        raise UserError(
            f"{named}: no audio has its transcript beside it, {example.name} for one; {EXPECTED}", code="not-found"
        )
    return corpus


def _files(root: Path) -> Iterator[Path]:
    """Yields all files below a folder in a fixed order; linked folders are followed, each real folder once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)


def _unreadable(why: OSError) -> None:
    raise UserError(
        f"{why.filename}: cannot be read ({why.strerror}), make it readable or give other folders", code="unreadable"
    )


def _sort_in(corpus: FisherFiles, path: Path) -> None:
    found = _CALL.fullmatch(path.name)
    if found:
        call, suffix = found[1], found[2].lower()
        if suffix == "txt":
            corpus.transcripts.setdefault(call, path)
        elif suffix == "txo":
            corpus.originals.setdefault(call, path)
        elif call not in corpus.audio or (suffix == "sph" and corpus.audio[call].suffix.lower() != ".sph"):
            corpus.audio[call] = path  # The original is better than somebody's conversion.
    elif path.name == MARKER_FILE:
        corpus.markers.append(path)
    for name, pattern in _TABLES.items():
        if pattern.fullmatch(path.name):
            corpus.tables[name].append(path)
