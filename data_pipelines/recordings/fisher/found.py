"""What was found of a corpus: its calls, the terms of its audio, and what is missing."""

from collections.abc import Sequence

from data_pipelines.recordings.fisher.call_tables import Tables
from data_pipelines.recordings.fisher.job import CallFiles
from data_pipelines.recordings.fisher.layout import FisherFiles
from data_pipelines.recordings.fisher.timed_lines import read_text
from model.errors import UserError

LDC_LICENCE = "LDC User Agreement"


def licence_of(corpus: FisherFiles) -> str:
    """Returns the first line of the corpus' licence file; the discs of the LDC have no such file.

    Raises: UserError if not all audio is under one licence (code "licence"), because nobody may pass on one corpus
    under the terms of the other.
    """
    found = {path.parent: text.split("\n")[0] for path in corpus.licences if (text := read_text(path).strip())}
    names = set(found.values())
    bare = next((path for path in corpus.audio.values() if not any(map(path.is_relative_to, found))), None)
    if len(names) > 1 or (names and bare):
        others = sorted(names) if len(names) > 1 else [*names, f"none above {bare}"]
        raise UserError(
            f"the folders have different licences ({'; '.join(others)}): import them one at a time, or give --licence",
            code="licence",
        )
    return names.pop() if names else LDC_LICENCE


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
