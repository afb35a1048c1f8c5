"""Reads Fisher's transcripts: lines `start end A: text` in lower case, timed by utterance only.

Markers are `(( ))` around what the transcriber was not sure of (in calls of BBN/WordWave, a whole line that did not fit
the audio well), [laughter] and other sounds, `word-` for a word broken off, and `t._v.` for spelled letters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipelines.recordings.times import overlapping
from data_pipelines.records.schema import SIDES
from data_pipelines.text.cases import ruled
from data_pipelines.text.words import BACKCHANNELS
from model.errors import UserError

SIDE_OF = {"A": "left", "B": "right"}
"""The channels by Fisher's letters, which go no further than this folder."""
_LINE = re.compile(r"^\s*(-?[0-9.]+)\s+(-?[0-9.]+)\s+([AB]):\s*(.*?)\s*$")
_LAUGHS = ("laughter", "laugh")
_SOUNDS = (*_LAUGHS, "noise", "mn", "sigh", "cough", "breath", "lipsmack")
_TAG = re.compile(r"\[[^\[\]]*\]|<[^<>]*>|\{[^{}]*\}")
_PIECE = re.compile(_TAG.pattern + r"|[<{\[]?[^\[\]<>{}\s]+[>}\]]?")  # The bracket of a tag may be missing.
MAX_UTTERANCE_SECONDS = 60.0
"""Real utterances end after at most half a minute; a longer one has a wrong time."""
MAX_FAULTY_SHARE = 0.2
"""Largest share of lines with impossible times; with more, the times of the other lines cannot be trusted either."""
_REPAIRS = {("11487", 31.09, 234.06): 231.09}
"""Faults of the release: the start that is meant, by call and the line's times as printed."""
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-",
                        "\u2026": " ", "\ufffd": "", "\ufeff": ""})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Token:
    """One word: `text` as it goes into the text stream, `said` as the transcript has it, for the aligner.

    A broken-off word is aligned but not written; `laugh` is a sound.
    """

    text: str
    said: str = ""
    kind: Literal["word", "partial", "laugh"] = "word"


@dataclass(frozen=True, kw_only=True)
class TimedLine:
    """One utterance of "left" or "right".

    `is_certain` is False where the transcriber marked `((`. Such lines are audible; their tokens are the words around
    the mark and the guess inside of it, and the aligner decides whether they were said. `is_gap` marks a line that is
    nothing but `(( ))`. `has_sounds` says that there is more to hear than words: [noise], or what was not understood.
    """

    start: float
    end: float
    side: str
    tokens: tuple[Token, ...]
    is_certain: bool = True
    is_gap: bool = False
    has_sounds: bool = False

    @property
    def said(self) -> tuple[Token, ...]:
        """The tokens that the aligner looks for: all but laughs."""
        return tuple(token for token in self.tokens if token.kind != "laugh")

    @property
    def is_backchannel(self) -> bool:
        """True for one to three words such as "uh-huh", "yeah right"."""
        words = [token.said.lower() for token in self.tokens if token.kind == "word"]
        return self.is_certain and 0 < len(words) <= 3 and all(word in BACKCHANNELS for word in words)


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The lines of one call by start.

    `num_faulty` lines had impossible times and were left out; `num_overlapping` overlap another line of their speaker
    and lost their words; `num_strange` have another shape and were ignored.
    """

    lines: tuple[TimedLine, ...]
    transcriber: str
    num_faulty: int
    num_overlapping: int = 0
    num_strange: int = 0


def read_text(path: Path) -> str:
    """Reads a text file of the release: UTF-8 or, as some files are, Windows-1252; quotes and dashes become plain.

    Raises: UserError if it cannot be read (code "unreadable").
    """
    try:
        raw = path.read_bytes()
    except OSError as why:
        raise UserError(
            f"{path}: cannot be read ({why.strerror}): copy it again from the release", code="unreadable"
        ) from why
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    return text.translate(_PLAIN)


def read_transcript(path: Path, call: str) -> Transcript:
    """Reads one transcript tolerantly: lines of another shape are ignored, impossible times counted.

    Raises: UserError if the file cannot be read (code "unreadable"), is of another call, holds no utterance, or has too
    many impossible times ("bad-transcript").
    """
    text = read_text(path)
    named = re.search(r"^#\s*fe_03_(\d{5})", text, re.MULTILINE)
    if named and named[1] != call:
        raise UserError(
            f"{path}: says that it is the transcript of call {named[1]}: copy it again from the release",
            code="bad-transcript",
        )
    transcript = parse_transcript(text, call)
    if not transcript.lines and not transcript.num_faulty:
        raise UserError(
            f"{path}: holds no line of the form `12.34 15.67 A: text`: copy it again from the release",
            code="bad-transcript",
        )
    bad, total = transcript.num_faulty + transcript.num_overlapping, len(transcript.lines) + transcript.num_faulty
    if bad > MAX_FAULTY_SHARE * total:
        raise UserError(
            f"{path}: {bad} of {total} lines have impossible times (reversed, or two at once by one speaker): "
            "copy it again from the release",
            code="bad-transcript",
        )
    return transcript


def parse_transcript(text: str, call: str) -> Transcript:
    """Parses the text of one transcript; the top of this file describes the format."""
    lines, num_faulty, num_strange, transcriber = [], 0, 0, "unknown"
    for line in text.splitlines():
        if line.startswith("#"):
            found = re.match(r"#\s*Transcribed (?:at|by) (?:the )?(.+?)\s*$", line)
            transcriber = found[1] if found else transcriber
            continue
        parts = _LINE.match(line)
        if not parts:
            num_strange += bool(line.strip())
            continue
        times = _times(parts[1], parts[2], call)
        if times is None:
            num_faulty += 1
            continue
        is_certain = "((" not in parts[4] and "))" not in parts[4]
        tokens = parse_tokens(re.sub(r"\(\(|\)\)", " ", parts[4]))
        if is_certain and not tokens and not parts[4].strip():
            continue  # An empty line says nothing, and neither does its speaker.
        lines.append(
            TimedLine(
                start=times[0],
                end=times[1],
                side=SIDE_OF[parts[3]],
                tokens=tokens,
                is_certain=is_certain,
                is_gap=not is_certain and not tokens,
                has_sounds=not is_certain or any(map(_is_sound, _PIECE.findall(parts[4]))),
            )
        )
    lines.sort(key=lambda line: (line.start, line.end, line.side))
    num_overlapping = _mute_overlapping(lines)
    return Transcript(
        lines=tuple(lines),
        transcriber=transcriber,
        num_faulty=num_faulty,
        num_overlapping=num_overlapping,
        num_strange=num_strange,
    )


def _times(first: str, last: str, call: str) -> tuple[float, float] | None:
    """Returns start and end of a line, or None if they are impossible."""
    try:
        start, end = float(first), float(last)
    except ValueError:  # "12.34.56" matches the pattern but is no number.
        return None
    start = _REPAIRS.get((call, start, end), start)
    return (start, end) if 0 <= start < end <= start + MAX_UTTERANCE_SECONDS else None


def _mute_overlapping(lines: list[TimedLine]) -> int:
    """Takes the words from lines that overlap another one of the same speaker; returns how many did."""
    muted: list[int] = []
    for side in SIDES:
        own = [n for n, line in enumerate(lines) if line.side == side and line.tokens]
        muted += [own[m] for m in overlapping([(lines[n].start, lines[n].end) for n in own])]
    for n in muted:
        lines[n] = replace(lines[n], tokens=(), is_certain=False)
    return len(muted)


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Splits one line's text into tokens, with the case that rules can restore (see `cases.ruled`)."""
    tokens: list[Token] = []
    for piece in _PIECE.findall(text):
        raw, is_tag = piece.strip("[]<>{}"), _is_sound(piece)
        if is_tag and raw.strip().lower() in _LAUGHS:
            tokens.append(Token(text="", kind="laugh"))
        elif is_tag or not re.search(r"[A-Za-z0-9]", raw):
            continue  # These are [noise], mn], {breath}, [baby crying] and punctuation.
        elif raw.endswith("-") or (raw.startswith("-") and len(raw) > 1):
            tokens.append(Token(text="", said=raw.strip("-"), kind="partial"))
        else:
            tokens.append(Token(text="", said=raw.replace("_", "").strip('%+~*^&@#"()'), kind="word"))
    tokens = [token for token in tokens if token.kind == "laugh" or re.search(r"[A-Za-z0-9]", token.said)]
    return tuple(_with_rules(tokens))


def _is_sound(piece: str) -> bool:
    """True for a tag such as [noise], one bracket of which may be missing."""
    raw = piece.strip("[]<>{}")
    return bool(_TAG.fullmatch(piece)) or (raw != piece and raw.lower() in _SOUNDS)


def _with_rules(tokens: Sequence[Token]) -> list[Token]:
    """Fills in `text`; the first word of a line that does not begin in mid-word gets a capital."""
    forms = iter(ruled([token.said for token in tokens if token.kind == "word"]))
    written = [replace(token, text=next(forms)) if token.kind == "word" else token for token in tokens]
    first = next((n for n, token in enumerate(written) if token.kind != "laugh"), None)
    if first is not None and written[first].kind == "word":
        text = written[first].text
        written[first] = replace(written[first], text=text[0].upper() + text[1:])
    return written
