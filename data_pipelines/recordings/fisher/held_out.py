"""Splits calls into training and held-out ones, so that no agent's voice is in both.

A speaker is held out by a hash of the speaker key. A call is held out when both its speakers are; a call of one
held-out and one training speaker trains with the training speaker as agent only.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.records.split import bucket

HELD_OUT_SHARE = 0.10


@dataclass(frozen=True, kw_only=True)
class CallSides:
    """What the split needs of a call: the speaker keys of left and right, and those of them that can be the agent."""

    call: str
    speakers: tuple[str, str]
    agents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The split of each call, and the held-out speakers. `note` says where the hash could not decide alone."""

    splits: dict[str, str]
    held_out: frozenset[str]
    note: str = ""

    def may_be_agent(self, call: str, speaker: str) -> bool:
        """True if the speaker and the call are on the same side of the split."""
        return (speaker in self.held_out) == (self.splits[call] == "heldout")


def in_bucket(speaker: str) -> bool:
    """True for the tenth of all speakers that is held out, whatever the corpus."""
    return bucket(f"held out {speaker}") < HELD_OUT_SHARE


def plan_split(calls: Sequence[CallSides]) -> SplitPlan:
    """Splits by the hash; in a corpus too small to fill both splits, the call that costs least training is held out.

    With one call, or where every call has the same speaker as its only agent, there is no held-out call.
    """
    held_out = frozenset(speaker for call in calls for speaker in call.speakers if in_bucket(speaker))
    plan = SplitPlan(
        splits={call.call: "heldout" if set(call.speakers) <= held_out else "train" for call in calls},
        held_out=held_out,
    )
    if _agents(plan, calls, "train") and _agents(plan, calls, "heldout"):
        return plan
    choices = []
    for call in calls:
        for speakers in ({call.speakers[0]}, {call.speakers[1]}, set(call.speakers)):
            note = f"too few speakers for a split by hash: call fe_03_{call.call} was chosen to be held out"
            splits = {other.call: "heldout" if other.call == call.call else "train" for other in calls}
            choice = SplitPlan(splits=splits, held_out=frozenset(speakers), note=note)
            kept, held = _agents(choice, calls, "train"), _agents(choice, calls, "heldout")
            if kept and held:
                order = hashlib.sha256(call.call.encode()).hexdigest()
                choices.append((kept + held, held, order, sorted(speakers), choice))
    if not choices:
        note = "no call could be held out without its agents' voices being in training, too: all calls train"
        return SplitPlan(splits={call.call: "train" for call in calls}, held_out=frozenset(), note=note)
    return max(choices, key=lambda choice: choice[:4])[4]


def _agents(plan: SplitPlan, calls: Sequence[CallSides], split: str) -> int:
    """Returns how many sides are agents in one split."""
    return sum(
        plan.may_be_agent(call.call, speaker)
        for call in calls
        if plan.splits[call.call] == split
        for speaker in call.agents
    )
