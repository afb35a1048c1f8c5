"""`ppx-data fisher`: Fisher English calls to dialogue folders, both sides as agent, with word times.

OUT/fisher.json states the settings; OUT/.drafts/CALL.json says that a call is done and what it gave; meta.json of
each dialogue is written at the end, when the split of all calls is known. OUT/report.json counts calls and reasons.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.executor import Executor, executor_of
from data_pipelines.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder, write_json, write_line, write_report
from data_pipelines.fisher.call import SIDE, Job, Settings, import_call
from data_pipelines.fisher.layout import LICENCE_FILE, Corpus, find_corpus
from data_pipelines.fisher.split import CallSides, Plan, plan_split
from data_pipelines.fisher.tables import Tables, read_tables
from data_pipelines.fisher.windows import MAX_CLIP_SECONDS, MIN_CLIP_SECONDS, MIN_WINDOW_SECONDS
from data_pipelines.listening.align import shared_aligner
from data_pipelines.schema import Dialogue, Side
from model.errors import UserError

LDC_LICENCE = "LDC User Agreement"
DRAFTS = ".drafts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ppx-data fisher`."""
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders of the discs and transcripts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dialogues; resumed if it is ours")
    parser.add_argument("--seed", type=int, default=0, help="draws prompts and voice clips")
    row = "a training row of 163.84 s also holds the voice clip and the prompt"
    parser.add_argument(
        "--max-seconds", type=float, default=150.0, help=f"longest dialogue; a call gives several; {row}"
    )
    parser.add_argument("--voice-seconds", type=float, default=5.0, help="longest voice clip (3-10)")
    parser.add_argument("--limit", type=int, help="import only the first N calls")
    parser.add_argument("--licence", help=f"of the audio (default: the corpus' {LICENCE_FILE}, else {LDC_LICENCE!r})")
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """`ppx-data fisher`."""
    report = import_corpus(
        args.corpus,
        args.out,
        seed=args.seed,
        executor=executor_of(args),
        max_seconds=args.max_seconds,
        voice_seconds=args.voice_seconds,
        limit=args.limit,
        licence=args.licence,
    )
    print(
        f"{report['dialogues']} dialogues ({report['hours']:.2f} h; {report['heldout']} held out) "
        f"from {report['done']} calls, "
        f"{len(report['rejected'])} calls rejected, {len(report['notes'])} notes: {args.out / 'report.json'}"
    )


def import_corpus(
    roots: Sequence[Path],
    out: Path,
    *,
    seed: int,
    executor: Executor,
    max_seconds: float,
    voice_seconds: float,
    limit: int | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Imports all calls below `roots` into `out` and answers the report, also written to OUT/report.json.

    Calls that cannot be used are rejected with a reason and the others go on.
    Raises: UserError for settings out of range, a wrong folder, a foreign `out`, a missing package, or if no call
    at all gives a dialogue.
    """
    _check_numbers(max_seconds, voice_seconds, limit)
    corpus = find_corpus(roots)
    tables = read_tables(corpus.tables)
    settings = Settings(
        seed=seed, max_seconds=max_seconds, voice_seconds=voice_seconds, licence=licence or _licence(corpus)
    )
    shared_aligner()  # a missing package is told now, not once for each call
    claim_folder(out, "fisher.json", asdict(settings), "fisher")
    (out / DRAFTS).mkdir(exist_ok=True)
    jobs = _jobs(corpus, tables)[:limit]
    messages = _describe(corpus, tables, jobs)
    for message in messages:
        print(message)
    todo = [job for job in jobs if not _is_done(out, job.call)]
    for draft in tqdm(
        executor.run(partial(import_call, settings=settings, out=out), todo),
        total=len(todo),
        unit="call",
        desc="fisher",
    ):
        write_json(out / DRAFTS / f"{draft['call']}.json", draft)
    drafts = [json.loads(path.read_text("utf-8")) for path in sorted((out / DRAFTS).glob("*.json"))]
    dialogues, plan, notes = _finish(out, drafts)
    if plan.note:
        print(plan.note)
    rejected = [
        {"id": f"fe_03_{draft['call']}", "reason": draft["rejected"]} for draft in drafts if "rejected" in draft
    ]
    new = {job.call for job in todo}
    good = {draft["call"] for draft in drafts if "rejected" not in draft}
    report = {
        "done": len(good),
        "skipped": len(good - new),
        "rejected": rejected,
        "notes": notes,
        "messages": [*messages, *([plan.note] if plan.note else [])],
        "dialogues": len(dialogues),
        "heldout": sum(dialogue.split == "heldout" for dialogue in dialogues),
        "hours": round(sum(dialogue.seconds for dialogue in dialogues) / 3600, 4),
    }
    write_report(out, report)
    if not dialogues:
        reason = rejected[0]["reason"] if rejected else "no side can be the agent"
        raise UserError(f"no call gave a dialogue, see {out / 'report.json'}; the first reason: {reason}")
    return report


def _check_numbers(max_seconds: float, voice_seconds: float, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more")
    if max_seconds < MIN_WINDOW_SECONDS:
        raise UserError(f"--max-seconds {max_seconds:g}: must be {MIN_WINDOW_SECONDS:.0f} or more, e.g. 150")
    if not MIN_CLIP_SECONDS <= voice_seconds <= MAX_CLIP_SECONDS:
        raise UserError(
            f"--voice-seconds {voice_seconds:g}: must be from {MIN_CLIP_SECONDS:.0f} to {MAX_CLIP_SECONDS:.0f}"
        )


def _licence(corpus: Corpus) -> str:
    """The first line of the corpus' licence file; the discs of the LDC have none."""
    found = {path.read_text("utf-8").strip().split("\n")[0] for path in corpus.licences}
    if len(found) > 1:
        raise UserError(f"the folders have different licences ({'; '.join(sorted(found))}): import them one at a time")
    return found.pop() if found else LDC_LICENCE


def _jobs(corpus: Corpus, tables: Tables) -> list[Job]:
    rows = {call: tables.call(call) for call in corpus.calls}
    return [
        Job(
            call=call,
            audio=corpus.audio[call],
            transcript=corpus.transcripts[call],
            row=row,
            title=tables.topics.get(row.topic, ""),
        )
        for call, row in rows.items()
    ]


def _describe(corpus: Corpus, tables: Tables, jobs: Sequence[Job]) -> list[str]:
    """What was found and what is missing, a line each."""
    lines = [f"found {len(corpus.calls)} calls with audio and transcript"]
    for what, found in (("transcript", corpus.audio.keys()), ("audio", corpus.transcripts.keys())):
        if len(found) > len(corpus.calls):
            lines.append(f"{len(found) - len(corpus.calls)} calls are left out: they have no {what}")
    effects = {
        "calldata": "speakers are told apart by call and side only, topics are unknown",
        "topics": "every role prompt is the bare sentence",
        "filetable": "sexes come from calldata alone",
    }
    lines += [f"no {name} table: {effects[name]}" for name in tables.missing]
    untitled = sum(not job.title for job in jobs)
    if untitled and not {"calldata", "topics"} & set(tables.missing):
        lines.append(f"{untitled} calls have no topic title: both of their role prompts are the bare sentence")
    return lines


def _is_done(out: Path, call: str) -> bool:
    """True if a call was imported and all audio that its draft names is there; rejected calls are tried again."""
    path = out / DRAFTS / f"{call}.json"
    if not path.is_file():
        return False
    draft = json.loads(path.read_text("utf-8"))
    if "rejected" in draft:
        return False
    files = [
        out / dialogue["id"] / name
        for dialogue in draft["dialogues"]
        for name in ("audio.flac", *(f"{side}.voice.flac" for side in SIDE.values() if dialogue[side]["is_agent"]))
    ]
    return all(file.is_file() for file in files)


def _finish(out: Path, drafts: Sequence[dict[str, Any]]) -> tuple[list[Dialogue], Plan, list[dict[str, str]]]:
    """Decides the split of all calls and writes the records; the same drafts always give the same records."""
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
    notes = [note for draft in drafts for note in draft["notes"]]
    finished = []
    for call, dialogues in by_call.items():
        for dialogue in dialogues:
            settled: dict[str, Side] = {}
            for name in ("left", "right"):
                side = dialogue.side(name)
                if side.is_agent and not plan.may_be_agent(call, side.speaker):
                    side = replace(side, is_agent=False, role_prompt="", prompt_level="")
                    kind = "held out" if side.speaker in plan.held_out else "a training speaker"
                    notes.append({"id": dialogue.id, "reason": f"the {name} side is no agent: its speaker is {kind}"})
                settled[name] = side
            record = out / dialogue.id / "meta.json"
            if not any(side.is_agent for side in settled.values()):
                record.unlink(missing_ok=True)  # an earlier run over fewer calls may have kept it
                continue
            provenance = dialogue.provenance | ({"split": plan.note} if plan.note else {})
            dialogue = replace(dialogue, split=plan.splits[call], provenance=provenance)
            dialogue = replace(dialogue, left=settled["left"], right=settled["right"])
            write_line(record, dialogue.to_json())
            finished.append(dialogue)
    return finished, plan, notes
