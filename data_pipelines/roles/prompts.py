"""`ppx-data prompts`: a language model reads transcripts and writes a role prompt for each agent side of real calls.

What comes out is ID/roles.json beside each dialogue (see data_pipelines.records.folder); the record never changes.
OUT/prompts.json states the settings, OUT/cache keeps all answers, OUT/report.json counts what was done and at what
price, and lists each side without a description with the reason.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from data_pipelines.files import claim_folder, digest, sha256_file, write_report
from data_pipelines.llm.answers import Question
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.pool import in_threads
from data_pipelines.llm.settings import LLMSettings, settings_of
from data_pipelines.llm.settings import add_arguments as add_llm_arguments
from data_pipelines.llm.usage import Tokens
from data_pipelines.records.folder import ROLES, Role, Roles, find_dialogues, load_dialogue, read_roles
from data_pipelines.records.schema import Dialogue
from data_pipelines.records.typed import record_of
from data_pipelines.roles.descriptions import (
    SCHEMA,
    SYSTEM,
    SpeakerDescription,
    draw_levels,
    problems,
    question_text,
)
from data_pipelines.roles.topics import BARE
from data_pipelines.writer.protocol import SOURCES
from model.errors import UserError

GENERATOR = "ppx-data prompts 2"


@dataclass(kw_only=True, frozen=True)
class Task:
    """What is the same for all dialogues of a run."""

    client: Client
    seed: int
    on_failure: str
    """What becomes of a side whose answers keep failing: "keep" its present prompt, or "reject" it as an agent."""

    def settings(self) -> dict[str, Any]:
        """What the results depend on besides the dialogues."""
        own = {"generator": GENERATOR, "seed": self.seed, "on_failure": self.on_failure}
        return own | self.client.settings.identity()


@dataclass(kw_only=True, frozen=True)
class RolesOrigin:
    """How the roles of a dialogue were made: the provenance in its roles.json."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "ignore", "strict": True}
    settings: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)
    """The level that was drawn for each agent side."""
    answers: dict[str, SpeakerDescription] = field(default_factory=dict)
    """What the model said of each side."""
    failed: dict[str, str] = field(default_factory=dict)
    """Sides whose answers kept failing, with the last reason."""
    tokens: Tokens = field(default_factory=Tokens)
    """What all attempts took."""
    record: str = ""
    """Hex sha256 of the meta.json that was described."""


@dataclass(kw_only=True)
class PromptsOutcome:
    """What became of one dialogue: levels of the sides with a role, reasons of the others."""

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
    """Adds the options of `ppx-data prompts`."""
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, metavar="DIR", help="folders of dialogues")
    help_out = "folder for cache and report; a run with the same settings resumes"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=help_out)
    parser.add_argument("--seed", type=int, default=0, help="draws the level of each side")
    help_failure = "whether a side whose answers keep failing keeps its present prompt, or is rejected as an agent"
    parser.add_argument("--on-failure", choices=("keep", "reject"), default="keep", help=help_failure)
    add_llm_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data prompts`."""
    write_prompts(
        args.dialogues, args.out, settings_of(args), seed=args.seed, on_failure=args.on_failure, cache=args.llm_cache
    )


def write_prompts(
    folders: Sequence[Path], out: Path, settings: LLMSettings, *, seed: int, on_failure: str, cache: Path | None = None
) -> dict[str, Any]:
    """Writes roles.json of all dialogues below `folders`; returns the report, which is also in OUT/report.json.

    Raises: UserError for sidecars or an OUT made with other settings ("other-settings"), if no side got a prompt
    ("no-data"), or as `Client.ask`.
    """
    found = find_dialogues(folders)
    task = Task(client=Client(settings, cache or out / "cache"), seed=seed, on_failure=on_failure)
    _refuse_other_roles(found, task.settings())
    claim_folder(out, "prompts.json", task.settings(), "prompts")
    outcomes: list[PromptsOutcome] = []
    try:
        with tqdm(total=len(found), desc="prompts", unit="dialogue", disable=None) as bar:
            for outcome in in_threads(partial(add_roles, task=task), found, task.client):
                outcomes.append(outcome)
                bar.set_postfix_str(task.client.usage.line(), refresh=False)
                bar.update()
    finally:
        report = report_of(outcomes, settings)
        write_report(out, report)
    if not report["sides"]:
        first = next((f["reason"] for kind in ("failed", "unanswered", "rejected") for f in report[kind]), "no agent")
        raise UserError(f"no side got a prompt, see {out / 'report.json'}; the first reason: {first}", code="no-data")
    print(_summary(out, report, task.client.usage.line()))
    return report


def _refuse_other_roles(found: Sequence[Path], settings: Mapping[str, Any]) -> None:
    """Raises UserError if a roles.json was made with other settings, or by others: before anything is paid for."""
    for folder in found:
        roles = read_roles(folder)
        before = _origin_of(roles).settings if roles else settings
        if names := [name for name, value in settings.items() if before.get(name) != value]:
            raise UserError(
                f"{folder / ROLES} was made with {names[0]} {before.get(names[0])!r}, not {settings[names[0]]!r}: "
                "delete these files to write them anew, or use the same settings",
                code="other-settings",
            )


def _origin_of(roles: Roles) -> RolesOrigin:
    """How roles were made; without settings if another program, or a person, made them."""
    try:
        return record_of(RolesOrigin, roles.provenance)
    except ValueError:
        return RolesOrigin()


def add_roles(folder: Path, task: Task) -> PromptsOutcome:
    """Writes ID/roles.json of one dialogue, unless it is there and was made from the same record."""
    try:
        dialogue = load_dialogue(folder, sidecars=())
    except UserError as why:
        return PromptsOutcome(id=folder.name, broken=str(why))
    if dialogue.source in SOURCES:
        return PromptsOutcome(
            id=folder.name, broken=f"source {dialogue.source}: its role was written with it and stays"
        )
    record = sha256_file(folder / "meta.json")
    roles = read_roles(folder)
    done = roles is not None and _origin_of(roles).record == record
    if roles is None or not done:
        try:
            roles = roles_of(dialogue, record, task)
        except NoAnswer as why:
            return PromptsOutcome(id=folder.name, unanswered=str(why))
        roles.write(folder)
    origin = _origin_of(roles)
    levels = [role.level for side in dialogue.agent_sides if (role := roles.side(side))]
    return PromptsOutcome(id=folder.name, levels=levels, failed=origin.failed, tokens=origin.tokens, skipped=done)


def roles_of(dialogue: Dialogue, record: str, task: Task) -> Roles:
    """The roles of a dialogue, by its record (hex sha256 `record`), the seed and the model's answers alone.

    Raises: NoAnswer if the server gives none.
    """
    drawn = draw_levels(task.seed, dialogue.id, dialogue.agent_sides)
    answers: dict[str, SpeakerDescription] = {}
    failed: dict[str, str] = {}
    tokens = Tokens()
    prompts = {side: dialogue.side(side).role_prompt for side in drawn}
    for side, level in drawn.items():
        others = [prompts[other] for other in drawn if other != side]
        try:
            answers[side] = task.client.ask(_question(dialogue, side, others, task.seed), tokens)
            prompts[side] = answers[side].prompt(level)
        except NoAnswer as why:
            if not why.lasting:
                raise
            failed[side] = str(why)
    levels = _settled_levels(drawn, answers, prompts)
    roles = {side: Role(prompt=answer.prompt(levels[side]), level=levels[side]) for side, answer in answers.items()}
    origin = RolesOrigin(
        settings=task.settings(), drawn=drawn, answers=answers, failed=failed, tokens=tokens, record=record
    )
    return Roles(
        left=roles.get("left"),
        right=roles.get("right"),
        rejected=failed if task.on_failure == "reject" else {},
        provenance=asdict(origin),
    )


def _question(dialogue: Dialogue, side: str, others: Sequence[str], seed: int) -> Question[SpeakerDescription]:
    """`others` are the prompts of the other side, which must not be repeated."""

    def check(description: SpeakerDescription) -> list[str]:
        found = problems(description, dialogue, side)
        if not found and {description.prompt(level) for level in "bc"} & set(others):
            found = ["the other speaker has the same prompt: choose another tone or topic"]
        return found

    return Question(
        name="speaker",
        system=SYSTEM,
        user=question_text(dialogue, side),
        schema=SCHEMA,
        seed=int(digest(str(seed), dialogue.id, side)[:6], 16) * 64,
        read=partial(record_of, SpeakerDescription),
        check=check,
    )


def _settled_levels(
    drawn: Mapping[str, str], answers: Mapping[str, SpeakerDescription], prompts: Mapping[str, str]
) -> dict[str, str]:
    """The levels that are used: "c" needs facts, and the bare sentence never stands on both sides."""
    levels = {side: "b" if drawn[side] == "c" and not answers[side].facts else drawn[side] for side in answers}
    bare = [side for side in drawn if prompts[side] == BARE]
    if len(bare) == 2:  # One of them kept its present prompt.
        levels |= {side: "b" for side in bare if side in answers}
    return levels


def report_of(outcomes: Sequence[PromptsOutcome], settings: LLMSettings) -> dict[str, Any]:
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


def _summary(out: Path, report: Mapping[str, Any], usage: str) -> str:
    levels = ", ".join(f"{count} of level {level}" for level, count in report["levels"].items())
    parts = [f"{report['sides']} sides have prompts ({levels}), {report['skipped']} dialogues were done before"]
    for kind, text in (("failed", "sides failed"), ("unanswered", "dialogues got no answer: run it again")):
        parts += [f"{len(report[kind])} {text}"] if report[kind] else []
    return f"{'; '.join([*parts, usage])}: {out / 'report.json'}"
