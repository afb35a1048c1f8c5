"""How words are written in the text stream: with case and punctuation where somebody typed them, else by rules.

About 88 % of the calls were typed by BBN/WordWave as people write ("Hi, my name's Candy."); the release has these
originals beside the timed transcripts, which are in lower case and bare. Originals have no times, and their words are
matched side by side, in order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from data_pipelines.recordings.fisher.transcript import Token, Transcript
from data_pipelines.recordings.windows import Letter

_LINE = re.compile(r"^\s*([LRAB])\d?\s*:\s*(.*)$")
_SIDE: dict[str, Letter] = {"L": "A", "A": "A", "R": "B", "B": "B"}
MIN_SHARE = 0.5
"""Of the words: an original that matches fewer is of another call."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One word of an original, and what it is compared by."""

    text: str
    key: str


def parse_original(text: str) -> dict[Letter, list[Written]]:
    """The words of each side of a .txo file; lines without `L:` or `R:` go on with the speaker before them.

    Marks are taken out: [LAUGH] and other sounds, [?] after a word that was guessed, dashes where a speaker stops.
    """
    sides: dict[Letter, list[Written]] = {"A": [], "B": []}
    letter: Letter | None = None
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            letter, line = _SIDE[found[1]], found[2]
        if letter is None or line.lstrip().startswith("#"):
            continue
        for raw in re.sub(r"\[[^\]]*\]|<[^>]*>|--+|\(\(|\)\)", _gap, line).split():
            word = tidy(raw)
            if word and not raw.rstrip(".,?!;:").endswith("-"):  # "Miss-": broken off
                sides[letter].append(Written(text=word, key=key_of(word)))
    return sides


def _gap(found: re.Match[str]) -> str:
    return "" if found[0] == "[?]" else " "


def tidy(raw: str) -> str:
    """A word with at most one mark of punctuation after it, without quotes and brackets; "" if there is no word."""
    found = re.fullmatch(r"[^\w']*(.*?\w'?|.*?)([^\w']*)'?", raw)
    core, tail = (found[1].strip('"'), found[2]) if found else (raw, "")
    if not re.search(r"[A-Za-z0-9]", core):
        return ""
    if re.fullmatch(r"([A-Za-z]\.)+[A-Za-z]", core) and tail.startswith("."):  # T.V.
        core, tail = core + ".", tail[1:]
    mark = next((character for character in tail if character in ".,?!;:"), "")
    return core + mark


def key_of(word: str) -> str:
    """What two spellings of a word have in common: "T.V.," and "t._v." are both "tv"."""
    return re.sub(r"[^a-z0-9']", "", word.lower()).strip("'")


def with_original(transcript: Transcript, original: str) -> tuple[Transcript, float]:
    """Puts the written forms of an original into a transcript, word by word where the words match.

    Answers the share of the words that have one. Words that do not match keep what the rules made of them; nothing
    changes if less than half match.
    """
    sides = parse_original(original)
    tokens: dict[Letter, list[Token]] = {
        letter: [
            token
            for utterance in transcript.utterances
            if utterance.letter == letter
            for token in utterance.tokens
            if token.kind == "word"
        ]
        for letter in sides
    }
    forms = {letter: _match(tokens[letter], sides[letter]) for letter in sides}
    total = sum(map(len, tokens.values()))
    share = sum(form is not None for found in forms.values() for form in found) / total if total else 0.0
    if share < MIN_SHARE:
        return transcript, share
    upcoming = {letter: iter(found) for letter, found in forms.items()}
    utterances = []
    for utterance in transcript.utterances:
        changed = []
        for token in utterance.tokens:
            form = next(upcoming[utterance.letter]) if token.kind == "word" else None
            changed.append(replace(token, text=form) if form else token)
        utterances.append(replace(utterance, tokens=tuple(changed)))
    return replace(transcript, utterances=tuple(utterances)), share


def _match(tokens: Sequence[Token], written: Sequence[Written]) -> list[str | None]:
    """The written form of each token, None where the words differ."""
    forms: list[str | None] = [None] * len(tokens)
    ours, theirs = [key_of(token.said) for token in tokens], [word.key for word in written]
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        for n in range(block.size):
            forms[block.a + n] = written[block.b + n].text
    return forms
