"""What a text claims: its numbers and proper nouns."""

import re
from functools import lru_cache

NUMBER = re.compile(r"[A-Za-z]*\d+(?:[.:,]\d+)*[A-Za-z]*")
"""A number in digits: 8.50, 4:30, 12th, B472."""

NUMBER_WORDS = frozenset(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million dozen".split()
)

_NO_NAMES = frozenset("I AM PM ID OK".split())
"""Capitalised words that claim nothing."""


@lru_cache(maxsize=1 << 12)
def claims(text: str, names: frozenset[str]) -> tuple[str, ...]:
    """Returns the numbers and proper nouns of a text: digits, number words, and capitalised words that are names.

    At the start of a sentence every word has a capital, so that only `names` count there.
    """
    found = NUMBER.findall(text)
    for sentence in re.split(r"(?<=[.?!])\s+", text):
        for n, token in enumerate(re.findall(r"[A-Za-z][\w'-]*", sentence)):
            word = re.sub(r"'\w+$", "", token)
            if word.lower() in NUMBER_WORDS or (word[0].isupper() and word not in _NO_NAMES and (n or word in names)):
                found.append(word)
    return tuple(found)
