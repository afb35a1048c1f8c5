"""What one recording holds of each side: its text as found, and its utterances with the times of their words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.records.schema import Word


@dataclass(frozen=True, kw_only=True)
class SideEvent:
    """Something that happens within an utterance, such as "laughter" or a "backchannel", in seconds."""

    kind: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A stretch of one side's speech, in seconds from the start of the recording.

    `words` is empty while their times are not known, and `text` is what is said then; `unwritten` are
    stretches in which sounds may be that have no words, such as words broken off; `is_silent` marks a tag such as
    [noise], which no words should stand for; `is_recognised` marks words that a recogniser heard, among others of the
    same side that somebody wrote.
    """

    start: float
    end: float
    text: str = ""
    words: tuple[Word, ...] = ()
    unwritten: tuple[tuple[float, float], ...] = ()
    events: tuple[SideEvent, ...] = ()
    is_silent: bool = False
    is_recognised: bool = False

    @property
    def is_wordless(self) -> bool:
        """True for speech that the text stream would pass over in silence."""
        return not self.words and not self.is_silent


Spoken = Mapping[str, Sequence[Utterance]]
"""The utterances of "left" and "right", both present, in order of time."""


@dataclass(frozen=True, kw_only=True)
class SideText:
    """What is known of one side: utterances, or else a text without times."""

    utterances: tuple[Utterance, ...] = ()
    text: str = ""


Sides = dict[str, SideText]
"""By side; a side that is missing is unknown, one without utterances and text is known to be silent."""
