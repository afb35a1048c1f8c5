"""Reads what is written about a recording, in any of the shapes that people have, into plain values for each side.

A side is known by words with times, by utterances with times, by a text without times, or not at all. JSON is read
by the names of its keys, because every data set has its own (see `read_json`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.recordings.entries import TranscriptEntry, entries_of, is_list
from data_pipelines.recordings.utterances import Sides, SideText, Utterance
from data_pipelines.records.schema import SIDES, Word
from data_pipelines.text.personal_words import is_marker
from model.errors import UserError
from model.extras import require

PAUSE_SECONDS = 0.6
"""A longer pause between words with times ends an utterance."""
MAIN = "speaker_main"
PAIRS = (
    ("left", "right"), ("agent", "user"), ("assistant", "user"), ("agent", "customer"), ("a", "b"), ("0", "1"),
    ("1", "2"), ("s1", "s2"), ("speaker_0", "speaker_1"), ("speaker_1", "speaker_2"), ("speaker_00", "speaker_01"),
    ("speaker1", "speaker2"), ("speaker_a", "speaker_b"), (MAIN, "speaker_user"),
)  # fmt: skip
"""Names of speakers, left and right, that need no --labels."""
# No tag holds another opening bracket: otherwise a long row of them would take the square of its length.
_TAG = re.compile(r"\[[^\[\]]*\]|\{[^\\{}][^{}]*\}|<br\s{0,9}/?>")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_LABEL = re.compile(r"\s*(?:\[([^\]]{1,60})\]|<v\s+([^>]{1,60})>|([\w .-]{1,40}):(?=\s))\s*")


def read_text_file(path: Path) -> str:
    """Reads a UTF-8 file, with or without a byte order mark.

    Raises: UserError if the file is missing (code "not-found") or of another encoding ("unreadable").
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", code="not-found")
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, where: str) -> str:
    """Decodes bytes as UTF-8. Raises UserError naming `where`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        known = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        raise UserError(
            f"{where}: not UTF-8 (byte {why.start}): convert it, e.g. with iconv -f {known} -t UTF-8",
            code="unreadable",
        ) from why


def parse_json(text: str, where: str) -> Any:
    """Parses JSON. Raises UserError naming `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as why:
        raise UserError(f"{where}: not JSON ({why})", code="unreadable") from why


def read_transcript(path: Path, labels: tuple[str, str] | None, side: str = "") -> Sides:
    """Reads a transcript file: .srt, .json, or text without times.

    `labels` are the names of the left and the right speaker in it; `side` is given for a file of one side only.
    """
    text, where = read_text_file(path), str(path)
    if path.suffix.lower() == ".json":
        return read_json(parse_json(text, where), labels, where, side)
    if path.suffix.lower() == ".srt":
        return read_srt(text, labels, where, side)
    return read_plain(text, labels, where, side)


def read_json(value: Any, labels: tuple[str, str] | None, where: str, side: str = "") -> Sides:
    """Returns the sides of a JSON value; {} if no key in it says that it is a transcript.

    Understood are {"alignments": [[word, [start, end], speaker], ...]} of moshi-finetune; lists of words or utterances,
    bare or under "words", "utterances", "segments", "turns", ..., each with a text, "start" and "end" (or "start_time"
    and "end_time", ...) and a "speaker" (or "channel", ...), utterances with "words" and "backchannels" of their own;
    {"left": ..., "right": ...} of any of these; and {"text": ...}.

    Raises: UserError for values of wrong types and for speakers whose sides are not known (code "bad-record").
    """
    try:
        entries = list(entries_of(value, side))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as why:
        raise UserError(f"{where}: not a transcript ({type(why).__name__}: {why})", code="bad-record") from why
    empty = {side: SideText()} if side and is_list(value) else {}
    return sort_sides(entries, labels, where, side) or empty


def read_srt(text: str, labels: tuple[str, str] | None, where: str, side: str = "") -> Sides:
    """Returns the sides of subtitles.

    Without `side` each subtitle begins with its speaker ("A: hello", "[A] hello" or "<v A>hello").
    """
    srt = require("srt", extra="subtitles")
    if digits := re.search(r"\d{40}", text):  # the parser takes hours for thousands of them
        raise UserError(f"{where}: not SRT: {digits[0]}... is no number or time: repair it", code="unreadable")
    try:
        found = list(srt.parse(_single_spaced(text)))
    except (srt.SRTParseError, ValueError, OverflowError) as why:
        reason = str(why).splitlines()[0]
        raise UserError(f"{where}: not SRT ({reason}): repair it or leave it out", code="unreadable") from why
    if not found and text.strip():
        raise UserError(f"{where}: not SRT: it holds no subtitle", code="unreadable")
    entries = []
    for n, line in enumerate(found, 1):
        label, said = (side, line.content) if side else _labelled(line.content, f"{where}: subtitle {n}")
        start, end = line.start.total_seconds(), line.end.total_seconds()
        entries.append(TranscriptEntry(text=said, start=start, end=end, label=label, is_word=False))
    return sort_sides(entries, labels, where, side) or ({side: SideText()} if side else {})


def _single_spaced(text: str) -> str:
    """Returns the lines without repeated spaces and blank lines, as the parser takes the square of their number."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return "\n".join(line for n, line in enumerate(lines) if line or (n and lines[n - 1])) + "\n"


def read_plain(text: str, labels: tuple[str, str] | None, where: str, side: str = "") -> Sides:
    """Returns the sides of a text without times; without `side` every line begins with its speaker."""
    if side:
        return {side: SideText(text=clean_text(text))}
    lines = [_labelled(line, f"{where}: line {n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    entries = [TranscriptEntry(text=said, start=None, end=None, label=label, is_word=False) for label, said in lines]
    return sort_sides(entries, labels, where, side)


def clean_text(text: str) -> str:
    """Removes tags such as [laughter], {laugh} or <i>, and repeated spaces; what stands for masked words stays."""
    tagless = _TAG.sub(lambda found: found[0] if is_marker(found[0]) else " ", text)
    return " ".join(_MARKUP.sub("", tagless).split())


def sort_sides(entries: Sequence[TranscriptEntry], labels: tuple[str, str] | None, where: str, side: str = "") -> Sides:
    """Gives every entry its side and brings the entries in order. Raises UserError for a speaker that has no side."""
    if side and not any(entry.label != side for entry in entries):
        of: Mapping[str, str] = {side: side}
    else:
        of = sides_of({entry.label for entry in entries}, labels, where)
    found: Sides = {}
    for name, other in zip(SIDES, reversed(SIDES), strict=True):
        own = [entry for entry in entries if of[entry.label] == (other if entry.is_other else name)]
        if own:
            found[name] = _side_text(own, where)
    return found


def sides_of(found: set[str], labels: tuple[str, str] | None, where: str) -> dict[str, str]:
    """Returns which side each of the speakers found is on. Raises UserError if that is not clear."""
    if "" in found:
        raise UserError(
            f"{where}: does not say who speaks: name a speaker in it, or give one transcript for each side",
            code="bad-record",
        )
    if labels is not None:
        if strange := sorted(found - set(labels)):
            raise UserError(
                f"{where}: unknown speaker {strange[0]!r}: --labels names {labels[0]!r} and {labels[1]!r}",
                code="bad-record",
            )
        return dict(zip(labels, SIDES, strict=True))
    lower = {name: name.lower() for name in sorted(found)}
    if MAIN in lower.values() and len(found) <= 2:
        return {name: "left" if low == MAIN else "right" for name, low in lower.items()}
    choices = [
        {name: SIDES[pair.index(low)] for name, low in lower.items()}
        for pair in PAIRS
        if set(lower.values()) <= {*pair}
    ]
    if not choices or any(choice != choices[0] for choice in choices):
        names = ", ".join(repr(name) for name in list(lower)[:4])
        raise UserError(
            f"{where}: unknown speaker: {names}: say which one is on the left with --labels LEFT RIGHT",
            code="bad-record",
        )
    return choices[0]


def _side_text(entries: Sequence[TranscriptEntry], where: str) -> SideText:
    """Brings the entries of one side in order of time; words with times become utterances at their pauses."""
    if any(entry.start is None or entry.end is None for entry in entries):
        if not all(entry.start is None or entry.end is None for entry in entries):
            raise UserError(f"{where}: some of its lines have times and some have not", code="bad-record")
        return SideText(text=" ".join(filter(None, (clean_text(entry.text) for entry in entries))))
    timed = [(entry, float(entry.start or 0), float(entry.end or 0)) for entry in entries]
    said = [
        Utterance(start=start, end=end, text=text, words=entry.words)
        for entry, start, end in timed
        if not entry.is_word and (text := clean_text(entry.text))
    ]
    words = [
        Word(text=text, start=start, end=end)
        for entry, start, end in timed
        if entry.is_word and (text := clean_text(entry.text))
    ]
    said += [
        Utterance(
            start=group[0].start, end=group[-1].end, text=" ".join(word.text for word in group), words=tuple(group)
        )
        for group in _groups(sorted(words, key=lambda word: (word.start, word.end)))
    ]
    return SideText(utterances=tuple(sorted(said, key=lambda utterance: (utterance.start, utterance.end))))


def _groups(words: Sequence[Word]) -> Iterator[list[Word]]:
    group: list[Word] = []
    for word in words:
        if group and word.start - group[-1].end > PAUSE_SECONDS:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _labelled(line: str, where: str) -> tuple[str, str]:
    """Splits a line into its speaker and what is said."""
    found = _LABEL.match(line)
    if not found:
        raise UserError(
            f"{where} does not begin with a speaker ('A: hello'): give one transcript for each side",
            code="bad-record",
        )
    return next(filter(None, found.groups())).strip(), line[found.end() :]
