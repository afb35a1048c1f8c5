"""Fisher's tables: who speaks in a call, and about what. All are optional and parsed by content where copies differ.

PINs identify real people: they are used to tell speakers apart and leave this module only as hashes.
"""

import csv
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CALL_ID = re.compile(r"(?:fe_03_)?(\d{5})(?:\.sph)?")
_SEXES = re.compile(r"[fm]{2}")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One row of calldata: topic id, and sex ("f", "m" or "") and speaker key of each side."""

    topic: str
    sexes: tuple[str, str]
    speakers: tuple[str, str]


@dataclass(kw_only=True)
class Tables:
    """What all tables together say; `missing` names the tables that were not found."""

    calls: dict[str, Call] = field(default_factory=dict)
    topics: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def call(self, call: str) -> Call:
        """The row of a call; without one, each side is a speaker of its own and the topic is unknown."""
        unknown = Call(topic="", sexes=("", ""), speakers=(_anonymous(call, "A"), _anonymous(call, "B")))
        return self.calls.get(call, unknown)


def read_tables(paths: Mapping[str, Sequence[Path]]) -> Tables:
    """Reads all tables that were found, keyed as in `layout.Corpus.tables`."""
    texts = {name: [_text(path) for path in found] for name, found in paths.items()}
    sexes: dict[str, tuple[str, str]] = {}
    for text in [*texts["filelist"], *texts["filetable"]]:
        sexes |= parse_sexes(text)
    pin_sexes = dict(pair for text in texts["pindata"] for pair in parse_pindata(text).items())
    tables = Tables(missing=[name for name in ("calldata", "topics", "filetable") if not texts[name]])
    for text in texts["calldata"]:
        tables.calls |= parse_calldata(text, sexes, pin_sexes)
    for call in sexes.keys() - tables.calls.keys():
        speakers = (_anonymous(call, "A"), _anonymous(call, "B"))
        tables.calls[call] = Call(topic="", sexes=sexes[call], speakers=speakers)
    for text in texts["topics"]:
        tables.topics |= parse_topics(text)
    return tables


def parse_calldata(
    text: str, sexes: dict[str, tuple[str, str]] | None = None, pin_sexes: dict[str, str] | None = None
) -> dict[str, Call]:
    """CSV with CALL_ID, TOPICID, APIN, ASX.DL, BPIN, BSX.DL ... -> rows by call.

    Sexes that the row lacks come from `sexes` (by call), then `pin_sexes`. Rows of another shape are ignored.
    """
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) >= 12]
    columns = {"CALL_ID": 0, "TOPICID": 2, "APIN": 5, "ASX.DL": 6, "BPIN": 10, "BSX.DL": 11}
    if rows and rows[0][0].strip().upper() == "CALL_ID":
        header = [name.strip().upper() for name in rows[0]]
        columns = {name: header.index(name) if name in header else place for name, place in columns.items()}
    calls = {}
    for row in rows:
        cell = {name: row[place].strip() if place < len(row) else "" for name, place in columns.items()}
        found = _CALL_ID.fullmatch(cell["CALL_ID"].rjust(5, "0"))
        if not found:
            continue
        call = found[1]
        pair, keys = [], []
        for side, letter in enumerate("AB"):
            pin = cell[f"{letter}PIN"]
            sex = cell[f"{letter}SX.DL"].lower()[:1]
            if sex not in ("f", "m"):
                sex = (sexes or {}).get(call, ("", ""))[side] or (pin_sexes or {}).get(pin, "")
            pair.append(sex)
            keys.append(speaker_key(pin, sex) if re.fullmatch(r"\w*\d\w*", pin) else _anonymous(call, letter))
        calls[call] = Call(topic=cell["TOPICID"], sexes=(pair[0], pair[1]), speakers=(keys[0], keys[1]))
    return calls


def parse_pindata(text: str) -> dict[str, str]:
    """CSV by position: PIN, sex, ... -> sex ("f" or "m") by PIN."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return {row[0].strip(): row[1].strip().lower() for row in rows if len(row) > 1 and row[1].strip() in ("F", "M")}


def parse_sexes(text: str) -> dict[str, tuple[str, str]]:
    """filetable.txt and filelist.tbl: lines with a call id and two letters such as `fm`, in any order of columns."""
    found = {}
    for line in text.splitlines():
        cells = line.split()
        calls = [match[1] for match in map(_CALL_ID.fullmatch, cells) if match]
        pairs = [cell.lower() for cell in cells if _SEXES.fullmatch(cell.lower())]
        if len(calls) == 1 and len(pairs) == 1:
            found[calls[0]] = (pairs[0][0], pairs[0][1])
    return found


def parse_topics(text: str) -> dict[str, str]:
    """`<topic id="ENG01" title="...">` elements -> titles by id. The file is not well-formed, so no XML parser."""
    topics = {}
    for tag in re.findall(r"<\s*topic\b[^>]*>", text, re.IGNORECASE):
        found = {name.lower(): value for name, value in re.findall(r'(\w+)\s*=\s*"([^"]*)"', tag)}
        if found.get("id") and found.get("title"):
            topics[found["id"]] = html.unescape(found["title"]).strip()
    return topics


def speaker_key(pin: str, sex: str) -> str:
    """A key that does not show the PIN. Sex is part of it: some PINs were used by two people."""
    return "fisher/" + hashlib.sha256(f"fisher speaker {pin} {sex}".encode()).hexdigest()[:16]


def _anonymous(call: str, letter: str) -> str:
    return speaker_key(f"unknown {call} {letter}", "")


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")
