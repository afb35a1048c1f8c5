"""Writes a corpus in the shapes of the Fisher release: discs, transcripts and tables of both parts."""

# Shapes: C channels, S samples

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.files import write_json
from data_pipelines.recordings.fisher.layout import MARKER_FILE, mark_of
from data_pipelines.recordings.fisher.sphere import SHORTEN_CODING, write_sphere

PART_2_BEGINS = 5851


@dataclass(frozen=True, kw_only=True)
class Person:
    """A row of pindata: an invented PIN and what is known of the speaker; `dialect` is "a" (American), "o" or ""."""

    pin: str
    sex: str = ""
    dialect: str = ""
    language: str = "NA"


@dataclass(frozen=True, kw_only=True)
class CalldataRow:
    """A row of calldata: the call, its topic and speakers, the auditors' grades and who transcribed it."""

    call: str
    disc: str
    topic: str
    sides: tuple[Person, Person]
    grades: tuple[str, str] = ("4", "4")
    phones: tuple[str, str] = ("", "")
    transcriber: str = "LDC"

    @property
    def part(self) -> int:
        """The part of the release that the call is in, 1 or 2."""
        return 1 if int(self.call) < PART_2_BEGINS else 2


def write_call(
    corpus: Path, row: CalldataRow, audio_SC: np.ndarray, lines: Sequence[str], original: Sequence[str] = ()
) -> None:
    """Writes float [samples, 2] at 8 kHz as shorten SPHERE, the timed lines, and those of the typist, if any."""
    folder, text = row.call[:3], corpus / f"fe_03_p{row.part}_tran" / "data"
    audio = corpus / row.disc / "audio" / folder
    audio.mkdir(parents=True, exist_ok=True)
    write_sphere(audio / f"fe_03_{row.call}.sph", np.clip(audio_SC, -1, 1).astype(np.float32), coding=SHORTEN_CODING)
    who = "at the LDC" if row.transcriber == "LDC" else "by BBN/WordWave"
    body = "".join(f"{line} \n\n" for line in lines)
    _write(text / "trans" / folder / f"fe_03_{row.call}.txt", f"# fe_03_{row.call}.sph\n# Transcribed {who}\n\n{body}")
    if original:
        path = text / "bbn_orig" / folder / "originals" / f"fe_03_{row.call}.txo"
        _write(path, "".join(f"{line}\n" for line in original))


def write_tables(corpus: Path, rows: Sequence[CalldataRow], people: Sequence[Person], titles: dict[str, str]) -> None:
    """Writes calldata, filelist, pindata and topics of each part, and the file tables of its discs."""
    for part in sorted({row.part for row in rows}):
        doc, own = corpus / f"fe_03_p{part}_tran" / "doc", [row for row in rows if row.part == part]
        sides = ",".join(f"{letter}PIN,{letter}SX.DL,{letter}PHNUM,{letter}PHSET,{letter}PHTYP" for letter in "AB")
        table = [f"CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,{sides}", *map(_calldata, own)]
        _write(doc / f"fe_03_p{part}_calldata.tbl", "\n".join(table) + "\n")
        _write(doc / f"fe_03_p{part}_filelist.tbl", "".join(_filelist(row) for row in own))
        pins = [f"{p.pin},{p.sex.upper() or 'NA'},NA,NA,{p.language},NA,NA,{_sides(p, rows)}" for p in people]
        header = "PIN,S_SEX,S_AGE,EDU,NATIVE_LANG,WHERE_RAISED,NUM_CALLS,CALL_SIDES"
        _write(doc / "fe_03_pindata.tbl", "\n".join([header, *pins]) + "\n")
        topics = [f'<topic id="{key}" title="{title}">\n<< {title} >>\n</topic>\n' for key, title in titles.items()]
        _write(doc / "fe_03_topics.sgm", "".join(topics))
        for disc in sorted({row.disc for row in own}):
            place = corpus / disc / ("filetable.txt" if part == 1 else "docs/filetable2.txt")
            known = [row for row in own if row.disc == disc and all(person.sex for person in row.sides)]
            _write(place, "".join(f"{disc} fe_03_{row.call}.sph {_sexes(row)}\n" for row in known))


def write_notices(corpus: Path, licence: str, readme: str) -> None:
    """Writes README.txt, the licence for people, and the marker, by which the importer knows the audio's licence."""
    audio = {path.relative_to(corpus).as_posix(): mark_of(path) for path in sorted(corpus.rglob("*.sph"))}
    write_json(corpus / MARKER_FILE, {"licence": licence, "audio": audio})
    _write(corpus / "licence.txt", licence + "\n")
    _write(corpus / "README.txt", readme)


def _calldata(row: CalldataRow) -> str:
    cells = [
        f"{person.pin},{person.sex}.{person.dialect if person.sex else ''},{phone},,"
        for person, phone in zip(row.sides, row.phones, strict=True)
    ]
    return f"{row.call},,{row.topic},{','.join(row.grades)},{','.join(cells)}"


def _filelist(row: CalldataRow) -> str:
    """Returns the line of one call; the two parts have their columns in different order."""
    cells = [row.call, row.disc] if row.part == 1 else [row.disc, row.call]
    return "\t".join([*cells, _sexes(row) or "NA", row.transcriber]) + "\n"


def _sexes(row: CalldataRow) -> str:
    return "".join(person.sex for person in row.sides) if all(person.sex for person in row.sides) else ""


def _sides(person: Person, rows: Sequence[CalldataRow]) -> str:
    """Returns the sides that a speaker is on, such as 06972_A/m.a;08175_A/f.a."""
    found = [(row.call, "AB"[side]) for row in rows for side in (0, 1) if row.sides[side].pin == person.pin]
    return ";".join(f"{call}_{letter}/{person.sex}.{person.dialect}" for call, letter in found) or "NA"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("cp1252"))
