"""From drafts of calls to records of dialogues: the split of all calls decides who may be the agent in which."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.files import write_line
from data_pipelines.recordings.fisher.held_out import CallSides, Plan, plan_split
from data_pipelines.records.schema import Dialogue, Side


def has_audio(out: Path, dialogue: Dialogue) -> bool:
    """True if all audio of a dialogue is in its folder below OUT."""
    names = ("audio.flac", *(f"{side}.voice.flac" for side in dialogue.agent_sides))
    return all((out / dialogue.id / name).is_file() for name in names)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What all drafts of a folder come to: dialogues with their call, those left out, and the split."""

    drafts: list[dict[str, Any]]
    kept: list[tuple[str, Dialogue]]
    left_out: list[str]
    plan: Plan
    notes: list[dict[str, str]]


def settle(folder: Path) -> Result:
    """Decides the split of all calls from a folder of drafts; the same drafts always come to the same."""
    drafts = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("[0-9]*.json"))]
    by_call = {
        draft["call"]: [Dialogue.from_json(json.dumps(raw), raw["id"]) for raw in draft["dialogues"]]
        for draft in drafts
        if draft["dialogues"]
    }
    sides = [
        CallSides(
            call=call,
            speakers=(dialogues[0].left.speaker, dialogues[0].right.speaker),
            agents=tuple(sorted({d.side(side).speaker for d in dialogues for side in d.agent_sides})),
        )
        for call, dialogues in by_call.items()
    ]
    plan = plan_split(sides)
    result = Result(
        drafts=drafts, kept=[], left_out=[], plan=plan, notes=[n for draft in drafts for n in draft["notes"]]
    )
    for call, dialogues in by_call.items():
        for dialogue in dialogues:
            settled: dict[str, Side] = {}
            for name in ("left", "right"):
                side = dialogue.side(name)
                if side.is_agent and not plan.may_be_agent(call, side.speaker):
                    side = replace(side, is_agent=False, role_prompt="", prompt_level="")
                    kind = "held out" if side.speaker in plan.held_out else "a training speaker"
                    why = f"the {name} side is no agent: its speaker is {kind}"
                    result.notes.append({"id": dialogue.id, "reason": why})
                settled[name] = side
            if not any(side.is_agent for side in settled.values()):
                result.left_out.append(dialogue.id)
                continue
            provenance = dialogue.provenance | ({"split": plan.note} if plan.note else {})
            dialogue = replace(dialogue, split=plan.splits[call], provenance=provenance)
            result.kept.append((call, replace(dialogue, left=settled["left"], right=settled["right"])))
    return result


def finish(out: Path, result: Result) -> None:
    """Writes the records, and removes what has no agent, so that no stage takes it for unfinished."""
    for _, dialogue in result.kept:
        write_line(out / dialogue.id / "meta.json", dialogue.to_json())
    for name in result.left_out:
        if (out / name).is_dir():
            (out / name / "meta.json").unlink(missing_ok=True)
            shutil.rmtree(out / name)
