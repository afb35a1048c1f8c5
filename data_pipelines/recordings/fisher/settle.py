"""Makes records of dialogues from drafts of calls: the split of all calls decides who may be the agent in which."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.files import write_line
from data_pipelines.recordings.cut import voice_file
from data_pipelines.recordings.drafts import Note
from data_pipelines.recordings.fisher.held_out import CallSides, SplitPlan, plan_split
from data_pipelines.recordings.fisher.job import CallDraft
from data_pipelines.records.schema import SIDES, Dialogue, Side


@dataclass(frozen=True, kw_only=True)
class SettledCalls:
    """What all drafts come to: dialogues with their call, the ids of those left out, the split, and notes."""

    kept: list[tuple[str, Dialogue]]
    left_out: list[str]
    plan: SplitPlan
    notes: list[Note]

    def finish(self, out: Path) -> None:
        """Writes the records, and removes voices of sides that are no agents, and dialogues without an agent.

        No stage may take such a dialogue for unfinished, and nobody's voice is kept without a use.
        """
        for _, dialogue in self.kept:
            write_line(out / dialogue.id / "meta.json", dialogue.to_json())
            for side in set(SIDES) - {*dialogue.agent_sides}:
                (out / dialogue.id / voice_file(side)).unlink(missing_ok=True)
        for name in self.left_out:
            if (out / name).is_dir():
                (out / name / "meta.json").unlink(missing_ok=True)
                shutil.rmtree(out / name)


def settle(drafts: Collection[CallDraft]) -> SettledCalls:
    """Decides the split of all calls; the same drafts always come to the same."""
    plan = plan_split([_sides(draft) for draft in drafts if draft.dialogues])
    settled = SettledCalls(kept=[], left_out=[], plan=plan, notes=[note for draft in drafts for note in draft.notes])
    for draft in drafts:
        for dialogue in draft.dialogues:
            sides: dict[str, Side] = {}
            for name in SIDES:
                side = dialogue.side(name)
                if side.is_agent and not plan.may_be_agent(draft.call, side.speaker):
                    side = replace(side, is_agent=False, role_prompt="", prompt_level="")
                    kind = "held out" if side.speaker in plan.held_out else "a training speaker"
                    why = f"the {name} side is no agent: its speaker is {kind}"
                    settled.notes.append(Note(id=dialogue.id, reason=why))
                sides[name] = side
            if not any(side.is_agent for side in sides.values()):
                settled.left_out.append(dialogue.id)
                continue
            provenance = dialogue.provenance | ({"split": plan.note} if plan.note else {})
            for name in ("voice_spans", "row_frames"):
                own = provenance.get(name, {})
                provenance[name] = {side: value for side, value in own.items() if sides[side].is_agent}
            dialogue = replace(dialogue, split=plan.splits[draft.call], provenance=provenance)
            settled.kept.append((draft.call, replace(dialogue, left=sides["left"], right=sides["right"])))
    return settled


def _sides(draft: CallDraft) -> CallSides:
    """Returns what the split needs of a call."""
    first = draft.dialogues[0]
    agents = {dialogue.side(side).speaker for dialogue in draft.dialogues for side in dialogue.agent_sides}
    return CallSides(call=draft.call, speakers=(first.left.speaker, first.right.speaker), agents=tuple(sorted(agents)))
