"""`ppx-data audit`: what scripts, dialogues or shards teach, measured against limits and against real calls."""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from data_pipelines.files import save_once
from data_pipelines.quality.limits import add_arguments as add_limits
from data_pipelines.quality.limits import load_limits
from data_pipelines.quality.report.collect import Content, entries, is_shards, spoken
from data_pipelines.quality.teaching.collected import Audit, Result
from data_pipelines.quality.teaching.lesson import Lesson
from data_pipelines.quality.teaching.measures import FOLDER, MEASURES, AuditLimits, breaches, cell, limit_text
from data_pipelines.records.schema import Script, iterate_scripts
from model.errors import UserError
from model.text import TextTokenizer

EXIT_BEYOND_LIMITS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data audit`."""
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="scripts files or folders of them, dialogues, or shards"
    )
    add_limits(parser, FOLDER, "[least, most] of each measure", "takeover_all_0_5=[0,0.6]")
    parser.add_argument("--tokenizer", metavar="FILE", help="SentencePiece model: measures the text stream, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def run(args: argparse.Namespace) -> int:
    """Prints the table and one line for each limit that fails; returns the exit code.

    Raises: UserError as `load_limits` and `talks`, if the gates reject all dialogues, or if another file is in the way
    of --json.
    """
    limits = load_limits(args.gates, args.set, AuditLimits, FOLDER)
    tokenizer = TextTokenizer(args.tokenizer) if args.tokenizer else None
    found = audit(talks(args.paths), tokenizer)
    if not found:
        names = ", ".join(map(str, args.paths))
        raise UserError(f"{names}: every dialogue is rejected by its gates: see its gates.json", code="no-data")
    if args.json:
        save_once(args.json, as_json(found, limits).encode())
    print(table(found, limits))
    failed = [f"{source}: {line}" for source, result in found.items() for line in breaches(result.values, limits)]
    print(*failed, sep="\n")
    return EXIT_BEYOND_LIMITS if failed else 0


def audit(found: Iterable[Lesson], tokenizer: TextTokenizer | None = None) -> dict[str, Result]:
    """Measures talks, each source by itself; by source, sorted."""
    sources: dict[str, Audit] = {}
    for talk in found:
        sources.setdefault(talk.script.source, Audit(tokenizer)).add(talk)
    return {source: sources[source].result() for source in sorted(sources)}


def talks(paths: Sequence[Path]) -> Iterator[Lesson]:
    """Reads scripts files (or all *.jsonl of a folder), folders of dialogues, and shards, one talk at a time.

    Dialogues that gates reject are left out.

    Raises: UserError if a path is missing or holds none, or a record is broken.
    """
    for path in paths:
        if files := _scripts_files(path):
            for file in files:
                for script in tqdm(iterate_scripts(file), desc=f"read {file.name}", unit="script", disable=None):
                    yield Lesson(script=script, domain=_domain(script))
            continue
        content = Content(names=[str(path)])
        for entry in tqdm(entries(path, content), desc=f"read {path.name}", unit="dialogue", disable=None):
            yield spoken(entry.dialogue)
        if content.unreadable:
            kind = "`ppx-data check`" if is_shards(path) else "`ppx-data gate`"
            raise UserError(
                f"{path}: {content.unreadable} dialogues cannot be read: look with {kind}", code="bad-record"
            )


def _scripts_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.jsonl")) if path.is_dir() else []


def _domain(script: Script) -> str:
    return "/".join(script.scenario.split("/")[:2]) or script.source


def table(found: Mapping[str, Result], limits: AuditLimits) -> str:
    """The figures as text: a row for each measure, a column for each source, limits and real calls; then the notes.

    What was measured of no source has no row; the lines at the end say why.
    """
    rows = [["measure", *(f"{source} ({result.count})" for source, result in found.items()), "limit", "real calls", ""]]
    notes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, measure in MEASURES.items():
        for source, result in found.items():
            value = result.values[name]
            if value.note:
                notes[source, f"{'not measured: ' * (value.value is None)}{value.note}"].append(name)
        if any(result.values[name].value is not None for result in found.values()):
            cells = [cell(name, result.values[name], limits) for result in found.values()]
            rows.append([name, *cells, limit_text(measure, getattr(limits, name)), measure.real, measure.title])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *(f"{source}: {note}: {', '.join(names)}" for (source, note), names in sorted(notes.items())), ""]
    return "\n".join(lines)


def as_json(found: Mapping[str, Result], limits: AuditLimits) -> str:
    """The figures of every source, with limits, as JSON."""
    content = {
        source: {
            "count": result.count,
            "measures": {
                name: {**asdict(result.values[name]), "limit": getattr(limits, name), "real": measure.real}
                for name, measure in MEASURES.items()
            },
            "breaches": breaches(result.values, limits),
        }
        for source, result in found.items()
    }
    return json.dumps({"format": 1, "sources": content}, indent=1) + "\n"
