"""The words of one side grouped into turns."""

from collections.abc import Sequence

from data_pipelines.records.schema import Word

PAUSE_SECONDS = 1.0
"""A longer pause of a side ends its turn."""
LONGEST_SECONDS = 28.0
"""No turn lasts longer, because Whisper hears at most 30 s at once."""


def group_turns(
    words: Sequence[Word], pause: float = PAUSE_SECONDS, longest: float = LONGEST_SECONDS
) -> list[list[Word]]:
    """Cuts the words of one side at pauses of `pause` seconds, and where a turn would last `longest` seconds."""
    turns: list[list[Word]] = []
    for word in words:
        if turns and word.start - turns[-1][-1].end < pause and word.end - turns[-1][0].start < longest:
            turns[-1].append(word)
        else:
            turns.append([word])
    return turns
