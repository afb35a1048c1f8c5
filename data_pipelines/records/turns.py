"""The words of one side grouped into turns."""

from collections.abc import Sequence

from data_pipelines.records.schema import Word

PAUSE_SECONDS = 1.0
"""A pause of this length does not end the turn of a side, a longer one does."""
LONGEST_SECONDS = 28.0
"""No turn lasts longer, because Whisper hears at most 30 s at once."""
ROUNDING_SECONDS = 1e-6
"""Word times are decimal: 0.9 - 0.7 is 0.2000000000000000178."""


def is_joined(silence: float, longest: float) -> bool:
    """True if a silence between two words of a side is at most `longest` seconds, so that they belong together."""
    return silence <= longest + ROUNDING_SECONDS


def group_turns(
    words: Sequence[Word], pause: float = PAUSE_SECONDS, longest: float = LONGEST_SECONDS
) -> list[list[Word]]:
    """Cuts the words of one side at pauses of more than `pause` seconds, and where a turn would last `longest` seconds.

    A pause begins where all words before it have ended.
    """
    turns: list[list[Word]] = []
    last_end = 0.0
    for word in words:
        if turns and is_joined(word.start - last_end, pause) and word.end - turns[-1][0].start < longest:
            turns[-1].append(word)
            last_end = max(last_end, word.end)
        else:
            turns.append([word])
            last_end = word.end
    return turns
