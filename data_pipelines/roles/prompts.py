"""`ppx-data prompts`: a language model listens in and writes a role prompt for each agent side of real calls.

What comes out is ID/roles.json beside each dialogue (see data_pipelines.records.folder), never a change of the record.
OUT/prompts.json states the settings, OUT/cache keeps all answers, OUT/report.json counts what was done and at what
price, and lists each side without an annotation with the reason.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.files import claim_folder, digest, sha256_file, write_json, write_report
from data_pipelines.llm.client import Client, NoAnswer, Question
from data_pipelines.llm.pool import in_threads
from data_pipelines.llm.settings import LLMSettings, settings_of
from data_pipelines.llm.settings import add_arguments as add_llm_arguments
from data_pipelines.llm.usage import Tokens
from data_pipelines.records.folder import ROLES, find_dialogues, load_dialogue, read_sidecar
from data_pipelines.records.schema import Dialogue
from data_pipelines.roles import questions as annotate
from data_pipelines.writer.request import SOURCES
from model.errors import UserError

GENERATOR = "ppx-data prompts 2"


@dataclass(kw_only=True, frozen=True)
class Task:
    """What is the same for all dialogues of a run."""

    client: Client
    seed: int
    on_failure: str

    def settings(self) -> dict[str, Any]:
        """What the results depend on besides the dialogues."""
        own = {"generator": GENERATOR, "seed": self.seed, "on_failure": self.on_failure}
        return own | self.client.settings.identity()


@dataclass(kw_only=True)
class Outcome:
    """What became of one dialogue: levels of annotated sides, reasons of the others."""

    id: str
    levels: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Sides whose answers kept failing, with the last reason."""
    unanswered: str = ""
    """Why the server gave no answer: nothing was written, and the next run asks again."""
    tokens: Tokens = field(default_factory=Tokens)
    """What the answers took, now or in an earlier run."""
    skipped: bool = False
    broken: str = ""
    """Why the dialogue cannot be used at all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ppx-data prompts`."""
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, metavar="DIR", help="folders of dialogues")
    parser.add_argument("--out", type=Path, required=True, help="folder for cache and report; resumed if it is ours")
    parser.add_argument("--seed", type=int, default=0, help="draws the level of each side")
    failure = "a side whose answers keep failing keeps its present prompt (default), or is no agent any more"
    parser.add_argument("--on-failure", choices=("keep", "reject"), default="keep", help=failure)
    add_llm_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """`ppx-data prompts`."""
    write_prompts(
        args.dialogues, args.out, settings_of(args), seed=args.seed, on_failure=args.on_failure, cache=args.llm_cache
    )


def write_prompts(
    folders: Sequence[Path], out: Path, settings: LLMSettings, *, seed: int, on_failure: str, cache: Path | None = None
) -> dict[str, Any]:
    """Annotates all dialogues below `folders`; answers the report, which is also written to OUT/report.json.

    Raises: UserError for sidecars or an OUT made with other settings, a server that is gone, or if no side got
    an annotation.
    """
    found = find_dialogues(folders)
    task = Task(client=Client(settings, cache or out / "cache"), seed=seed, on_failure=on_failure)
    _refuse_others(found, task.settings())
    claim_folder(out, "prompts.json", task.settings(), "prompts")
    outcomes: list[Outcome] = []
    try:
        with tqdm(total=len(found), desc="prompts", unit="dialogue", disable=None) as bar:
            for outcome in in_threads(partial(annotate_folder, task=task), found, task.client):
                outcomes.append(outcome)
                bar.set_postfix_str(task.client.usage.line(), refresh=False)
                bar.update()
    finally:
        report = summed_up(outcomes, settings)
        write_report(out, report)
    if not report["sides"]:
        first = next((f["reason"] for kind in ("failed", "unanswered", "rejected") for f in report[kind]), "no agent")
        raise UserError(f"no side got a prompt, see {out / 'report.json'}; the first reason: {first}")
    print(_summary(out, report, task.client.usage.line()))
    return report


def _refuse_others(found: Sequence[Path], settings: dict[str, Any]) -> None:
    """Raises UserError if a sidecar was made with other settings, or by others: before anything is paid for."""
    for folder in (folder for folder in found if (folder / ROLES).is_file()):
        provenance = read_sidecar(folder, ROLES).get("provenance")
        before = provenance.get("settings", {}) if isinstance(provenance, dict) else {}
        if names := [name for name, value in settings.items() if before.get(name) != value]:
            raise UserError(
                f"{folder / ROLES} was made with {names[0]} {before.get(names[0])!r}, not {settings[names[0]]!r}: "
                "delete these files to write them anew, or use the same settings"
            )


def annotate_folder(folder: Path, task: Task) -> Outcome:
    """Writes ID/roles.json of one dialogue, unless it is there and was made from the same record."""
    try:
        dialogue = load_dialogue(folder, sidecars=())
    except UserError as why:
        return Outcome(id=folder.name, broken=str(why))
    if dialogue.source in SOURCES:
        return Outcome(id=folder.name, broken=f"source {dialogue.source}: its role was written with it and stays")
    record = sha256_file(folder / "meta.json")
    roles = read_sidecar(folder, ROLES)
    done = bool(roles) and roles["provenance"].get("record") == record
    if not done:
        try:
            roles = roles_of(dialogue, task)
        except NoAnswer as why:
            return Outcome(id=folder.name, unanswered=str(why))
        roles["provenance"]["record"] = record
        write_json(folder / ROLES, roles)
    levels = [roles[side]["level"] for side in dialogue.agent_sides if side in roles]
    failed, tokens = roles["provenance"]["failed"], Tokens(**roles["provenance"]["tokens"])
    return Outcome(id=folder.name, levels=levels, failed=failed, tokens=tokens, skipped=done)


def roles_of(dialogue: Dialogue, task: Task) -> dict[str, Any]:
    """The sidecar of a dialogue. Depends on the record, the seed and the model's answers alone.

    Raises: NoAnswer if the server gives none.
    """
    drawn = annotate.draw_levels(task.seed, dialogue)
    answers: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    tokens = Tokens()
    prompts = {side: dialogue.side(side).role_prompt for side in drawn}
    for side, level in drawn.items():
        others = [prompts[other] for other in drawn if other != side]
        try:
            answers[side] = task.client.ask(_question(dialogue, side, others, task.seed), tokens)
            prompts[side] = annotate.prompt(answers[side], level)
        except NoAnswer as why:
            if not why.lasting:
                raise
            failed[side] = str(why)
    levels = _settled_levels(drawn, answers, prompts)
    roles: dict[str, Any] = {"format": 1}
    for side, answer in answers.items():
        roles[side] = {"prompt": annotate.prompt(answer, levels[side]), "level": levels[side]}
    if failed and task.on_failure == "reject":
        roles["rejected"] = failed
    provenance = {"settings": task.settings(), "drawn": drawn, "answers": answers, "failed": failed}
    roles["provenance"] = provenance | {"tokens": vars(tokens)}
    return roles


def _question(dialogue: Dialogue, side: str, others: Sequence[str], seed: int) -> Question:
    def check(answer: dict[str, Any]) -> list[str]:
        found = annotate.problems(answer, dialogue, side)
        if not found and {annotate.prompt(answer, level) for level in "bc"} & set(others):
            found = ["the other speaker has the same prompt: choose another tone or topic"]
        return found

    return Question(
        name="speaker",
        system=annotate.SYSTEM,
        user=annotate.question_text(dialogue, side),
        schema=annotate.SCHEMA,
        seed=int(digest(str(seed), dialogue.id, side)[:6], 16) * 64,
        check=check,
    )


def _settled_levels(drawn: dict[str, str], answers: dict[str, Any], prompts: dict[str, str]) -> dict[str, str]:
    """The levels that are used: no "c" without facts, and no bare sentence beside the other side's."""
    levels = {side: "b" if drawn[side] == "c" and not answers[side]["facts"] else drawn[side] for side in answers}
    bare = [side for side in drawn if prompts[side] == annotate.BARE]
    if len(bare) == 2:  # one of them kept its present prompt
        levels |= {side: "b" for side in bare if side in answers}
    return levels


def summed_up(outcomes: Sequence[Outcome], settings: LLMSettings) -> dict[str, Any]:
    """What became of all dialogues, for report.json."""
    failed = [{"id": o.id, "side": side, "reason": why} for o in outcomes for side, why in sorted(o.failed.items())]
    return {
        "dialogues": len(outcomes),
        "skipped": sum(o.skipped for o in outcomes),
        "sides": sum(len(o.levels) for o in outcomes),
        "levels": dict(sorted(Counter(level for o in outcomes for level in o.levels).items())),
        "failed": failed,
        "reasons": dict(Counter(item["reason"].split(":")[0] for item in failed).most_common()),
        "unanswered": [{"id": o.id, "reason": o.unanswered} for o in outcomes if o.unanswered],
        "rejected": [{"id": o.id, "reason": o.broken} for o in outcomes if o.broken],
        "usage": sum((o.tokens for o in outcomes), Tokens()).report(settings),
    }


def _summary(out: Path, report: dict[str, Any], usage: str) -> str:
    levels = ", ".join(f"{count} of level {level}" for level, count in report["levels"].items())
    parts = [f"{report['sides']} sides have prompts ({levels}), {report['skipped']} dialogues were done before"]
    for kind, text in (("failed", "sides failed"), ("unanswered", "dialogues got no answer: run it again")):
        parts += [f"{len(report[kind])} {text}"] if report[kind] else []
    return f"{'; '.join([*parts, usage])}: {out / 'report.json'}"
