"""`ppx-data report`: what is in these shards, as a table and as one picture."""

import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.quality.turns import TurnTaking, turn_taking
from data_pipelines.schema import SPLITS, Dialogue
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.manifest import read_manifest
from model.errors import UserError

EXAMPLE_SECONDS = 24.0


@dataclass
class Group:
    """Everything that is counted for one source of one split."""

    lengths: list[float] = field(default_factory=list)
    """Seconds of each dialogue."""
    turns: TurnTaking = field(default_factory=TurnTaking)
    without_words: int = 0
    """Dialogues left out of the turn taking: one side has no word times."""
    agent_words: int = 0
    agent_seconds: float = 0.0
    """Seconds of the samples, a call between equals counted twice."""
    samples: int = 0
    voices: set[str] = field(default_factory=set)
    levels: Counter[str] = field(default_factory=Counter)
    gates: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Example:
    """The dialogue that is drawn, and where to read its audio."""

    reader: ShardReader
    row: int
    dialogue: Dialogue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ppx-data report`."""
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder made by `ppx-data shard`")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write; must not exist")


def run(args: argparse.Namespace) -> None:
    """Prints the table and writes the picture. Raises UserError if there is a file already, or nothing to describe."""
    from data_pipelines.quality.report_picture import draw_report

    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: the report is a picture: end its name in .png")
    if args.out.exists():
        raise UserError(f"{args.out}: exists: give another --out")
    manifest = read_manifest(args.shards)
    groups, example, bad = collect(args.shards, manifest)
    draw_report(args.out, args.shards, manifest, groups, example)
    print(table(args.shards, manifest, groups, bad))
    print(f"picture: {args.out}")


def collect(shards: Path, manifest: dict[str, Any]) -> tuple[dict[tuple[str, str], Group], Example, int]:
    """Reads every dialogue once: a group for each (split, source), the one to draw, and the number of unreadable ones.

    Raises: UserError if no dialogue can be read.
    """
    groups: dict[tuple[str, str], Group] = {}
    best, bad = (-1.0, Example(None, 0, None)), 0  # type: ignore[arg-type]
    for split in (split for split in SPLITS if split in manifest["content"]):
        reader = ShardReader(shards / split)
        seen: set[str] = set()
        for i, row in enumerate(tqdm(reader.rows, desc=f"read {split}", unit="sample", disable=None)):
            try:
                dialogue = reader.dialogue(i)
            except BadSample:
                bad += 1
                continue
            group = groups.setdefault((split, row.source), Group())
            _count_sample(group, dialogue, row.side)
            if row.id not in seen:
                seen.add(row.id)
                turns = _count_dialogue(group, dialogue)
                best = max(best, (_liveliness(turns), Example(reader, i, dialogue)), key=lambda pair: pair[0])
    if not groups:
        raise UserError(f"{shards}: no dialogue can be read: look with `ppx-data check {shards}`")
    return groups, best[1], bad


def _liveliness(turns: TurnTaking) -> float:
    """Which dialogue shows most in a picture: speaker changes, of both kinds, in a stretch that fits."""
    overlaps = sum(offset < 0 for offset in turns.offsets)
    return (len(turns.offsets) + 2 * min(overlaps, 3)) / max(turns.seconds, EXAMPLE_SECONDS)


def _count_sample(group: Group, dialogue: Dialogue, side: str) -> None:
    agent = dialogue.side(side)
    group.samples += 1
    group.agent_words += len(agent.words)
    group.agent_seconds += dialogue.seconds
    group.voices.add(agent.speaker)
    group.levels[agent.prompt_level or ("prompt" if agent.role_prompt else "no prompt")] += 1


def _count_dialogue(group: Group, dialogue: Dialogue) -> TurnTaking:
    turns = turn_taking(dialogue)
    group.lengths.append(dialogue.seconds)
    if dialogue.left.words and dialogue.right.words:
        group.turns.add(turns)
    else:
        group.without_words += 1
    for name, value in dialogue.gates.items():
        group.gates.setdefault(name, []).append(value)
    return turns


def table(shards: Path, manifest: dict[str, Any], groups: dict[tuple[str, str], Group], bad: int) -> str:
    """The report as text: one row for each source of each split, then voices, gates, licences and rejections."""
    head = f"{'':<22}{'dialogues':>10}{'samples':>9}{'hours':>8}{'mean s':>8}{'words/min':>11}"
    head += "".join(f"{name:>9}" for name in ("speech", "pause", "gap", "overlap"))
    lines = [str(shards), "", head + "   (seconds in a minute)"]
    for (split, source), group in groups.items():
        minute = group.turns.per_minute()
        words = 60 * group.agent_words / group.agent_seconds if group.agent_seconds else 0.0
        name = f"{split} {source}"
        lines.append(
            f"{name:<22}{len(group.lengths):>10}{group.samples:>9}{sum(group.lengths) / 3600:>8.2f}"
            f"{np.mean(group.lengths) if group.lengths else 0:>8.1f}{words:>11.0f}"
            + "".join(f"{value:>9.1f}" for value in minute.values())
        )
    lines += ["", "agent voices: " + ", ".join(f"{s} {src} {len(g.voices)}" for (s, src), g in groups.items())]
    levels = sum((group.levels for group in groups.values()), Counter())
    lines.append("role prompts: " + ", ".join(f"{name} {count}" for name, count in sorted(levels.items())))
    lines += [
        f"licence {name}: {v['dialogues']} dialogues, {v['hours']:.2f} h" for name, v in manifest["licences"].items()
    ]
    lines.append("engines: " + ", ".join(f"{name} {count}" for name, count in manifest["engines"].items()))
    lines += gate_lines(groups)
    if missing := sum(group.without_words for group in groups.values()):
        lines.append(f"{missing} dialogues without words on one side are left out of the turn taking")
    if bad:
        lines.append(f"{bad} samples cannot be read: look with `ppx-data check {shards}`")
    return "\n".join(lines + rejection_lines(shards))


def gate_lines(groups: dict[tuple[str, str], Group]) -> list[str]:
    """One line for each quality gate: its spread over the dialogues that have it."""
    values: dict[str, list[float]] = {}
    for group in groups.values():
        for name, found in group.gates.items():
            values.setdefault(name, []).extend(found)
    lines = []
    for name, found in sorted(values.items()):
        low, middle, high = np.percentile(found, [5, 50, 95])
        lines.append(f"gate {name}: median {middle:.3g}, 5 to 95 % {low:.3g} to {high:.3g} ({len(found)} dialogues)")
    return lines


def rejection_lines(shards: Path) -> list[str]:
    """Reasons of rejections with their counts; numbers and names in the reasons are left out."""
    path = shards / "report.json"
    if not path.is_file():
        return []
    rejected = json.loads(path.read_text("utf-8"))["rejected"]
    kinds = Counter(reason_kind(item["reason"]) for item in rejected)
    return [f"rejected {count}: {kind}" for kind, count in kinds.most_common()]


def reason_kind(reason: str) -> str:
    """A reason without the path before it, its numbers and quoted values blanked: equal faults count together."""
    reason = re.sub(r"^\S*/\S*:\s+", "", reason)
    reason = re.sub(r"'[^']*'", "'...'", reason)
    return re.sub(r"-?\d+(\.\d+)?", "N", reason)
