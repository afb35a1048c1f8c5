"""The stretches of speech in which a listener only shows that it listens."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from data_pipelines.records.schema import Word
from data_pipelines.records.turn_taking import Stretch
from data_pipelines.text.words import BACKCHANNELS

BACKCHANNEL_SECONDS, BACKCHANNEL_WORDS = 1.2, 3
NEAR_SECONDS = 1.0
"""A backchannel is this near to the other side's speech, and this far from more of its own side."""


def backchannels(words: Sequence[Word], own: Sequence[Stretch], other: Sequence[Stretch]) -> list[Stretch]:
    """Returns those stretches of one side that are backchannels.

    They are a few words such as "mm-hm", alone, and begin while the other side speaks, or within a second after, if the
    other side continues.
    """
    starts = [word.start for word in words]
    other_starts, other_ends = [start for start, _, _ in other], [end for _, end, _ in other]
    found = []
    for n, (start, end, side) in enumerate(own):
        said = words[bisect_left(starts, start) : bisect_left(starts, end)]
        if end - start > BACKCHANNEL_SECONDS or len(said) > BACKCHANNEL_WORDS or not all(map(_is_hum, said)):
            continue
        before, after = bisect_left(other_starts, start) - 1, bisect_right(other_ends, end)
        spoke = before >= 0 and start <= other_ends[before] + NEAR_SECONDS
        goes_on = after < len(other) and other_starts[after] <= end + NEAR_SECONDS
        alone = (n == 0 or start - own[n - 1][1] >= NEAR_SECONDS) and (
            n + 1 == len(own) or own[n + 1][0] - end >= NEAR_SECONDS
        )
        if spoke and goes_on and alone:
            found.append((start, end, side))
    return found


def _is_hum(word: Word) -> bool:
    return word.text.lower().strip(".,?!") in BACKCHANNELS
