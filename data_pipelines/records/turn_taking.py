"""Turn taking of a dialogue in four numbers: speech, pauses, gaps and overlap.

Words of one side at most 0.2 s apart form a stretch of speech. Silence of both sides between two stretches is a
pause if the same side goes on, and a gap if the other one begins; both sides at once is overlap.
Source: the definitions of dGSLM (arXiv 2203.16502), which Moshi's report of natural talk follows too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_pipelines.records.schema import SIDES, Dialogue, Word
from data_pipelines.records.turns import PAUSE_SECONDS, group_turns

JOIN_SECONDS = 0.2
"""A silence of this length between two words of a side does not end a stretch, a longer one does."""

Stretch = tuple[float, float, str]
"""Start and end in seconds, and the side."""


@dataclass
class TurnTaking:
    """Totals in seconds, of one dialogue or of many added up."""

    seconds: float = 0.0
    speech: float = 0.0
    """Speech of both sides added up, so that overlap counts twice: speech - overlap + pause + gap is the time between
    the first and the last word."""
    pause: float = 0.0
    gap: float = 0.0
    overlap: float = 0.0
    offsets: list[float] = field(default_factory=list)
    """For each change of speaker, the start of the new stretch minus the end of the old one; negative is overlap."""
    overlaps: list[float] = field(default_factory=list)
    """Seconds of each stretch of overlap."""
    turns: list[float] = field(default_factory=list)
    """Seconds of each turn."""

    def add(self, other: "TurnTaking") -> None:
        """Adds another dialogue's totals, but not its lists, because those of many dialogues would be long."""
        self.seconds += other.seconds
        self.speech += other.speech
        self.pause += other.pause
        self.gap += other.gap
        self.overlap += other.overlap

    def per_minute(self) -> dict[str, float]:
        """Seconds of each kind in a minute of dialogue."""
        totals = {"speech": self.speech, "pause": self.pause, "gap": self.gap, "overlap": self.overlap}
        return {name: 60 * total / self.seconds if self.seconds else 0.0 for name, total in totals.items()}


def stretches(words: Sequence[Word], side: str, join: float = JOIN_SECONDS) -> list[Stretch]:
    """Stretches of speech of one side, in order; a silence of at most `join` seconds does not end one."""
    groups = group_turns(words, join, math.inf)
    return [(group[0].start, max(word.end for word in group), side) for group in groups]


def turn_taking(dialogue: Dialogue) -> TurnTaking:
    """Measures one dialogue by the word times of both sides."""
    result = TurnTaking(seconds=dialogue.seconds)
    floor: Stretch | None = None  # This is the stretch with the latest end so far.
    for stretch in sorted(s for side in SIDES for s in stretches(dialogue.side(side).words, side)):
        start, end, side = stretch
        result.speech += end - start
        if floor is not None:
            silence = start - floor[1]
            if silence < 0:
                result.overlaps.append(min(end, floor[1]) - start)
            elif side == floor[2]:
                result.pause += silence
            else:
                result.gap += silence
            if side != floor[2] and end > floor[1]:  # A stretch inside one of the other side takes no turn.
                result.offsets.append(silence)
        if floor is None or end > floor[1]:
            floor = stretch
    result.overlap = sum(result.overlaps)
    result.turns = [
        end - start for side in SIDES for start, end, _ in stretches(dialogue.side(side).words, side, PAUSE_SECONDS)
    ]
    return result
