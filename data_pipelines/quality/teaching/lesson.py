"""What every measure takes: a script, written or taken from a dialogue, and the dialogue if it was spoken."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_pipelines.records.provenance import is_recorded
from data_pipelines.records.schema import SIDES, Dialogue, Script, Turn, Word
from data_pipelines.records.turn_taking import Stretch, stretches
from data_pipelines.records.turns import ROUNDING_SECONDS
from data_pipelines.text.backchannels import backchannels


@dataclass(kw_only=True, frozen=True)
class Value:
    """A measure's result, or why nothing was measured."""

    value: float | None
    margin: float | None = None
    """Half the width of the 95 % interval, where it is known."""
    note: str = ""
    """What the value is of, or why nothing was measured."""


def share_of(found: Sequence[bool], of: str, fewest: int = 20) -> Value:
    """The share that is true, unless there are fewer than `fewest`; of: what they are, for the note.

    The 95 % interval is that of Agresti and Coull, which has a width where all or none are true, too.
    """
    n, true = len(found), sum(found)
    if n < fewest:
        return Value(value=None, note=f"{n} {of}")
    middle = (true + 2) / (n + 4)
    return Value(value=true / n, margin=1.96 * (middle * (1 - middle) / (n + 4)) ** 0.5, note=f"{true} of {n} {of}")


@dataclass(kw_only=True, frozen=True)
class Lesson:
    """One script or dialogue."""

    script: Script
    """Its turns hold no backchannel where it comes from a dialogue."""
    domain: str
    """What the talk is about, such as "service/bank"; the source where no domains are stated."""
    dialogue: Dialogue | None = None
    """Word times and events; None before speech."""

    @property
    def turns(self) -> list[Turn]:
        """The turns without backchannels."""
        return [turn for turn in self.script.turns if turn.kind != "backchannel"]


def listening(dialogue: Dialogue, side: str) -> list[Stretch]:
    """The backchannels of a side: those that the writer put there, or that are found in a recorded call."""
    if not is_recorded(dialogue.provenance):
        return [(*event.span, side) for event in dialogue.events if (event.kind, event.side) == ("backchannel", side)]
    own, other = (stretches(dialogue.side(name).words, name) for name in (side, other_side(side)))
    return backchannels(dialogue.side(side).words, own, other)


def other_side(side: str) -> str:
    """The other one of "left" and "right"."""
    return SIDES[1 - SIDES.index(side)]


def floor_words(dialogue: Dialogue, side: str) -> tuple[Word, ...]:
    """The words of a side without its backchannels."""
    hums = listening(dialogue, side)
    near = ROUNDING_SECONDS + 1e-3  # events are rounded to four decimals
    return tuple(
        word
        for word in dialogue.side(side).words
        if not any(start - near <= word.start and word.end <= end + near for start, end, _ in hums)
    )


def without_backchannels(dialogue: Dialogue) -> Dialogue:
    """The dialogue with only those words that take or hold the floor."""
    left, right = (replace(dialogue.side(side), words=floor_words(dialogue, side)) for side in SIDES)
    return replace(dialogue, left=left, right=right)
