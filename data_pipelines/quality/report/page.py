"""The HTML page of a report: one file that fetches nothing. Its layout and script are in templates/report.html.j2."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from tqdm import tqdm

from data_pipelines.quality.gates import GATES
from data_pipelines.quality.limits import load_limits
from data_pipelines.quality.report.charts import Series, amount, bars, histogram, legend, spark
from data_pipelines.quality.report.collect import Content, total_turns
from data_pipelines.quality.report.player import LANE, WORD_ROWS, Player, player_of
from data_pipelines.quality.teaching.measures import FAILS, MEASURES, AuditLimits, cell, limit_text
from data_pipelines.quality.teaching.measures import FOLDER as AUDIT_FOLDER
from data_pipelines.records.turn_taking import TurnTaking
from model.errors import UserError

HERE = Path(__file__).parent
KINDS = ("speech", "pause", "gap", "overlap")
COLOURS = 5


@dataclass(frozen=True)
class Chart:
    """One card with a chart."""

    title: str
    note: str
    body: Markup


@dataclass(frozen=True)
class GateRow:
    """One line of the table of gates."""

    name: str
    reason: str
    median: str
    low: str
    """The 5th percentile."""
    high: str
    """The 95th percentile."""
    limit: str
    count: int
    picture: Markup


def render(content: Content, reference: Content | None = None) -> str:
    """The page. The turn taking of `reference`, which is of recorded calls, is drawn beside."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sources = content.sources()
    colours = {source: f"c{n % COLOURS}" for n, source in enumerate(sources)}
    template = environment.get_template("report.html.j2")
    return template.render(
        names=content.names,
        sources=sources,
        tiles=tiles(content),
        hours=hour_bars(content, colours),
        sources_legend=legend([Series(source, colours[source], []) for source in sources]),
        turn_table=turn_table(content, reference),
        turn_charts=turn_charts(content, colours, reference),
        wording=wording(content),
        other_charts=other_charts(content, colours),
        audit=audit_rows(content),
        gates=gate_rows(content),
        rejected=bars({why: {"warn": float(count)} for why, count in content.rejected.items()}, "", 40),
        engines=sorted(content.engines.items()),
        licences=[(name, amount(hours, "h")) for name, hours in sorted(content.hours["licence"].items())],
        levels=[(name, amount(hours, "h")) for name, hours in sorted(content.hours["level"].items())],
        players=players(content),
        unreadable=content.unreadable,
        lane_height=LANE,
        word_rows=WORD_ROWS,
    )


def tiles(content: Content) -> list[tuple[str, str]]:
    """The key figures."""
    groups = content.groups
    seconds = {split: sum(g.seconds for (s, _), g in groups.items() if s == split) for split in ("train", "heldout")}
    found = [
        ("dialogues", f"{sum(g.dialogues for g in groups.values()):,}"),
        ("samples", f"{sum(g.samples for g in groups.values()):,}"),
        ("training", amount(seconds["train"] / 3600, "h")),
        ("held out", amount(seconds["heldout"] / 3600, "h")),
        ("agent voices", f"{len(content.hours['voice']):,}"),
        ("domains", f"{len(content.hours['domain']):,}"),
    ]
    return [*found, ("rejections", f"{content.rejected.total():,}")]


def hour_bars(content: Content, colours: dict[str, str]) -> list[tuple[str, str, Any]]:
    """Hours by source (training and held out), by domain, and by the agent's voice: title, note and rows of each."""
    by_source: dict[str, dict[str, float]] = {}
    for (split, source), group in sorted(content.groups.items(), key=lambda item: item[0][0] != "train"):
        by_source.setdefault(source, {})["train" if split == "train" else "heldout"] = group.seconds / 3600
    domains = {name: {colours[name.split("/")[0]]: hours} for name, hours in content.hours["domain"].items()}
    voices = {name: {"agent": hours} for name, hours in content.hours["voice"].items()}
    return [
        ("By source", "solid: training, hatched: held out", bars(by_source, "h")),
        ("By domain", "or topic of a call", bars(domains, "h")),
        ("By voice of the agent", "a call between equals counts for both", bars(voices, "h")),
    ]


def turn_table(content: Content, reference: Content | None) -> list[tuple[str, list[str], str]]:
    """Seconds in a minute of speech, pause, gap and overlap, for each source and then for recorded calls."""
    rows = [(s, _minute(total_turns(content, [s])), "measured") for s in content.sources()]
    if reference:
        rows.append(("recorded calls", _minute(total_turns(reference, reference.sources())), "measured"))
    known = yaml.safe_load((HERE / "reference_calls.yaml").read_text("utf-8"))
    return [*rows, (known["name"], [f"{known['per_minute'][kind]:.1f}" for kind in KINDS], known["status"])]


def _minute(turns: TurnTaking) -> list[str]:
    return [f"{value:.1f}" for value in turns.per_minute().values()] if turns.seconds else ["-"] * len(KINDS)


def turn_charts(content: Content, colours: dict[str, str], reference: Content | None) -> list[Chart]:
    """Charts of gaps, overlaps and lengths of turns: each source is a line, and recorded calls are an area."""

    def chart(title: str, note: str, name: str, low: float, high: float, label: str, zero: bool = False) -> Chart:
        lines = [Series(source, colours[source], content.merged(source, name)) for source in content.sources()]
        if reference:
            numbers = [x for source in reference.sources() for x in reference.merged(source, name)]
            lines.append(Series("recorded calls", "ref", numbers))
        return Chart(title, note, legend(lines) + histogram(lines, low, high, label, zero=zero))

    gap_note = "time from the end of one speaker to the start of the other; below 0 they overlap"
    return [
        chart("Gaps", gap_note, "offset", -2, 3, "seconds", zero=True),
        chart("Overlaps", "how long both speak at once", "overlap", 0, 3, "seconds"),
        chart("Turns", "speech of one side without a pause of a second", "turn", 0, 16, "seconds"),
    ]


def other_charts(content: Content, colours: dict[str, str]) -> list[Chart]:
    """Charts of lengths, prompts, loudness, and word error rates."""

    def by_source(name: str) -> list[Series]:
        return [Series(source, colours[source], content.merged(source, name)) for source in content.sources()]

    def top(lines: list[Series]) -> float:
        return max((float(np.max(line.numbers)) for line in lines if len(line.numbers)), default=1.0) or 1.0

    lengths, prompts = by_source("seconds"), by_source("prompt")
    channels = [Series("left: agent", "agent", content.lufs["left"]), Series("right", "user", content.lufs["right"])]
    charts = [
        Chart("Length of a dialogue", "", legend(lengths) + histogram(lengths, 0, top(lengths) * 1.02, "seconds")),
        Chart("Role prompts", "", legend(prompts) + histogram(prompts, 0, top(prompts) * 1.02, "words")),
        Chart(
            "Loudness", f"of each channel, {content.lufs_of}", legend(channels) + histogram(channels, -50, -10, "LUFS")
        ),
    ]
    rates = [
        Series(f"{side}: mean {np.mean(found):.1%}", colour, found)
        for side, colour in (("left", "agent"), ("right", "user"))
        if (found := content.gates.get(f"word_error_rate_{side}"))
    ]
    if rates:
        body = legend(rates) + histogram(rates, 0, max(0.3, min(1.0, top(rates))), "word error rate")
        charts.append(Chart("Words heard", "speech recognition against the transcript, names left out", body))
    return charts


def wording(content: Content) -> list[tuple[str, str, list[str], str]]:
    """For each source its words, distinct-1, -2 and -3, and the share of the facts to be said that are said."""
    rows = []
    for source, audit in sorted(content.audits.items()):
        result = audit.wording.stats.result()
        coverage = result["fact_coverage"]
        rows.append(
            (
                source,
                f"{sum(result['words'].values()):,}",
                [f"{value:.3f}" for value in result["distinct"].values()],
                "-" if coverage is None else f"{coverage:.1%}",
            )
        )
    return rows


def audit_rows(content: Content) -> list[tuple[str, list[tuple[str, bool]], str, str]]:
    """A row for every measure of `ppx-data audit` that a source has.

    Each holds its title, a cell for each source and whether it fails, the limit, and what real calls show.
    """
    limits = load_limits("default", [], AuditLimits, AUDIT_FOLDER)
    results = [content.audits[source].result().values for source in content.sources()]
    return [
        (
            measure.title,
            [(text := cell(name, values[name], limits), text.endswith(FAILS)) for values in results],
            limit_text(measure, getattr(limits, name)),
            measure.real,
        )
        for name, measure in MEASURES.items()
        if any(values[name].value is not None for values in results)
    ]


def gate_rows(content: Content) -> list[GateRow]:
    """A row for every value that gates have stored: its spread, and its limit if it has one."""
    order = {name: n for n, name in enumerate(GATES)}
    rows = []
    for name, found in sorted(content.gates.items(), key=lambda item: (order.get(item[0], 99), item[0])):
        low, middle, high = (f"{value:.3g}" for value in np.percentile(found, [5, 50, 95]))
        limits, gate = content.limits.get(name, set()), GATES.get(name)
        drawn = next(iter(limits)) if len(limits) == 1 and name != "voice_lufs" else None
        reason = gate.reason if gate else ""
        rows.append(GateRow(name, reason, middle, low, high, _limit(name, limits), len(found), spark(found, drawn)))
    return rows


def _limit(name: str, limits: Collection[float | None]) -> str:
    """The limits under which dialogues were judged, e.g. "at most 0.15 or 0.5, or none"."""
    numbers = " or ".join(f"{limit:g}" for limit in sorted(limit for limit in limits if limit is not None))
    if not numbers:
        return "-"
    gate = GATES.get(name)
    sign = "-24 +- " if name == "voice_lufs" else "" if gate is None else "at least " if gate.at_least else "at most "
    return f"{sign}{numbers}" + (", or none" if None in limits else "")


def players(content: Content) -> list[Player]:
    """The examples; one whose audio cannot be read counts as unreadable."""
    found: list[Player] = []
    for entry in tqdm(content.examples, desc="draw", unit="dialogue", disable=None):
        try:
            found.append(player_of(entry))
        except UserError:
            content.unreadable += 1
    return found
