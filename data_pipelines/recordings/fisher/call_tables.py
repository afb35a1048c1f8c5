"""Reads Fisher's tables, which say who speaks in a call and about what.

All tables are optional, and parsed by content where copies differ. PINs identify real people: they serve to tell
speakers apart and leave this module only as hashes.
"""

import csv
import hashlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.recordings.fisher.timed_lines import read_text

_CALL_ID = re.compile(r"(?:fe_03_)?(\d{5})(?:\.sph)?", re.IGNORECASE)
_SEXES = re.compile(r"[fm]{2}")
_COLUMNS = {
    "CALL_ID": 0, "TOPICID": 2, "SIG_GRADE": 3, "CNV_GRADE": 4, "APIN": 5, "ASX.DL": 6, "BPIN": 10, "BSX.DL": 11,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CallFacts:
    """What the tables say of a call and of its two sides, left and right.

    `sexes` are "f", "m" or "" (unknown). `natives` says whether the auditors heard a native speaker of American
    English, else what the speaker said. `signal` and `talk` are the auditors' mean grades (SIG_GRADE, CNV_GRADE).
    """

    topic: str
    sexes: tuple[str, str]
    speakers: tuple[str, str]
    natives: tuple[bool | None, bool | None] = (None, None)
    signal: float | None = None
    talk: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What a speaker stated on enrolment."""

    sex: str
    is_native: bool | None


@dataclass(kw_only=True)
class Tables:
    """What all tables together say; `missing` names the tables that were not found.

    `calls` are the rows of calldata; `sexes` what other tables say, of these calls and of others.
    """

    calls: dict[str, CallFacts] = field(default_factory=dict)
    sexes: dict[str, tuple[str, str]] = field(default_factory=dict)
    topics: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def call(self, call: str) -> CallFacts:
        """Returns the facts of a call; without a row, each side is a speaker of its own and the topic is unknown."""
        speakers = (_anonymous(call, "A"), _anonymous(call, "B"))
        unknown = CallFacts(topic="", sexes=self.sexes.get(call, ("", "")), speakers=speakers)
        return self.calls.get(call, unknown)


def read_tables(paths: Mapping[str, Sequence[Path]]) -> Tables:
    """Reads all tables that were found, keyed as in `layout.FisherFiles.tables`."""
    texts = {name: [read_text(path) for path in found] for name, found in paths.items()}
    pins = dict(pair for text in texts["pindata"] for pair in parse_pindata(text).items())
    has = {
        "calldata": texts["calldata"],
        "topics": texts["topics"],
        "filetable": texts["filelist"] + texts["filetable"],
    }
    tables = Tables(missing=[name for name, found in has.items() if not found])
    for text in [*texts["filelist"], *texts["filetable"]]:
        tables.sexes |= parse_sexes(text)
    for text in texts["calldata"]:
        tables.calls |= parse_calldata(text, tables.sexes, pins)
    for text in texts["topics"]:
        tables.topics |= parse_topics(text)
    return tables


def parse_calldata(
    text: str, sexes: Mapping[str, tuple[str, str]] | None = None, pins: Mapping[str, Pin] | None = None
) -> dict[str, CallFacts]:
    """Parses CSV with CALL_ID, TOPICID, SIG_GRADE, CNV_GRADE, APIN, ASX.DL, BPIN, BSX.DL ... into facts by call.

    SX.DL is sex and dialect; "f.a" is female and American. Sexes that the row lacks come from `sexes` (by call), then
    from `pins`. Rows of another shape are ignored.
    """
    rows = [row for row in _rows(text) if len(row) >= 12]
    columns = _COLUMNS
    if rows and rows[0][0].upper() == "CALL_ID":
        header = [name.upper() for name in rows[0]]
        columns = {name: header.index(name) if name in header else place for name, place in _COLUMNS.items()}
    calls = {}
    for row in rows:
        cell = {name: row[place] if place < len(row) else "" for name, place in columns.items()}
        found = _CALL_ID.fullmatch(cell["CALL_ID"].rjust(5, "0"))
        if not found:
            continue
        call = found[1]
        of_call = (sexes or {}).get(call, ("", ""))
        a, b = (
            _side(cell[f"{letter}PIN"], cell[f"{letter}SX.DL"], of_call[side], pins or {}, call, letter)
            for side, letter in enumerate("AB")
        )
        calls[call] = CallFacts(
            topic=cell["TOPICID"],
            sexes=(a[0], b[0]),
            speakers=(a[1], b[1]),
            natives=(a[2], b[2]),
            signal=_number(cell["SIG_GRADE"]),
            talk=_number(cell["CNV_GRADE"]),
        )
    return calls


def _side(
    pin: str, heard: str, sex_of_call: str, pins: Mapping[str, Pin], call: str, letter: str
) -> tuple[str, str, bool | None]:
    """Returns sex, speaker key and nativeness of one side; `heard` is its cell SX.DL, which is trusted most."""
    sex, _, dialect = heard.lower().partition(".")
    said = pins.get(pin, Pin(sex="", is_native=None))
    sex = sex[:1] if sex[:1] in ("f", "m") else sex_of_call or said.sex
    is_native = {"a": True, "o": False}.get(dialect[:1], said.is_native)
    return sex, speaker_key(pin, sex) if re.fullmatch(r"\w*\d\w*", pin) else _anonymous(call, letter), is_native


def parse_pindata(text: str) -> dict[str, Pin]:
    """Parses CSV by position, as the header's spelling differs: PIN, sex, age, education, native language, ..."""
    pins = {}
    for cells in _rows(text):
        if len(cells) < 2 or not re.fullmatch(r"\w*\d\w*", cells[0]):
            continue
        sex = cells[1].lower() if cells[1].upper() in ("F", "M") else ""
        language = cells[4].lower() if len(cells) > 4 else "na"
        pins[cells[0]] = Pin(sex=sex, is_native=None if language in ("na", "") else "english" in language)
    return pins


def _rows(text: str) -> Iterator[list[str]]:
    """Yields the cells of each line; a quotation mark that is never closed costs its own line only."""
    for line in text.replace("\0", "").splitlines():
        with suppress(csv.Error):
            yield from ([cell.strip() for cell in row] for row in csv.reader([line], skipinitialspace=True))


def parse_sexes(text: str) -> dict[str, tuple[str, str]]:
    """Parses filetable.txt and filelist.tbl: a call id and two letters such as `fm` a line, in any order of columns."""
    found = {}
    for line in text.splitlines():
        cells = line.split()
        calls = [match[1] for match in map(_CALL_ID.fullmatch, cells) if match]
        pairs = [cell.lower() for cell in cells if _SEXES.fullmatch(cell.lower())]
        if len(calls) == 1 and len(pairs) == 1:
            found[calls[0]] = (pairs[0][0], pairs[0][1])
    return found


def parse_topics(text: str) -> dict[str, str]:
    """Parses `<topic id="ENG01" title="...">` into titles by id; the file is no well-formed XML."""
    topics = {}
    for tag in re.findall(r"<\s*topic\b[^>]*>", text, re.IGNORECASE):
        found = {name.lower(): value for name, value in re.findall(r'(\w+)\s*=\s*"([^"]*)"', tag)}
        if found.get("id") and found.get("title"):
            topics[found["id"]] = html.unescape(found["title"]).strip()
    return topics


def speaker_key(pin: str, sex: str) -> str:
    """Returns a key that does not show the PIN. Sex is part of it because two people used some of the PINs.

    Who has the LDC's tables can compute it again: it hides the PIN from others, it does not make data anonymous.
    """
    return "fisher/" + hashlib.sha256(f"fisher speaker {pin} {sex}".encode()).hexdigest()[:16]


def _anonymous(call: str, letter: str) -> str:
    return speaker_key(f"unknown {call} {letter}", "")


def _number(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"\d+(\.\d*)?|\.\d+", cell) else None
