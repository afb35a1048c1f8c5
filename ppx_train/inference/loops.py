"""Repetition: the same words again and again, or the same audio codes."""

# Shapes: T frames

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppx_train.inference.speaking import Frames, frames_of

MOST_EQUAL_WORDS = 5
"""One word may be said this often in a row, as in "no, no, no"."""
MOST_EQUAL_PHRASES = 3
"""Two or more words may be said this often in a row."""
LONGEST_PHRASE = 12
"""Words of the longest phrase that is looked for."""
LONGEST_PERIOD = 6.0
"""Seconds of the longest stretch of codes that is looked for."""
SHORTEST_LOOP = 2.0
"""Codes must repeat themselves for this long, in seconds, and for two periods."""
EQUAL_SHARE = 0.9
"""The share of the frames that must have the code of one period before."""
SOUNDING_SHARE = 0.5
"""The share of these frames that must sound: the codes of silence are equal in every model."""


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """Words that are said `count` times in a row. is_loop: whether that is too often."""

    text: str
    count: int
    is_loop: bool


def repeated_phrase(words: Sequence[str]) -> Phrase:
    """Returns the shortest phrase that is a loop, else what is said most often in a row; case and signs do not count.

    Source: the limit of 5 equal words is that of the sanity scenarios of camjac251/personaplex-webrtc.
    """
    plain = [found for word in words if (found := re.sub(r"[^\w']", "", word.lower()))]
    best = Phrase(text="", count=min(1, len(plain)), is_loop=False)
    for size in range(1, LONGEST_PHRASE + 1):
        limit, run = MOST_EQUAL_WORDS if size == 1 else MOST_EQUAL_PHRASES, 0
        for at in range(size, len(plain)):
            run = run + 1 if plain[at] == plain[at - size] else 0
            count = run // size + 1
            if count > best.count:
                text = " ".join(plain[at - size + 1 : at + 1])
                best = Phrase(text=text, count=count, is_loop=count > limit)
        if best.is_loop:
            break
    return best


def longest_code_loop(codes_T: npt.NDArray[np.int64], sounds_T: Frames) -> int:
    """Returns the frames of the longest stretch in which the codes of one codebook repeat themselves; 0 if none does.

    That is a stretch of windows as long as SHORTEST_LOOP or two periods, whichever is longer, in which EQUAL_SHARE of
    the frames have the code of one period before, and SOUNDING_SHARE sound.
    """
    longest, sounding_T = 0, np.concatenate([[0], np.cumsum(sounds_T)])
    for period in range(1, frames_of(LONGEST_PERIOD) + 1):
        window = max(frames_of(SHORTEST_LOOP), 2 * period)
        if window + period > len(codes_T):
            break
        equal_T = np.concatenate([[0], np.cumsum(codes_T[period:] == codes_T[:-period])])
        is_equal_T = equal_T[window:] - equal_T[:-window] >= EQUAL_SHARE * window
        sounds_in_T = sounding_T[period + window :] - sounding_T[period:-window]
        for is_loop, group in itertools.groupby(is_equal_T & (sounds_in_T >= SOUNDING_SHARE * window)):
            if is_loop:
                longest = max(longest, len(list(group)) - 1 + window)
    return longest
