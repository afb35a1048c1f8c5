"""Fisher transcripts: lines `start end A: text`, lower case, timed by utterance only.

Markers: `(( ))` what the transcriber was not sure of, [laughter] and other sounds, `word-` a word broken off,
`t._v.` spelled letters.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import UserError

Letter = Literal["A", "B"]

_LINE = re.compile(r"^\s*([0-9.]+)\s+([0-9.]+)\s+([AB]):\s*(.*?)\s*$")
_LAUGH = ("[laughter]", "[laugh]")
# Real utterances end after at most half a minute; a longer one has a wrong time.
MAX_UTTERANCE_SECONDS = 60.0
# Faults of the release, by call: the line's start as printed and as meant.
_REPAIRS = {("11487", 31.09, 234.06): 231.09}
BACKCHANNELS = frozenset(
    "uh-huh uh huh mhm mm-hm mm-hmm mm hm hmm mm-mm yeah yep yes no right okay ok oh wow sure really true exactly "
    "i see gosh definitely absolutely".split()
)
_PROPER = {
    name: name.capitalize()
    for name in "monday tuesday wednesday thursday friday saturday sunday january february april june july august "
    "september october november december america american english".split()
}


@dataclass(frozen=True, kw_only=True)
class Token:
    """A word as it goes into the text stream; a broken-off word is aligned but not written; `laugh` is a sound."""

    text: str
    kind: Literal["word", "partial", "laugh"] = "word"


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line. `is_certain` is False where the transcriber marked `((`: such lines are audible but have no words."""

    start: float
    end: float
    letter: Letter
    tokens: tuple[Token, ...]
    is_certain: bool = True

    @property
    def is_backchannel(self) -> bool:
        """True for one to three words such as "uh-huh", "yeah right"."""
        words = [token.text.lower().strip(".,") for token in self.tokens if token.kind == "word"]
        return self.is_certain and 0 < len(words) <= 3 and all(word in BACKCHANNELS for word in words)


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The utterances of one call by start; `num_faulty` lines had impossible times and were left out."""

    utterances: tuple[Utterance, ...]
    transcriber: str
    num_faulty: int


def read_transcript(path: Path, call: str) -> Transcript:
    """Reads one transcript tolerantly: lines of another shape are ignored, impossible times counted.

    Raises: UserError if the file cannot be read or holds no utterance.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as why:
        raise UserError(f"{path}: cannot be read ({why.strerror}): copy it again from the release") from why
    transcript = parse_transcript(text, call)
    if not transcript.utterances:
        raise UserError(f"{path}: holds no line of the form `12.34 15.67 A: text`: copy it again from the release")
    return transcript


def parse_transcript(text: str, call: str) -> Transcript:
    """Parses the text of one transcript; see the top of the file for the format."""
    utterances, num_faulty, transcriber = [], 0, "unknown"
    for line in text.splitlines():
        if line.startswith("#"):
            found = re.match(r"#\s*Transcribed (?:at|by) (?:the )?(.+?)\s*$", line)
            transcriber = found[1] if found else transcriber
            continue
        parts = _LINE.match(line)
        if not parts:
            continue
        try:
            start, end = float(parts[1]), float(parts[2])
        except ValueError:  # 12.34.56
            num_faulty += 1
            continue
        start = _REPAIRS.get((call, start, end), start)
        if not start < end <= start + MAX_UTTERANCE_SECONDS:
            num_faulty += 1
            continue
        letter: Letter = "A" if parts[3] == "A" else "B"
        is_certain = "((" not in parts[4] and "))" not in parts[4]
        tokens = parse_tokens(parts[4]) if is_certain else ()
        if is_certain and not tokens and not parts[4].strip():
            continue  # an empty line says nothing, and neither does its speaker
        utterances.append(Utterance(start=start, end=end, letter=letter, tokens=tokens, is_certain=is_certain))
    utterances.sort(key=lambda utterance: (utterance.start, utterance.end, utterance.letter))
    return Transcript(utterances=tuple(utterances), transcriber=transcriber, num_faulty=num_faulty)


def parse_tokens(text: str) -> tuple[Token, ...]:
    """One line's text -> tokens, with the case that rules can restore: I, the first word, days, months, T.V."""
    tokens: list[Token] = []
    for raw in re.sub(r"(\[[^\]]*\]|<[^>]*>)", r" \1 ", text).split():
        if raw.lower() in _LAUGH:
            tokens.append(Token(text="", kind="laugh"))
        elif raw[0] in "[<" or not re.search(r"[A-Za-z0-9]", raw):
            continue  # [noise], [mn], [sigh], [cough], [breath], [lipsmack]
        elif raw.endswith("-") or (raw.startswith("-") and len(raw) > 1):
            tokens.append(Token(text=raw.strip("-"), kind="partial"))
        else:
            tokens.append(Token(text=_written(raw.replace("_", "")), kind="word"))
    first = next((n for n, token in enumerate(tokens) if token.kind == "word"), None)
    if first is not None and not any(token.kind == "partial" for token in tokens[:first]):
        word = tokens[first].text
        tokens[first] = Token(text=word[0].upper() + word[1:])
    return tuple(token for token in tokens if token.kind == "laugh" or re.search(r"[A-Za-z0-9]", token.text))


def _written(word: str) -> str:
    if re.fullmatch(r"i('(m|d|ll|ve|s))?", word):
        return "I" + word[1:]
    if re.fullmatch(r"([a-z]\.)+('?s)?", word):  # t.v. -> T.V., c.d.s -> C.D.s
        return re.sub(r"[a-z]\.", lambda found: found[0].upper(), word)
    stem, mark, rest = word.partition("'")
    return _PROPER.get(stem, stem) + mark + rest
