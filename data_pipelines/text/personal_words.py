"""Words with times and runs of them, which is what the search for personal data works on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MARKERS = {kind: f"[{kind}]" for kind in ("number", "date", "email", "address", "name", "speech")}
"""The word that stands for what was masked, by kind. `expand` gives it nothing to say."""


@dataclass(frozen=True, kw_only=True)
class SaidWord:
    """A word with its times in seconds and who says it, such as "left"."""

    text: str
    start: float
    end: float
    side: str


@dataclass(frozen=True, kw_only=True)
class PersonalRun:
    """Words `first` to `last`, inclusive, of what one side says; kind: of MARKERS."""

    kind: str
    first: int
    last: int


def as_words(text: str) -> list[SaidWord]:
    """A text as words of one side, which has no times."""
    return [SaidWord(text=part, start=0.3 * n, end=0.3 * n + 0.3, side="") for n, part in enumerate(text.split())]


def is_marker(text: str) -> bool:
    """True for a word that stands for what was masked."""
    return text.rstrip(".,!?;:") in MARKERS.values()


def plain_word(text: str) -> str:
    """The word in lower case, without punctuation around it."""
    return re.sub(r"[^\w'@. -]", " ", text.replace("\u2019", "'").lower()).strip(" .'-")


def stem_of(text: str) -> str:
    """The word in lower case without punctuation and without a genitive s."""
    return re.sub(r"'s$", "", plain_word(text))


def is_cased(words: Sequence[SaidWord]) -> bool:
    """True if names would have capitals: some word that is not "I" has one."""
    return any(word.text[:1].isupper() and not re.fullmatch(r"I('\w+)?", word.text) for word in words)
