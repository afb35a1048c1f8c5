"""Words as they are compared: normal forms, fillers, backchannels, and the number of errors between two texts."""

import re
from collections.abc import Collection, Sequence

from data_pipelines.text.spoken import expand

FILLERS = frozenset("uh um er ah hm hmm mm mmm mhm mhmm huh".split())
"""Sounds of hesitation. Whisper leaves most of them out, so that they count in no comparison."""


def normal_words(text: str) -> list[str]:
    """The words of a text as they are said: numbers in words, no case, punctuation or fillers."""
    said = " ".join(part for word in expand(text) for part in word.spoken).lower()
    return [word for word in re.sub(r"[^\w\s]", "", said).split() if word not in FILLERS]


NAME_WORDS = 3
"""A name may be heard as up to this many words, whatever they are."""


def word_errors(reference: Sequence[str], heard: Sequence[str], names: Collection[str] = ()) -> int:
    """The fewest words to insert, delete or replace to turn one text into the other (Levenshtein distance).

    A word of the reference that is among `names` matches any 0 to 3 heard words at no cost, so that the spelling of
    names does not count.
    """
    row = list(range(len(heard) + 1))  # Distances of the reference so far to every beginning of `heard`.
    for word in reference:
        above = row
        if word in names:
            row = [min(above[max(0, m - NAME_WORDS) : m + 1]) for m in range(len(above))]
            continue
        row = [above[0] + 1]
        for m, other in enumerate(heard):
            row.append(min(above[m] + (word != other), above[m + 1] + 1, row[m] + 1))
    return row[-1]


BACKCHANNELS = frozenset(
    "uh-huh uh huh mhm mm-hm mm-hmm mm hm hmm mm-mm yeah yep yes no right okay ok oh wow sure really true exactly "
    "i see gosh definitely absolutely".split()
)
"""Words of which a listener's signs, such as "yeah, right", are made."""
