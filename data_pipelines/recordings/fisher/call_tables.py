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
from dataclasses import dataclass, field, replace
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
    tables.calls |= parse_calldata(texts["calldata"], tables.sexes, pins)
    for text in texts["topics"]:
        tables.topics |= parse_topics(text)
    return tables


@dataclass(frozen=True, kw_only=True)
class _CallSide:
    """One side of a row: its PIN ("" without one), and what is known of who was heard."""

    pin: str
    sex: str
    is_native: bool | None


def parse_calldata(
    texts: Sequence[str], sexes: Mapping[str, tuple[str, str]] | None = None, pins: Mapping[str, Pin] | None = None
) -> dict[str, CallFacts]:
    """Parses CSV with CALL_ID, TOPICID, SIG_GRADE, CNV_GRADE, APIN, ASX.DL, BPIN, BSX.DL ... into facts by call.

    SX.DL is sex and dialect; "f.a" is female and American. Sexes that the row lacks come from `sexes` (by call), then
    from `pins`, then from the PIN's other calls in all `texts`. Rows of another shape are ignored.
    """
    cells = {call: cell for text in texts for call, cell in _cells(text)}
    sides = {}
    for call, cell in cells.items():
        of_call = (sexes or {}).get(call, ("", ""))
        a, b = (
            _side(cell[f"{letter}PIN"], cell[f"{letter}SX.DL"], of_call[side], pins or {})
            for side, letter in enumerate("AB")
        )
        sides[call] = (a, b)
    sexes_of: dict[str, set[str]] = {}
    for side in [side for pair in sides.values() for side in pair]:
        sexes_of.setdefault(side.pin, set()).add(side.sex)
    calls = {}
    for call, cell in cells.items():
        a, b = (_with_sex(side, sexes_of) for side in sides[call])
        calls[call] = CallFacts(
            topic=cell["TOPICID"],
            sexes=(a.sex, b.sex),
            speakers=(_key(a, sexes_of, call, "A"), _key(b, sexes_of, call, "B")),
            natives=(a.is_native, b.is_native),
            signal=_number(cell["SIG_GRADE"]),
            talk=_number(cell["CNV_GRADE"]),
        )
    return calls


def _cells(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields each call of one table with its cells by the names of their columns."""
    rows = [row for row in _rows(text) if len(row) >= 12]
    columns = _COLUMNS
    if rows and rows[0][0].upper() == "CALL_ID":
        header = [name.upper() for name in rows[0]]
        columns = {name: header.index(name) if name in header else place for name, place in _COLUMNS.items()}
    for row in rows:
        cell = {name: row[place] if place < len(row) else "" for name, place in columns.items()}
        if found := _CALL_ID.fullmatch(cell["CALL_ID"].rjust(5, "0")):
            yield found[1], cell


def _side(pin: str, heard: str, sex_of_call: str, pins: Mapping[str, Pin]) -> _CallSide:
    """Returns what is known of one side; `heard` is its cell SX.DL, which is trusted most."""
    sex, _, dialect = heard.lower().partition(".")
    said = pins.get(pin, Pin(sex="", is_native=None))
    return _CallSide(
        pin=pin if re.fullmatch(r"\w*\d\w*", pin) else "",
        sex=sex[:1] if sex[:1] in ("f", "m") else sex_of_call or said.sex,
        is_native={"a": True, "o": False}.get(dialect[:1], said.is_native),
    )


def _with_sex(side: _CallSide, sexes_of: Mapping[str, set[str]]) -> _CallSide:
    """Returns the side with the only sex that was heard in other calls of its PIN, where it has none."""
    known = sexes_of[side.pin] - {""}
    return replace(side, sex=next(iter(known))) if side.pin and not side.sex and len(known) == 1 else side


def _key(side: _CallSide, sexes_of: Mapping[str, set[str]], call: str, letter: str) -> str:
    """Returns the speaker key of a side. A PIN that two people used has one key if nobody knows who spoke in a call.

    With two keys that call could be held out while another one of the same voice trains.
    """
    if not side.pin:
        return _anonymous(call, letter)
    return speaker_key(side.pin, "" if {"", "f", "m"} <= sexes_of[side.pin] else side.sex)


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
