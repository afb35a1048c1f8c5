"""Rules for text that a model wrote: it invents nothing and holds nothing that looks like a way to reach a person."""

import re
from collections.abc import Sequence

from data_pipelines.text.cases import ruled
from data_pipelines.text.claims import NUMBER, NUMBER_WORDS
from data_pipelines.text.words import normal_words

_NO_NAMES = frozenset("I I'm I've I'd I'll You You're You've You'd You'll Your Have AM PM OK".split())
DIGIT_WORDS = frozenset("zero oh one two three four five six seven eight nine double triple".split())
CONTACTS = {
    "an e-mail address": re.compile(
        r"\S@\S|\b(at|dot)\s+(gmail|yahoo|hotmail|outlook)\b|\bdot (com|org|net)\b", re.IGNORECASE
    ),
    "a web address": re.compile(r"https?:|www\.|\b[\w-]+\.(com|org|net|io)\b", re.IGNORECASE),
    "a social-security number": re.compile(r"\b\d{3}[ -]\d{2}[ -]\d{4}\b"),
    "a telephone number": re.compile(r"\b\d{3}[ .-]\d{4}\b|\(\d{3}\)|\b\d{3}[ .-]\d{3}[ .-]\d{4}\b"),
    "a long number": re.compile(r"\d(?:[ -]?\d){6,}"),
}
SPELLED_DIGITS = 7
"""This many digits in a row, said one by one, look like a telephone number."""
_NUMBERS = "|".join(NUMBER_WORDS)
_NUMBER_RUN = re.compile(rf"\b(?:{_NUMBERS})(?:[ -](?:{_NUMBERS}|one))*\b", re.IGNORECASE)
_NAME = re.compile(r"\b[A-Z][\w'-]*(?: [A-Z][\w'-]*)*")


def contacts(text: str) -> list[str]:
    """The kinds of contact data in a text (telephone numbers, PINs, addresses and the like), never the data itself."""
    found = [kind for kind, pattern in CONTACTS.items() if pattern.search(text)]
    run = 0
    for word in re.findall(r"[a-z]+|\d+", text.lower()):
        run = run + 1 if word in DIGIT_WORDS or (len(word) == 1 and word.isdigit()) else 0
        if run == SPELLED_DIGITS:
            found.append("a number spelled digit by digit")
    return found


def names_and_numbers(text: str) -> list[str]:
    """What a text states that can be looked up in a transcript.

    These are numbers in digits or words ("21", "twenty one"), capitalised words that do not open a sentence, with names
    of several words as one ("New York"), and places and days in lower case.
    """
    found = [*NUMBER.findall(text), *(number[0] for number in _NUMBER_RUN.finditer(text))]
    for sentence in re.split(r"(?<=[.?!])\s+", text):
        opening = re.match(r"[\w'-]*", sentence)
        for run in _NAME.findall(sentence[opening.end() if opening else 0 :]):
            name = [word for word in run.split() if word not in _NO_NAMES and word.lower() not in NUMBER_WORDS]
            found += [" ".join(name).removesuffix("'s")] if name else []
    plain = re.findall(r"\b[a-z][a-z']*", text)
    return found + [form for word, form in zip(plain, ruled(plain), strict=True) if form not in (word, *_NO_NAMES)]


def is_said(term: str, heard: Sequence[str]) -> bool:
    """True if a term stands among the words heard (from `normal_words`) as it is said: "21" as "twenty one"."""
    return within(normal_words(term), heard) or within(normal_words(f"{term}s"), heard)


def within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """True if `part` is not empty and stands in `whole` without gaps."""
    part, size = list(part), len(part)
    return bool(part) and any(list(whole[n : n + size]) == part for n in range(len(whole) - size + 1))
