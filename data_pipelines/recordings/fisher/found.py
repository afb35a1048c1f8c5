"""What was found of a corpus: its calls, the terms of its audio, and what is missing."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.recordings.fisher.call_tables import Tables
from data_pipelines.recordings.fisher.job import CallFiles
from data_pipelines.recordings.fisher.layout import FisherFiles, Marker, mark_of
from data_pipelines.records.typed import record
from model.errors import UserError

LDC_LICENCE = "LDC User Agreement"


def licence_of(corpus: FisherFiles) -> str:
    """Returns the licence that the corpus' own marker states for this very audio, else that of the LDC.

    A marker counts for the files that it holds the marks of, so that one above other discs says nothing of them.
    Raises: UserError if a marker is damaged (code "bad-record") or not all audio is under one licence ("licence"),
    because nobody may pass on one corpus under the terms of the other.
    """
    stated: dict[str, str] = {}
    for path in corpus.markers:
        try:
            marker = record(Marker, path.read_bytes())
        except ValueError as why:
            raise UserError(f"{path}: not a marker ({why}): make the corpus again", code="bad-record") from why
        stated |= dict.fromkeys(marker.audio.values(), marker.licence.strip())
    first: dict[str, Path] = {}
    for path in corpus.audio.values():
        first.setdefault(stated.get(mark_of(path) if stated else "") or LDC_LICENCE, path)
    if len(first) > 1:
        others = "; ".join(f"{name} for {path}" for name, path in sorted(first.items()))
        raise UserError(
            f"the audio has different licences ({others}): import them one at a time, or give --licence",
            code="licence",
        )
    return next(iter(first), LDC_LICENCE)


def calls_of(corpus: FisherFiles, tables: Tables) -> list[CallFiles]:
    """Returns each call that has audio and a transcript, in order."""
    facts = {call: tables.call(call) for call in corpus.calls}
    return [
        CallFiles(
            call=call,
            audio=corpus.audio[call],
            transcript=corpus.transcripts[call],
            facts=own,
            title=tables.topics.get(own.topic, ""),
            original=corpus.originals.get(call),
        )
        for call, own in facts.items()
    ]


def describe(corpus: FisherFiles, tables: Tables, calls: Sequence[CallFiles]) -> list[str]:
    """Returns what was found and what is missing, a line each."""
    lines = [f"found {len(corpus.calls)} calls with audio and transcript"]
    for what, found in (("transcript", corpus.audio.keys()), ("audio", corpus.transcripts.keys())):
        if len(found) > len(corpus.calls):
            lines.append(f"{len(found) - len(corpus.calls)} calls are left out: they have no {what}")
    effects = {
        "calldata": "speakers are distinguished by call and side only, topics are unknown",
        "topics": "every role prompt is the bare sentence",
        "filetable": "sexes come from calldata alone",
    }
    lines += [f"no {name} table: {effects[name]}" for name in tables.missing]
    unlisted = sum(files.call not in tables.calls for files in calls)
    if unlisted and "calldata" not in tables.missing:
        lines.append(f"{unlisted} calls have no row in calldata: {effects['calldata']}")
    untitled = sum(not files.title for files in calls)
    if untitled and not {"calldata", "topics"} & set(tables.missing):
        lines.append(f"{untitled} calls have no topic title: both of their role prompts are the bare sentence")
    return lines
