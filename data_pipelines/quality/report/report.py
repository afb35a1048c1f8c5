"""`ppx-data report`: describes shards or dialogue folders, as a table and as one HTML page."""

import argparse
from pathlib import Path

import numpy as np

from data_pipelines.files import save_once
from data_pipelines.quality.report.collect import Content, collect
from model.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data report`."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="shards, or folders of dialogues")
    parser.add_argument("--out", type=Path, required=True, metavar="HTML", help="page to write")
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="recorded calls to compare the turn taking with",
    )
    parser.add_argument("--samples", type=int, default=6, help="number of dialogues to hear and see")
    parser.add_argument("--seed", type=int, default=0, help="another seed chooses other dialogues")


def run(args: argparse.Namespace) -> None:
    """Prints the table and writes the page. Raises UserError if another page is in the way, or nothing can be read."""
    from data_pipelines.quality.report.page import render

    if args.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {args.out}: the report is a page, end its name in .html", code="bad-value")
    if args.samples < 0:
        raise UserError(f"--samples {args.samples}: give 0 or more", code="bad-value")
    content = collect(args.paths, args.samples, args.seed)
    reference = collect(args.reference) if args.reference else None
    is_new = save_once(args.out, render(content, reference).encode())
    print(table(content))
    print(f"page: {args.out}" if is_new else f"page: {args.out}, as it was")


def table(content: Content) -> str:
    """The report as text: a row for each source of each split, then prompts, licences, gates and rejections."""
    head = f"{'':<22}{'dialogues':>10}{'samples':>9}{'hours':>8}{'mean s':>8}{'words/min':>11}"
    head += "".join(f"{name:>9}" for name in ("speech", "pause", "gap", "overlap"))
    lines = [", ".join(content.names), "", head + "   (seconds in a minute)"]
    for (split, source), group in sorted(content.groups.items(), key=lambda item: (item[0][0] != "train", item[0])):
        name = f"{split} {source}"
        lines.append(
            f"{name:<22}{group.dialogues:>10}{group.samples:>9}{group.seconds / 3600:>8.2f}"
            f"{group.seconds / group.dialogues:>8.1f}{group.words_per_minute:>11.0f}"
            + "".join(f"{value:>9.1f}" for value in group.turns.per_minute().values())
        )
    voices = (f"{split} {source} {len(group.voices)}" for (split, source), group in sorted(content.groups.items()))
    lines += ["", "agent voices: " + ", ".join(voices)]
    for what, title in (("level", "role prompts"), ("licence", "licences")):
        hours = sorted(content.hours[what].items())
        lines.append(f"{title}: " + ", ".join(f"{name} {value:.2f} h" for name, value in hours))
    lines.append("engines: " + ", ".join(f"{name} {count}" for name, count in sorted(content.engines.items())))
    for name, found in sorted(content.gates.items()):
        low, middle, high = np.percentile(found, [5, 50, 95])
        lines.append(f"gate {name}: median {middle:.3g}, 5 to 95 % {low:.3g} to {high:.3g} ({len(found)} dialogues)")
    if missing := sum(group.without_words for group in content.groups.values()):
        lines.append(f"{missing} dialogues without words on one side are left out of the turn taking")
    if content.unreadable:
        lines.append(f"{content.unreadable} dialogues cannot be read, look with `ppx-data check` or `ppx-data gate`")
    rejected = sorted(content.rejected.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(lines + [f"rejected {count}: {why}" for why, count in rejected])
