"""Writes words as somebody typed them, with case and punctuation; where nobody did, rules have to do.

About 88 % of the calls were typed by BBN/WordWave as people write ("Hi, my name's Candy."). The release has these
originals beside the timed transcripts, which are in lower case and bare. Originals have no times, so the words of each
side are matched in their order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from data_pipelines.recordings.fisher.timed_lines import Token, Transcript
from data_pipelines.records.schema import SIDES

_LINE = re.compile(r"^\s*([LRAB])\d?\s*:\s*(.*)$")
_SIDE = {"L": "left", "A": "left", "R": "right", "B": "right"}
MIN_SHARE = 0.5
"""Smallest share of the words that must match; with fewer the original is of another call."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One word of an original, and the key by which it is compared."""

    text: str
    key: str


def parse_original(text: str) -> dict[str, list[Written]]:
    """Returns the words of each side of a .txo file; lines without `L:` or `R:` go on with the speaker before them.

    Marks are taken out: [LAUGH] and other sounds, [?] after a word that was guessed, dashes where a speaker stops.
    """
    sides: dict[str, list[Written]] = {side: [] for side in SIDES}
    side = ""
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            side, line = _SIDE[found[1]], found[2]
        if not side or line.lstrip().startswith("#"):
            continue
        for raw in re.sub(r"\[[^\]]*\]|<[^>]*>|\{[^}]*\}|--+|\(\(|\)\)", _gap, line).split():
            word = tidy(raw)
            if word and not raw.rstrip(".,?!;:").endswith("-"):  # "Miss-" is broken off.
                sides[side].append(Written(text=word, key=key_of(word)))
    return sides


def _gap(found: re.Match[str]) -> str:
    return "" if found[0] == "[?]" else " "


def tidy(raw: str) -> str:
    """Returns a word with at most one mark of punctuation after it, without quotes and brackets; "" for no word."""
    found = re.fullmatch(r"[^\w']*(.*?\w'?|.*?)([^\w']*)'?", raw)
    core, tail = (found[1].strip('"'), found[2]) if found else (raw, "")
    if not re.search(r"[A-Za-z0-9]", core):
        return ""
    if re.fullmatch(r"([A-Za-z]\.)+[A-Za-z]", core) and tail.startswith(
        "."
    ):  # The full stop of "T.V." is part of the word.
        core, tail = core + ".", tail[1:]
    mark = next((character for character in tail if character in ".,?!;:"), "")
    return core + mark


def key_of(word: str) -> str:
    """Returns what two spellings of a word have in common; "T.V.," and "t._v." are both "tv"."""
    return re.sub(r"[^a-z0-9']", "", word.lower()).strip("'")


def with_original(transcript: Transcript, original: str) -> tuple[Transcript, float]:
    """Puts the written forms of an original into a transcript, word by word where the words match.

    Also returns the share of the words that match. Words that do not match keep what the rules made of them; nothing
    changes if less than half match.
    """
    sides = parse_original(original)
    tokens = {
        side: [token for line in transcript.lines if line.side == side for token in line.tokens if token.kind == "word"]
        for side in SIDES
    }
    forms = {side: _match(tokens[side], sides[side]) for side in SIDES}
    total = sum(map(len, tokens.values()))
    share = sum(form is not None for found in forms.values() for form in found) / total if total else 0.0
    if share < MIN_SHARE:
        return transcript, share
    upcoming = {side: iter(found) for side, found in forms.items()}
    lines = []
    for line in transcript.lines:
        changed = []
        for token in line.tokens:
            form = next(upcoming[line.side]) if token.kind == "word" else None
            changed.append(replace(token, text=form) if form else token)
        lines.append(replace(line, tokens=tuple(changed)))
    return replace(transcript, lines=tuple(lines)), share


def _match(tokens: Sequence[Token], written: Sequence[Written]) -> list[str | None]:
    """Returns the written form of each token, None where the words differ."""
    forms: list[str | None] = [None] * len(tokens)
    ours, theirs = [key_of(token.said) for token in tokens], [word.key for word in written]
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        for n in range(block.size):
            forms[block.a + n] = written[block.b + n].text
    return forms
