"""Words as they are compared: normal forms, fillers, backchannels, and the number of errors between two texts."""

import re
from collections.abc import Sequence

from data_pipelines.text.spoken import expand

FILLERS = frozenset("uh um er ah hm hmm mm mmm mhm mhmm huh".split())
"""Sounds of hesitation. Whisper leaves most of them out, so that they count in no comparison."""


def normal_words(text: str) -> list[str]:
    """The words of a text as they are said: numbers in words, no case, punctuation or fillers."""
    said = " ".join(part for word in expand(text) for part in word.spoken).lower()
    return [word for word in re.sub(r"[^\w\s]", "", said).split() if word not in FILLERS]


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """The fewest words to insert, delete or replace to turn one into the other (Levenshtein distance)."""
    row = list(range(len(heard) + 1))  # Distances of the reference so far to every beginning of `heard`.
    for n, word in enumerate(reference, 1):
        above, row = row, [n]
        for m, other in enumerate(heard):
            row.append(min(above[m] + (word != other), above[m + 1] + 1, row[m] + 1))
    return row[-1]


BACKCHANNELS = frozenset(
    "uh-huh uh huh mhm mm-hm mm-hmm mm hm hmm mm-mm yeah yep yes no right okay ok oh wow sure really true exactly "
    "i see gosh definitely absolutely".split()
)
"""Words of which a listener's signs, such as "yeah, right", are made."""
