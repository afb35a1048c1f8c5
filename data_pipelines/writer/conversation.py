"""The turns of a script while it is written, and the manners of talk that hold for every source."""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from data_pipelines.records.schema import Turn
from data_pipelines.writer.tables import table
from data_pipelines.writer.wording import SENTENCE, estimated_seconds, joined

BACKCHANNEL_WORDS = 11
"""Only a turn of at least this many words gets a backchannel."""
BACKCHANNEL_SHARE = {"agent": 0.2, "user": 0.25}
"""The chance that such a turn gets one, by who listens."""
FILLER_SHARE = 0.12
"""The chance that a turn of the user begins with a hesitation."""
# Turns that open like this sound wrong after "um".
STARTERS = (
    "Um|Uh|Oh|Ah|So|Yeah|Well|Okay|Hmm|Hm|Sorry|Wait|No|Nope|Nothing|Alright|All right|Right|Great|Good|Goodbye|"
    "Perfect|Got|Gotcha|That|Thank|Thanks|Also|And|Then|One|Another|Something|Before|Wow|Huh|Cool|Interesting|You|Bye|Take|"
    "Fair|Honestly|Hey|Actually|Hold|Let|Ha|Random|While|Can|Same|See|Stop|Lovely|Nice|Excellent|Super|Wonderful|"
    "Fantastic|Fine|Yes|Sure|Hi|Hello|Finally|Noted|Understood|Makes|Sounds|Off|Remind|Almost|Amazing|Fascinating|Really|Seriously"
)


class TurnList:
    """Turns in order. What one side says in a row becomes one turn."""

    def __init__(self, turns: Sequence[Turn] = ()) -> None:
        self.turns = list(turns)

    def copy(self) -> "TurnList":
        """Another list of the same turns, to try what comes next."""
        return TurnList(self.turns)

    @property
    def seconds(self) -> float:
        """The estimated length."""
        return estimated_seconds(self.turns)

    def agent(self, text: str) -> None:
        """The agent speaks; "" says nothing."""
        self._say("agent", text)

    def user(self, text: str, *, barges_in: bool = False) -> None:
        """The user speaks; with `barges_in` into the agent's turn before, which stops."""
        if barges_in:
            assert self.turns and self.turns[-1].speaker == "agent"
            self.turns.append(Turn(speaker="user", text=text, kind="barge_in"))
        else:
            self._say("user", text)

    def _say(self, speaker: Literal["agent", "user"], text: str) -> None:
        last = self.turns[-1] if self.turns else None
        if not text:
            return
        if last and last.speaker == speaker:
            self.turns[-1] = replace(last, text=f"{last.text} {text}")
        else:
            self.turns.append(Turn(speaker=speaker, text=text))


def with_fillers(turns: Sequence[Turn], rng: Random) -> list[Turn]:
    """Adds a hesitation such as "um" to some turns of the user."""
    fillers = table("phrases")["fillers"]
    spoken = []
    for turn in turns:
        hesitates = rng.random() < FILLER_SHARE and turn.speaker == "user" and turn.kind == "normal"
        if hesitates and not re.match(f"({STARTERS})\\b", turn.text):
            turn = replace(turn, text=joined(rng.choice(fillers), turn.text))
        spoken.append(turn)
    return spoken


def with_backchannels(turns: Sequence[Turn], rng: Random) -> list[Turn]:
    """Adds "mm-hm" and the like after some long turns: a backchannel overlaps the turn right before it.

    The first and the last turn get none, nor does a turn that is about to be interrupted, or a single question.
    """
    spoken = []
    for n, turn in enumerate(turns):
        spoken.append(turn)
        listener: Literal["agent", "user"] = "user" if turn.speaker == "agent" else "agent"
        inside = 0 < n < len(turns) - 1 and turns[n + 1].kind == turn.kind == "normal"
        only_asks = turn.text.endswith("?") and not SENTENCE.search(turn.text)
        may_get_one = inside and not only_asks and len(turn.text.split()) >= BACKCHANNEL_WORDS
        if may_get_one and rng.random() < BACKCHANNEL_SHARE[listener]:
            text = rng.choice(table("phrases")[f"{listener}_backchannel"])
            spoken.append(Turn(speaker=listener, text=text, kind="backchannel"))
    return spoken
