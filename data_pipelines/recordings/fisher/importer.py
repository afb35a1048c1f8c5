"""`ppx-data fisher`: Fisher English calls to dialogue folders, both sides as agent, with word times.

OUT/fisher.json states the settings; OUT/.drafts/CALL.json says that a call is done and what it gave; meta.json of
each dialogue is written at the end, when the split of all calls is known (settle.py). OUT/report.json counts calls and
reasons.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder, write_json, write_report
from data_pipelines.listening.align import shared_aligner
from data_pipelines.recordings.budget import dialogue_seconds, token_counter
from data_pipelines.recordings.fisher.bandwidth import check_command
from data_pipelines.recordings.fisher.call import import_call
from data_pipelines.recordings.fisher.call_tables import Tables, read_tables
from data_pipelines.recordings.fisher.job import Filters, Job, Settings
from data_pipelines.recordings.fisher.layout import LICENCE_FILE, Corpus, find_corpus
from data_pipelines.recordings.fisher.settle import Result, finish, has_audio, settle
from data_pipelines.recordings.fisher.transcript import read_text
from data_pipelines.recordings.windows import MAX_CLIP_SECONDS, MIN_CLIP_SECONDS, MIN_WINDOW_SECONDS, Limits
from data_pipelines.roles.topics import BARE
from data_pipelines.sound.audio import RESAMPLERS
from model.errors import UserError

LDC_LICENCE = "LDC User Agreement"
DRAFTS = ".drafts"
LONGEST_TIMEOUT = 86_400.0
SHORTEST_VOICE = MIN_CLIP_SECONDS + 0.2
"""Clips end after words: between the least and the longest clip there must be room for the end of one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ppx-data fisher`."""
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders of the discs and transcripts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dialogues; resumed if it is ours")
    parser.add_argument("--seed", type=int, default=0, help="draws prompts and voice clips")
    parser.add_argument("--limit", type=int, help="import only the first N calls")
    parser.add_argument("--licence", help=f"of the audio (default: the corpus' {LICENCE_FILE}, else {LDC_LICENCE!r})")
    size = parser.add_argument_group("size", "a training row of 2048 frames also holds the voice clip and the prompt")
    size.add_argument(
        "--max-seconds", type=float, help="longest dialogue (default: what a row leaves); a call gives several"
    )
    size.add_argument("--voice-seconds", type=float, default=5.0, help="longest voice clip (3.2-10)")
    size.add_argument("--prompt-tokens", type=int, default=128, help="frames kept free for the role prompt")
    size.add_argument(
        "--tokenizer", type=Path, help="SentencePiece model to count prompt tokens by (default: estimate)"
    )
    choice = parser.add_argument_group(
        "filters", "of calls (grades) and of the sides that may be the agent; off by default"
    )
    choice.add_argument("--min-signal-grade", type=float, help="least SIG_GRADE of a call")
    choice.add_argument("--min-conversation-grade", type=float, help="least CNV_GRADE of a call")
    choice.add_argument("--native", action="store_true", help="agents are native speakers of American English only")
    choice.add_argument("--sex", choices=("f", "m"), default="", help="agents are of this sex only")
    choice.add_argument("--min-speech", type=float, default=4.0, help="seconds the agent says in a window at least")
    choice.add_argument("--max-uncertain", type=float, default=0.1, help="share of the agent's speech without words")
    sound = parser.add_argument_group("sound")
    sound.add_argument("--resampler", choices=sorted(RESAMPLERS), default="soxr-hq", help="8 kHz to 24 kHz")
    sound.add_argument(
        "--bandwidth-extension",
        default="",
        metavar="COMMAND",
        help="run for each call instead, e.g. 'extend {input} {output}': stereo WAV to stereo WAV of 24 kHz",
    )
    sound.add_argument("--bandwidth-timeout", type=float, default=600.0, help="seconds it may take for one call")
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """`ppx-data fisher`."""
    most = dialogue_seconds(args.voice_seconds, args.prompt_tokens)
    max_seconds = most if args.max_seconds is None else args.max_seconds
    settings = Settings(
        seed=args.seed,
        limits=Limits(max_seconds=max_seconds, min_speech=args.min_speech, max_uncertain=args.max_uncertain),
        voice_seconds=args.voice_seconds,
        licence=(args.licence or "").strip(),
        filters=Filters(
            min_signal=args.min_signal_grade,
            min_conversation=args.min_conversation_grade,
            native=args.native,
            sex=args.sex,
        ),
        prompt_tokens=args.prompt_tokens,
        tokenizer=str(args.tokenizer or ""),
        resampler=args.resampler,
        bandwidth_extension=args.bandwidth_extension,
        bandwidth_timeout=args.bandwidth_timeout,
    )
    report = import_corpus(args.corpus, args.out, settings, executor=executor_of(args), limit=args.limit)
    print(
        f"{report['dialogues']} dialogues ({report['hours']:.2f} h; {report['heldout']} held out) "
        f"from {report['done']} calls, {report['skipped']} of them there before, "
        f"{len(report['rejected'])} calls rejected, {len(report['notes'])} notes: {args.out / 'report.json'}"
    )


def import_corpus(
    roots: Sequence[Path], out: Path, settings: Settings, *, executor: Executor, limit: int | None = None
) -> dict[str, Any]:
    """Imports all calls below `roots` into `out` and answers the report, also written to OUT/report.json.

    Without a licence in the settings the corpus' own is taken. Calls that cannot be used are rejected with a reason
    and the others go on. `done` counts the calls of the folder, `skipped` those of an earlier run.
    Raises: UserError for settings out of range, a wrong folder, a foreign `out`, a missing package, or if no call
    at all gives a dialogue.
    """
    _check_settings(settings, limit)
    corpus = find_corpus(roots)
    tables = read_tables(corpus.tables)
    _check_filters(settings.filters, tables)
    settings = replace(settings, licence=settings.licence or _licence(corpus))
    shared_aligner()  # a missing package is told now, not once for each call
    claim_folder(out, "fisher.json", asdict(settings), "fisher")
    (out / DRAFTS).mkdir(exist_ok=True)
    all_jobs = jobs_of(corpus, tables)
    jobs = all_jobs[:limit]
    messages = _describe(corpus, tables, jobs)
    for message in messages:
        print(message)
    work = partial(import_call, settings=settings, out=out)
    todo = [job for job in jobs if not _is_drafted(out, job.call)]
    _draft(out, executor.run(work, todo, lost=_lost), len(todo))
    result = settle(out / DRAFTS)
    missing = {call for call, dialogue in result.kept if not has_audio(out, dialogue)}
    if missing:  # somebody deleted it, or an earlier run over fewer calls had no use for it
        again = [job for job in all_jobs if job.call in missing]
        _draft(out, executor.run(work, again, lost=_lost), len(again))
        result = settle(out / DRAFTS)
    finish(out, result)
    report = _report(result, messages, {job.call for job in todo} | missing)
    write_report(out, report)
    if not report["dialogues"]:
        reason = report["rejected"][0]["reason"] if report["rejected"] else "no side can be the agent"
        raise UserError(f"no call gave a dialogue, see {out / 'report.json'}; the first reason: {reason}")
    if result.plan.note:
        print(result.plan.note)
    return report


def _report(result: Result, messages: Sequence[str], new: set[str]) -> dict[str, Any]:
    """What became of all calls, for report.json; `new` are those of this run."""
    dialogues = [dialogue for _, dialogue in result.kept]
    good = {draft["call"] for draft in result.drafts if "rejected" not in draft}
    return {
        "done": len(good),
        "skipped": len(good - new),
        "rejected": [
            {"id": f"fe_03_{draft['call']}", "reason": draft["rejected"]}
            for draft in result.drafts
            if "rejected" in draft
        ],
        "notes": result.notes,
        "messages": [*messages, *([result.plan.note] if result.plan.note else [])],
        "dialogues": len(dialogues),
        "heldout": sum(dialogue.split == "heldout" for dialogue in dialogues),
        "hours": round(sum(dialogue.seconds for dialogue in dialogues) / 3600, 4),
    }


def _lost(job: Job, reason: str) -> dict[str, Any]:
    return {"call": job.call, "rejected": reason, "dialogues": [], "notes": []}


def _check_settings(settings: Settings, limit: int | None) -> None:
    """Raises UserError naming the first option that is out of range."""
    limits, voice = settings.limits, settings.voice_seconds
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be 1 or more")
    if not SHORTEST_VOICE <= voice <= MAX_CLIP_SECONDS:
        raise UserError(f"--voice-seconds {voice:g}: must be from {SHORTEST_VOICE:g} to {MAX_CLIP_SECONDS:g}")
    if not 0 <= settings.prompt_tokens <= 1000:
        raise UserError(f"--prompt-tokens {settings.prompt_tokens}: must be from 0 to 1000")
    most = dialogue_seconds(voice, settings.prompt_tokens)
    if not MIN_WINDOW_SECONDS <= limits.max_seconds <= most:
        raise UserError(
            f"--max-seconds {limits.max_seconds:g}: must be from {MIN_WINDOW_SECONDS:.0f} to {most:g}, "
            f"which a row leaves beside {voice:g} s of voice and {settings.prompt_tokens} prompt tokens"
        )
    if not 0 <= limits.max_uncertain <= 1:
        raise UserError(f"--max-uncertain {limits.max_uncertain:g}: must be a share from 0 to 1")
    if not 0 < limits.min_speech <= limits.max_seconds:
        raise UserError(f"--min-speech {limits.min_speech:g}: must be above 0 and at most --max-seconds")
    if not 0 < settings.bandwidth_timeout <= LONGEST_TIMEOUT:
        raise UserError(f"--bandwidth-timeout {settings.bandwidth_timeout:g}: must be above 0, at most a day (86400)")
    for option, grade in (("signal", settings.filters.min_signal), ("conversation", settings.filters.min_conversation)):
        if grade is not None and not isfinite(grade):
            raise UserError(f"--min-{option}-grade {grade:g}: give a number, e.g. 3")
    if settings.bandwidth_extension:
        check_command(settings.bandwidth_extension)
    token_counter(settings.tokenizer)(BARE)  # a wrong tokenizer is told now


def _check_filters(filters: Filters, tables: Tables) -> None:
    """Raises UserError for a filter that nothing can pass because the table it asks is not there."""
    asked = {
        "--min-signal-grade": filters.min_signal is not None,
        "--min-conversation-grade": filters.min_conversation is not None,
        "--native": filters.native,
        "--sex": bool(filters.sex) and "filetable" in tables.missing,
    }
    for option, is_set in asked.items():
        if is_set and "calldata" in tables.missing:
            raise UserError(
                f"{option}: there is no fe_03_pN_calldata.tbl to choose by: give its folder to --corpus, too"
            )


def _licence(corpus: Corpus) -> str:
    """The first line of the corpus' licence file; the discs of the LDC have none.

    Raises: UserError if not all audio is under one licence: nobody may pass on one corpus under the other's terms.
    """
    found = {path.parent: text.split("\n")[0] for path in corpus.licences if (text := read_text(path).strip())}
    names = set(found.values())
    bare = next((path for path in corpus.audio.values() if not any(map(path.is_relative_to, found))), None)
    if len(names) > 1 or (names and bare):
        others = sorted(names) if len(names) > 1 else [*names, f"none above {bare}"]
        raise UserError(
            f"the folders have different licences ({'; '.join(others)}): import them one at a time, or give --licence"
        )
    return names.pop() if names else LDC_LICENCE


def jobs_of(corpus: Corpus, tables: Tables) -> list[Job]:
    """One job for each call that has audio and a transcript."""
    rows = {call: tables.call(call) for call in corpus.calls}
    return [
        Job(
            call=call,
            audio=corpus.audio[call],
            transcript=corpus.transcripts[call],
            row=row,
            title=tables.topics.get(row.topic, ""),
            original=corpus.originals.get(call),
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
    unlisted = sum(job.call not in tables.calls for job in jobs)
    if unlisted and "calldata" not in tables.missing:
        lines.append(f"{unlisted} calls have no row in calldata: {effects['calldata']}")
    untitled = sum(not job.title for job in jobs)
    if untitled and not {"calldata", "topics"} & set(tables.missing):
        lines.append(f"{untitled} calls have no topic title: both of their role prompts are the bare sentence")
    return lines


def _draft(out: Path, drafts: Iterator[dict[str, Any]], total: int) -> None:
    for draft in tqdm(drafts, total=total, unit="call", desc="fisher", disable=not total):
        write_json(out / DRAFTS / f"{draft['call']}.json", draft)


def _is_drafted(out: Path, call: str) -> bool:
    """True if a call was imported before; rejected calls are tried again."""
    path = out / DRAFTS / f"{call}.json"
    return path.is_file() and "rejected" not in json.loads(path.read_text("utf-8"))
