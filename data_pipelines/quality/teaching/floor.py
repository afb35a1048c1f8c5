"""Who takes the floor after which silence, who listens aloud, and whether interruptions fit what was heard."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_pipelines.quality.teaching.lesson import Lesson, Value, floor_words, listening, other_side, share_of
from data_pipelines.records.schema import SIDES, Dialogue, Event, Word
from data_pipelines.records.turn_taking import TurnTaking, stretches, turn_taking
from data_pipelines.records.turns import ROUNDING_SECONDS
from data_pipelines.text.words import FILLERS
from data_pipelines.writer.wording import mentions
from model.config import FRAME_RATE

SILENCES = (0.2, 0.4, 0.5, 0.8, 1.2, 2.0)
"""Seconds of silence after which the hazard is reported."""
UNTIMED = "no timing: speak the scripts first"
FUNCTION_WORDS = frozenset(
    "a an the this that these those my your his her its our their some any no each every of to in on at by for from "
    "with about into over under between after before during without and or but nor so because if when while although "
    "than as whether who which whose i you he she it we they is are was were am be been being do does did have has had "
    "will would can could should shall may might must i'm i'd i'll i've it's that's there's we're you're let's not "
    "very really just like maybe".split()
)
"""Words after which a clause goes on."""


@dataclass(frozen=True)
class Silence:
    """Both sides are silent after the user spoke, until one of them speaks again."""

    seconds: float
    is_taken: bool
    """Whether the agent speaks next, with more than a backchannel."""
    is_complete: bool | None
    """Whether the user's clause was complete; None if the words do not tell."""


def is_complete(word: str, has_marks: bool) -> bool | None:
    """Whether a clause ends with this word, as it is written.

    A full stop, question mark or exclamation mark ends it. A comma, a dash, dots or a hesitation do not, nor does a
    function word without a mark. Any other bare word does not end it in a text that has marks (`has_marks`), and tells
    nothing in one that has none.
    """
    stem = word.lower().strip(".,?!-")
    if word.endswith((",", "-", "..")) or stem in FILLERS:
        return False
    if word.endswith((".", "?", "!")):
        return True
    return False if has_marks or stem in FUNCTION_WORDS else None


def silences(dialogue: Dialogue, agent: str) -> list[Silence]:
    """The silences after each stretch of the user, if the agent was silent, too; the last one has no end.

    Backchannels of either side neither end a silence nor begin one.
    """
    user = other_side(agent)
    words, agent_words = floor_words(dialogue, user), floor_words(dialogue, agent)
    own, others = stretches(words, user), stretches(agent_words, agent)
    word_starts, starts = [word.start for word in words], [start for start, _, _ in others]
    has_marks = any(word.text.endswith((".", "?", "!")) for word in words)
    found = []
    for n, (_, end, _) in enumerate(own):
        place = bisect_right(starts, end)
        if place and others[place - 1][1] > end:
            continue
        resumes = own[n + 1][0] if n + 1 < len(own) else float("inf")
        takes = starts[place] if place < len(starts) else float("inf")
        if min(resumes, takes) < float("inf"):
            last = words[bisect_right(word_starts, end) - 1]
            found.append(Silence(min(resumes, takes) - end, takes <= resumes, is_complete(last.text, has_marks)))
    return found


def hazard(found: Sequence[Silence], seconds: float) -> Value:
    """P(the agent takes the floor | nobody has spoken for `seconds` after the user)."""
    long = [silence.is_taken for silence in found if silence.seconds >= seconds - ROUNDING_SECONDS]
    return share_of(long, "silences")


def contested(dialogue: Dialogue) -> list[bool]:
    """For each barge-in that names a value of the prompt, whether no one had said that value before it began."""
    values = [fact.text for fact in dialogue.facts if fact.type not in ("phrase", "name")]
    found = []
    for event in dialogue.events:
        if event.kind == "barge_in":
            start, end = event.span
            near = 1e-3
            text = _text(w for w in dialogue.side(event.side).words if start - near <= w.start <= end + near)
            heard = _text(word for name in SIDES for word in dialogue.side(name).words if word.end <= start + near)
            if named := [value for value in values if mentions(text, value)]:
                found.append(not all(mentions(heard, value) for value in named))
    return found


def _text(words: Iterable[Word]) -> str:
    return " ".join(word.text for word in words)


def cut_gaps(dialogue: Dialogue) -> list[float]:
    """Seconds from the last word of each interrupted turn to the end of its sound; negative if the word is later.

    Only turns count whose last word has no full stop, since others may have ended by themselves.
    """
    gaps = []
    for event in dialogue.events:
        last = _last_word(dialogue, event)
        if event.stop is not None and last and not last.text.endswith((".", "?", "!")):
            gaps.append(event.stop - last.end)
    return gaps


def _last_word(dialogue: Dialogue, event: Event) -> Word | None:
    if event.kind != "barge_in" or event.stop is None:
        return None
    before = [word for word in dialogue.side(other_side(event.side)).words if word.start < event.stop]
    return before[-1] if before else None


@dataclass
class Floor:
    """Collects the timing of many dialogues."""

    turns: TurnTaking = field(default_factory=TurnTaking)
    silences: list[Silence] = field(default_factory=list)
    contested: list[bool] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    backchannels: dict[str, int] = field(default_factory=lambda: {"agent": 0, "user": 0})
    seconds: float = 0.0
    """Seconds of dialogue from the view of an agent; a call between equals has two views."""

    def add(self, talk: Lesson) -> None:
        """Adds one dialogue; a script has no timing, and a dialogue whose side says nothing no turn taking."""
        dialogue = talk.dialogue
        if dialogue is None or not (dialogue.left.words and dialogue.right.words):
            return
        self.turns.add(turn_taking(dialogue))
        self.contested += contested(dialogue)
        self.cuts += cut_gaps(dialogue)
        for agent in dialogue.agent_sides:
            self.silences += silences(dialogue, agent)
            self.seconds += dialogue.seconds
            self.backchannels["agent"] += len(listening(dialogue, agent))
            self.backchannels["user"] += len(listening(dialogue, other_side(agent)))

    def values(self) -> Mapping[str, Value]:
        """The measures, by name."""
        values: dict[str, Value] = {}
        for name, kept in (("all", (True, False, None)), ("complete", (True,)), ("incomplete", (False,))):
            part = [silence for silence in self.silences if silence.is_complete in kept]
            for seconds in SILENCES:
                key = f"takeover_{name}_{seconds:g}".replace(".", "_")
                values[key] = hazard(part, seconds) if self.seconds else Value(value=None, note=UNTIMED)
        if not self.seconds:
            names = ("pause", "gap", "overlap", "backchannels", "backchannels_agent", "backchannels_user")
            return values | {name: Value(value=None, note=UNTIMED) for name in (*names, "contested", "cut_together")}
        each = self.turns.per_minute()
        values |= {name: Value(value=each[name]) for name in ("pause", "gap", "overlap")}
        rates = {side: 60 * count / self.seconds for side, count in self.backchannels.items()}
        values["backchannels"] = Value(value=sum(rates.values()))
        values |= {f"backchannels_{side}": Value(value=rate) for side, rate in rates.items()}
        values["contested"] = share_of(self.contested, "barge-ins that name a value")
        together = [abs(gap) <= 1 / FRAME_RATE + 1e-3 for gap in self.cuts]
        return values | {"cut_together": share_of(together, "turns cut short")}
