"""Near-duplicate scripts: the same scenario in nearly the same words, whatever the names and numbers in them.

The measure is the Jaccard similarity of the sets of word 5-grams, with names and numbers masked, estimated by
MinHash (Broder, 1997) with 128 hashes: the standard deviation of the estimate is at most 0.045.
"""

import re

import numpy as np
from numpy.typing import NDArray

from data_pipelines.records.schema import Script
from data_pipelines.text.minhash import HASHES, Runs

SIMILAR = 0.7
_RUNS = Runs(5, multiplier=1_000_003, seed=1997)
_DIGIT = re.compile(r"[0-9]")
_TOKEN = re.compile(r"[.?!]|[A-Za-z0-9$'-]+")


class Duplicates:
    """The scripts seen so far, as sketches of 512 bytes each, by scenario."""

    def __init__(self) -> None:
        self._sketches: dict[str, NDArray[np.uint32]] = {}
        self._counts: dict[str, int] = {}

    def is_new(self, script: Script) -> bool:
        """False for a near-duplicate of a script before it; a new script is remembered."""
        sketch = sketch_of(script)
        seen, count = self._sketches.get(script.scenario), self._counts.get(script.scenario, 0)
        if seen is None:
            seen = np.empty((8, HASHES), np.uint32)
        elif ((seen[:count] == sketch).sum(axis=1) >= SIMILAR * HASHES).any():
            return False
        if count == len(seen):
            seen = np.concatenate([seen, np.empty_like(seen)])
        seen[count] = sketch
        self._sketches[script.scenario], self._counts[script.scenario] = seen, count + 1
        return True


def sketch_of(script: Script) -> NDArray[np.uint32]:
    """MinHash sketch [HASHES] of the turns' words; backchannels do not count."""
    text = " ".join(turn.text for turn in script.turns if turn.kind != "backchannel")
    return _RUNS.sketch(_RUNS.keys(masked(text) or [""])).astype(np.uint32)


def masked(text: str) -> list[str]:
    """The words in lower case; a number becomes "0", and a capitalised word inside a sentence "N"."""
    words, inside = [], False
    for token in _TOKEN.findall(text):
        if token in ".?!":
            inside = False
            continue
        if not token.isalpha() and _DIGIT.search(token):
            words.append("0")
        elif inside and token[0].isupper() and token.split("'")[0] != "I":
            words.append("N")
        else:
            words.append(token.lower())
        inside = True
    return words
