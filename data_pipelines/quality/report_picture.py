"""The picture of `ppx-data report`: lengths, gaps, turn taking, and one dialogue with its words."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipelines.files import appearing
from data_pipelines.quality.turns import TurnTaking
from data_pipelines.schema import SPLITS, Dialogue, Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from data_pipelines.quality.report import Example, Group

AGENT_COLOUR, USER_COLOUR = "#d1495b", "#5b6c8f"
SOURCE_COLOURS = ("#2e6f8e", "#e3a857", "#7a9e5f", "#8c6bb1", "#999999")
TEXT_COLOUR, FAINT_COLOUR, GRID_COLOUR = "#222222", "#666666", "#e4e4e8"
WIDTH_INCHES = 14.0
LETTER_INCHES = 0.072  # mean width of a letter at 8 points, DejaVu Sans
WORD_LEVELS = 3
NATURAL = {"speech": 53.5, "pause": 5.5, "gap": 4.4, "overlap": 3.6}
"""Seconds in a minute of Fisher calls, as reported for Moshi: a mark to compare with, not a target for every source."""


def draw_report(
    path: Path, shards: Path, manifest: dict[str, Any], groups: "dict[tuple[str, str], Group]", example: "Example"
) -> None:
    """Writes the PNG, atomically."""
    # a figure of its own instead of pyplot: no global state, no window system
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    start, seconds = excerpt(example.dialogue)
    rows = 2 if seconds > 14 else 1
    height = 5.85 + 2.3 * rows
    figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
    FigureCanvasAgg(figure)
    _title(figure, height, shards, manifest)
    grid = figure.add_gridspec(
        1, 3, left=0.055, right=0.985, top=1 - 1.35 / height, bottom=1 - 4.5 / height, wspace=0.2
    )
    sources = sorted({source for _, source in groups})
    colours = {s: SOURCE_COLOURS[min(n, len(SOURCE_COLOURS) - 1)] for n, s in enumerate(sources)}
    _lengths(figure.add_subplot(grid[0]), groups, colours)
    _offsets(figure.add_subplot(grid[1]), groups, colours)
    _turn_taking(figure.add_subplot(grid[2]), groups, colours)
    lower = figure.add_gridspec(
        rows, 1, left=0.055, right=0.985, top=1 - 5.65 / height, bottom=0.5 / height, hspace=0.2
    )
    wav_CS, rate = example.reader.audio(example.row)
    _example_title(figure, 1 - 5.35 / height, example, start, seconds)
    for row in range(rows):
        axis = figure.add_subplot(lower[row])
        _timeline(axis, example.dialogue, wav_CS, rate, start + row * seconds / rows, seconds / rows)
    axis.set_xlabel("seconds", fontsize=9, color=TEXT_COLOUR)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def excerpt(dialogue: Dialogue, longest: float = 24.0) -> tuple[float, float]:
    """(start, length) in seconds of the stretch with most changes of speaker, at most `longest`."""
    if dialogue.seconds <= longest:
        return 0.0, dialogue.seconds
    words = sorted((w.start, side) for side in ("left", "right") for w in dialogue.side(side).words)
    changes = [b[0] for a, b in zip(words, words[1:], strict=False) if a[1] != b[1]]
    starts = [max(0.0, min(time - 1.0, dialogue.seconds - longest)) for time in [1.0, *changes]]
    return max(starts, key=lambda s: sum(s <= time < s + longest for time in changes)), longest


def _title(figure: "Figure", height: float, shards: Path, manifest: dict[str, Any]) -> None:
    hours = {split: sum(g["hours"] for g in by.values()) for split, by in manifest["content"].items()}
    counts = [group for by in manifest["content"].values() for group in by.values()]
    facts = [
        f"{sum(g['dialogues'] for g in counts):,} dialogues",
        f"{sum(g['samples'] for g in counts):,} samples",
        *(f"{hours[split]:.2f} h {split}" for split in SPLITS if split in hours),
        f"{len(manifest['shards'])} shards",
        "licences: " + ", ".join(sorted(manifest["licences"])),
    ]
    figure.text(0.02, 1 - 0.22 / height, str(shards), va="top", fontsize=15, weight="bold", parse_math=False)
    figure.text(
        0.02, 1 - 0.58 / height, "   |   ".join(facts), va="top", fontsize=9.5, color=FAINT_COLOUR, parse_math=False
    )


def _lengths(axis: "Axes", groups: "dict[tuple[str, str], Group]", colours: dict[str, str]) -> None:
    values = {s: [x for (_, src), g in groups.items() if src == s for x in g.lengths] for s in colours}
    longest = max(max(v, default=1.0) for v in values.values())
    bins = np.linspace(0, longest * 1.02, 31).tolist()
    axis.hist(list(values.values()), bins=bins, stacked=True, color=list(colours.values()), label=list(values))
    _style(axis, "Length of a dialogue", "seconds")
    axis.set_xlim(0, longest * 1.02)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.2)  # room for the legend
    axis.legend(fontsize=8.5, frameon=False, labelcolor=TEXT_COLOUR, ncols=3, loc="upper left", handlelength=1.2)


def _offsets(axis: "Axes", groups: "dict[tuple[str, str], Group]", colours: dict[str, str]) -> None:
    values = {s: [x for (_, src), g in groups.items() if src == s for x in g.turns.offsets] for s in colours}
    low, high = -2.0, 3.0
    clipped = [np.clip(v, low, high) for v in values.values()]  # the outermost bars hold what lies beyond
    axis.axvspan(low, 0, color="#f6f1f2", zorder=0)
    axis.hist(clipped, bins=np.linspace(low, high, 41).tolist(), stacked=True, color=list(colours.values()))
    axis.set_xlim(low, high)
    axis.axvline(0, color=FAINT_COLOUR, linewidth=0.8)
    everything = np.concatenate([np.asarray(v, dtype=float) for v in values.values()])
    if len(everything):
        note = f"median {np.median(everything):+.2f} s\n{(everything < 0).mean():.0%} overlap"
        axis.text(0.97, 0.95, note, transform=axis.transAxes, ha="right", va="top", fontsize=8.5, color=FAINT_COLOUR)
    axis.text(0.03, 0.95, "overlap", transform=axis.transAxes, va="top", fontsize=8.5, color=AGENT_COLOUR)
    _style(axis, "From one speaker to the other", "gap in seconds")


def _turn_taking(axis: "Axes", groups: "dict[tuple[str, str], Group]", colours: dict[str, str]) -> None:
    """Pause, gap and overlap as bars; speech, ten times as much, as a line of text below."""
    kinds = ("pause", "gap", "overlap")
    width = 0.8 / len(colours)
    speech = []
    for n, (source, colour) in enumerate(colours.items()):
        total = TurnTaking()
        for (_, name), group in groups.items():
            if name == source:
                total.add(group.turns)
        minute = total.per_minute()
        speech.append(f"{source} {minute['speech']:.1f}")
        x = np.arange(len(kinds)) - 0.4 + width * (n + 0.5)
        bars = axis.bar(x, [minute[kind] for kind in kinds], width * 0.92, color=colour)
        axis.bar_label(bars, fmt="%.1f", fontsize=7.5, color=FAINT_COLOUR, padding=1)
    for n, kind in enumerate(kinds):
        axis.plot([n - 0.42, n + 0.42], [NATURAL[kind]] * 2, color=TEXT_COLOUR, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.22)
    axis.text(
        0.03, 0.97, "dashed: telephone calls between people", transform=axis.transAxes, va="top", fontsize=8,
        color=FAINT_COLOUR,
    )  # fmt: skip
    _style(axis, "Seconds in a minute", "")
    axis.set_xlabel(f"speech: {', '.join(speech)}; calls {NATURAL['speech']}", fontsize=9, color=TEXT_COLOUR)
    axis.set_xticks(range(len(kinds)), kinds, fontsize=9, color=TEXT_COLOUR)


def _style(axis: "Axes", title: str, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, loc="left", fontsize=11, weight="bold", color=TEXT_COLOUR)
    axis.set_xlabel(label, fontsize=9, color=TEXT_COLOUR)
    axis.tick_params(labelsize=8, length=0, colors=FAINT_COLOUR)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.grid(axis="y", color=GRID_COLOUR, linewidth=0.7)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#bbbbbb")


def _example_title(figure: "Figure", y: float, example: "Example", start: float, seconds: float) -> None:
    dialogue, side = example.dialogue, example.reader.rows[example.row].side
    name = f"{dialogue.id} ({dialogue.source}, {dialogue.split})"
    part = "" if seconds == dialogue.seconds else f", {start:.0f} to {start + seconds:.0f} s of {dialogue.seconds:.0f}"
    figure.text(0.02, y, f"One dialogue: {name}{part}", fontsize=11, weight="bold", va="bottom", parse_math=False)
    prompt = dialogue.side(side).role_prompt
    if prompt:
        short = prompt if len(prompt) <= 170 else prompt[:167] + "..."
        height = figure.get_size_inches()[1]
        figure.text(0.02, y - 0.22 / height, short, fontsize=8.5, color=FAINT_COLOUR, va="bottom", parse_math=False)


def _timeline(axis: "Axes", dialogue: Dialogue, wav_CS: npt.NDArray, rate: int, start: float, seconds: float) -> None:
    """Left channel above, right below, each with its words; overlaps shaded."""
    lanes = (("left", wav_CS[0], 1.0, 1), ("right", wav_CS[1], -1.0, -1))
    for side, signal_S, centre, up in lanes:
        is_agent = dialogue.side(side).is_agent
        colour = AGENT_COLOUR if is_agent and (side == "left" or not dialogue.left.is_agent) else USER_COLOUR
        scale = 0.72 / max(float(np.abs(signal_S).max(initial=0.0)), 0.02)
        times, low, high = _envelope(signal_S, rate, start, seconds)
        axis.axhline(centre, color=colour, linewidth=0.5, alpha=0.5)
        axis.fill_between(times, centre + low * scale, centre + high * scale, color=colour, linewidth=0, alpha=0.9)
        label = f"{side}\n{'agent' if is_agent else 'user'}"
        axis.text(start - seconds * 0.006, centre, label, ha="right", va="center", fontsize=8.5, color=colour)
        words = [w for w in dialogue.side(side).words if start <= w.start < start + seconds]
        places = [min(w.start, start + seconds - _width(w, seconds)) for w in words]
        for word, x, level in zip(words, places, _levels(words, places, seconds), strict=True):
            axis.plot(
                [word.start, word.end], [centre + up * 0.8] * 2, color=colour, linewidth=1.6, solid_capstyle="butt"
            )
            if level is not None:
                y = centre + up * (1.06 + 0.42 * level)
                axis.text(x, y, word.text, va="center", fontsize=8, color=TEXT_COLOUR, parse_math=False)
    for low_t, high_t in overlaps(dialogue):
        if high_t > start and low_t < start + seconds:
            axis.axvspan(max(low_t, start), min(high_t, start + seconds), color="#f3dfe2", zorder=0, linewidth=0)
    for event in dialogue.events:
        at, kind = float(event.get("start", -1.0)), str(event.get("kind", "")).replace("_", " ")
        if start <= at < start + seconds:
            axis.text(at, 0, kind, va="center", fontsize=7.5, style="italic", color=FAINT_COLOUR, parse_math=False)
    reach = 1 + 1.06 + 0.42 * WORD_LEVELS - 0.1
    axis.set(xlim=(start, start + seconds), ylim=(-reach, reach), yticks=[])
    axis.set_xticks(np.arange(np.ceil(start), start + seconds + 1e-6))
    axis.tick_params(axis="x", labelsize=8, length=0, colors=FAINT_COLOUR)
    axis.grid(axis="x", color=GRID_COLOUR, linewidth=0.7)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set_visible(False)


def overlaps(dialogue: Dialogue) -> list[tuple[float, float]]:
    """Times at which words of both sides sound."""
    left, right = dialogue.left.words, dialogue.right.words
    pairs = ((max(a.start, b.start), min(a.end, b.end)) for a in left for b in right)
    return [(start, end) for start, end in pairs if start < end]


def _envelope(signal_S: npt.NDArray, rate: int, start: float, seconds: float) -> tuple[npt.NDArray, ...]:
    """Times, lowest and highest sample of up to 1500 slices: exact peaks at any length."""
    part = signal_S[int(start * rate) : int((start + seconds) * rate)]
    if not len(part):
        return np.array([start]), np.zeros(1), np.zeros(1)
    edges = np.unique(np.linspace(0, len(part), min(1500, len(part)) + 1).astype(int))[:-1]
    return start + edges / rate, np.minimum.reduceat(part, edges), np.maximum.reduceat(part, edges)


def _width(word: Word, seconds: float) -> float:
    """Width of a word with the space after it, in seconds of a row."""
    return (len(word.text) + 1) * LETTER_INCHES * seconds / (WIDTH_INCHES * 0.93)


def _levels(words: Sequence[Word], places: Sequence[float], seconds: float) -> list[int | None]:
    """Line of each word at its place: the nearest on which it does not touch the one before.

    If all are full the word goes to the freest, but one moved left from the edge of the row is left out.
    """
    free_from: list[float] = [0.0] * WORD_LEVELS
    levels: list[int | None] = []
    for word, x in zip(words, places, strict=True):
        free = [n for n, end in enumerate(free_from) if end <= x]
        level = free[0] if free else free_from.index(min(free_from))
        levels.append(None if not free and x < word.start else level)
        if levels[-1] is not None:
            free_from[level] = max(free_from[level], x + _width(word, seconds))
    return levels
