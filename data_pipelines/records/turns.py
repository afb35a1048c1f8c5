"""The words of one side grouped into turns."""

from collections.abc import Sequence

from data_pipelines.records.schema import Word

PAUSE_SECONDS = 1.0  # a longer pause of a side ends its turn

TURN_SECONDS = 28.0  # Whisper hears at most 30 s at once


def group_turns(words: Sequence[Word]) -> list[list[Word]]:
    """Cuts the words of one side at pauses of PAUSE_SECONDS, and where a turn would be too long to hear."""
    turns: list[list[Word]] = []
    for word in words:
        if turns and word.start - turns[-1][-1].end < PAUSE_SECONDS and word.end - turns[-1][0].start < TURN_SECONDS:
            turns[-1].append(word)
        else:
            turns.append([word])
    return turns
