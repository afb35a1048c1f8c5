"""`ppx-data synth`: scripts of customer service or assistant dialogues, the same bytes for the same options."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.arguments import Parser
from data_pipelines.files import refuse_other_settings, save_pieces, sha256_file, write_json
from data_pipelines.records.schema import Script
from data_pipelines.writer.duplicates import Duplicates
from data_pipelines.writer.protocol import SOURCES, Rejected, SynthOptions, Writer
from data_pipelines.writer.stats import ScriptStats, summary
from data_pipelines.writer.template import TemplateWriter
from model.errors import UserError

# Each module has add_arguments(parser) and make(options, args) -> Writer.
_WRITERS = {"template": "data_pipelines.writer.template", "llm": "data_pipelines.writer.llm_writer"}
REDRAWS = 20
"""How often a near-duplicate is drawn again before it is kept."""
LISTED = 1000
"""How many rejected scripts are named in the statistics."""


def add_arguments(parser: Parser) -> None:
    """Adds the options of `ppx-data synth`, those of all writers included."""
    parser.add_argument("source", choices=SOURCES, help="service: an agent with a role; assistant: a teacher")
    parser.add_argument("--num", type=int, required=True, help="number of scripts")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scripts")
    parser.add_argument("--out", type=Path, required=True, help="scripts file to write, one JSON line each")
    parser.add_argument("--heldout", type=float, default=0.1, help="share of held-out scripts, from 0 to 1")
    help_seconds = "longest estimated spoken length of a script, in seconds (default: no limit)"
    parser.add_argument("--max-seconds", type=float, help=help_seconds)
    help_writer = "template writes from tables, llm asks a language model"
    parser.add_argument("--writer", choices=sorted(_WRITERS), default="template", help=help_writer)
    defaults: dict[str, dict[str, Any]] = {}
    for writer, module in _WRITERS.items():
        others = set(parser.options)
        import_module(module).add_arguments(parser)
        own = {parser.options[option].dest for option in parser.options.keys() - others}
        defaults[writer] = {name: parser.get_default(name) for name in sorted(own)}
    parser.set_defaults(defaults_of_writers=defaults)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data synth`."""
    names = ("source", "num", "seed", "heldout", "max_seconds")
    options = SynthOptions(**{name: getattr(args, name) for name in names})
    _refuse_options_of_others(args)
    writer: Writer = import_module(_WRITERS[args.writer]).make(options, args)
    beside = stats_path(args.out)
    settings = {name: getattr(options, name) for name in names} | writer.identity()
    stats = done_before(args.out, beside, settings)
    new = stats is None
    if stats is None:
        stats = write_file(args.out, writer, options)
        write_json(beside, {"settings": settings, "sha256": sha256_file(args.out), **stats})
    print(f"{args.out}: {stats['scripts']} scripts {'written' if new else 'already there, unchanged'}")
    print(summary(stats))
    if new and writer.status():
        print(writer.status())
    print(f"all figures: {beside}")


def _refuse_options_of_others(args: argparse.Namespace) -> None:
    """Raises UserError if an option is given that only another writer has."""
    for other in sorted(set(_WRITERS) - {args.writer}):
        for name, default in args.defaults_of_writers[other].items():
            if getattr(args, name) != default:
                flag = "--" + name.replace("_", "-")
                raise UserError(
                    f"{flag} has an effect with --writer {other} only: add it, or leave {flag} out",
                    code="bad-combination",
                )


def stats_path(out: Path) -> Path:
    """`scripts.stats.json` beside `scripts.jsonl`."""
    return out.with_name(out.name.removesuffix(".jsonl") + ".stats.json")


def done_before(out: Path, beside: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics of an earlier, complete run with the same settings; None if there was no such run.

    Raises: UserError if `out` was made with other settings ("other-settings") or has changed since ("checksum").
    """
    if not out.exists() or not beside.is_file():
        return None
    stats: dict[str, Any] = json.loads(beside.read_text("utf-8"))
    refuse_other_settings(out, stats["settings"], settings)
    if sha256_file(out) != stats["sha256"]:
        raise UserError(f"{out}: has changed since it was written: remove it or choose another --out", code="checksum")
    return stats


def write_file(out: Path, writer: Writer, options: SynthOptions) -> dict[str, Any]:
    """Writes the scripts one by one to `out`, which appears whole; returns their statistics.

    Raises: UserError if all scripts are rejected ("no-data"), or as `files.save_pieces`.
    """
    stats, counts = ScriptStats(), Tally()

    def lines() -> Iterator[bytes]:
        for script in scripts_of(writer, options, counts):
            stats.add(script)
            yield script.to_json().encode() + b"\n"
        if not stats.scripts:
            raise UserError(
                f"none of {options.num} scripts could be written, the first: {counts.rejected[0].reason}",
                code="no-data",
            )

    save_pieces(out, lines())
    return stats.result() | {"writing": counts.result()}


class Tally:
    """Counts of near-duplicates, and of scripts that could not be written."""

    def __init__(self) -> None:
        self.redrawn = self.kept = 0
        self.rejected: list[Rejected] = []
        self.reasons: Counter[str] = Counter()

    def reject(self, rejected: Rejected) -> None:
        """Counts one rejected script by the kind of its reason."""
        self.reasons[rejected.reason.split(":")[0]] += 1
        if len(self.rejected) < LISTED:
            self.rejected.append(rejected)

    def result(self) -> dict[str, Any]:
        """The counts, for the key "writing" of the statistics."""
        return {
            "near_duplicates": {"drawn_again": self.redrawn, "kept": self.kept},
            "rejected": {"count": self.reasons.total(), "reasons": dict(self.reasons.most_common())},
            "rejected_scripts": [vars(item) for item in self.rejected],
        }


def scripts_of(writer: Writer, options: SynthOptions, counts: Tally) -> Iterator[Script]:
    """The scripts of a run in order, near-duplicates drawn again.

    Whether a script is drawn again depends on the scripts before it and on nothing else, so fewer scripts are a
    prefix of more, and a run that was stopped and started again gives the same.
    """
    seen = Duplicates()
    indexes = range(options.num)
    drafts = writer.drafts(indexes)
    quick = options.num < 100 and not writer.status()
    progress = tqdm(drafts, f"write {options.source}", options.num, unit="script", disable=quick or None)
    for index, draft in zip(indexes, progress, strict=True):
        progress.set_postfix_str(writer.status(), refresh=False)
        for attempt in range(1, REDRAWS + 1):
            if isinstance(draft, Rejected) or seen.is_new(draft):
                break
            counts.redrawn += 1
            draft = writer.draft(index, attempt)
        else:
            counts.kept += 1  # All draws resembled earlier scripts.
        if isinstance(draft, Rejected):
            counts.reject(draft)
        else:
            yield draft


def write_scripts(
    source: str, *, num: int, seed: int, heldout: float = 0.1, max_seconds: float | None = None
) -> list[Script]:
    """The scripts of the template writer as a list. Raises: UserError as `SynthOptions` and `TemplateWriter`."""
    options = SynthOptions(source=source, num=num, seed=seed, heldout=heldout, max_seconds=max_seconds)
    return list(scripts_of(TemplateWriter(options), options, Tally()))
