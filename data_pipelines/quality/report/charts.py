"""Charts as inline SVG and HTML. Colours are those of the page's style sheet, light or dark; all text is escaped."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("c0", "c1", "c2", "c3", "c4", "agent", "user", "warn", "ref", "soft", "line")
"""The variables of the style sheet that charts may use."""


@dataclass(frozen=True)
class Series:
    """One distribution: its label, its colour (one of COLOURS), and its numbers."""

    label: str
    colour: str
    numbers: Sequence[float]


def histogram(
    series: Sequence[Series], low: float, high: float, label: str, bins: int = 40, zero: bool = False
) -> Markup:
    """The shares of the numbers in bins from `low` to `high`, as one stepped line each.

    The first and the last bin also hold what lies beyond. A series of colour "ref" is a filled area. `zero` marks 0 on
    the horizontal axis.
    """
    drawn = sorted((one for one in series if len(one.numbers)), key=lambda one: one.colour != "ref")
    if not drawn or high <= low:
        return Markup('<p class="none">nothing to show</p>')
    axes = _axes(420, 216)
    edges = np.linspace(low, high, bins + 1)
    for one in drawn:
        percent = 100 * np.histogram(np.clip(one.numbers, low, high), edges)[0] / len(one.numbers)
        opacity, width = (0.3, 1.0) if one.colour == "ref" else (0.1, 1.8)
        axes.stairs(percent, edges, color=_colour(one.colour), fill=True, alpha=opacity)
        axes.stairs(percent, edges, color=_colour(one.colour), linewidth=width)
    if zero:
        axes.axvline(0, color=_colour("soft"), linestyle=":", linewidth=1)
    axes.set(xlim=(low, high), ylim=(0, 1.08 * axes.dataLim.y1), xlabel=label)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=_colour("line"))
    axes.tick_params(length=0, pad=6)
    medians = "; ".join(f"{one.label}: median {np.median(one.numbers):.3g}" for one in drawn)
    return _svg(axes, Markup('role="img" aria-label="{}. {}"').format(label, medians), medians)


def _axes(width: int, height: int) -> Axes:
    """The axes of a new figure of this size in pixels, without a frame."""
    axes = Figure(figsize=(width / 72, height / 72), frameon=False, layout="constrained").subplots()
    axes.set(frame_on=False, axisbelow=True)
    return axes


def _colour(name: str) -> str:
    """A colour that stands for a variable of the style sheet until `_svg` puts the variable in its place."""
    return f"#c0ffe{COLOURS.index(name):x}"


def _svg(axes: Axes, attributes: Markup, title: str = "") -> Markup:
    """The drawing as an element of the page, whose style sheet sets colours, fonts and size."""
    figure, out = cast(Figure, axes.get_figure()), io.StringIO()
    for artist in figure.findobj():
        artist.set_clip_on(False)  # clipping needs names, which would stand several times on the page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = re.sub(r' id="[^"]*"|font[\w-]*: [^;"]*;? ?|(?<=>)\s+', "", out.getvalue())
    drawing = re.sub(r"#c0ffe([0-9a-f])", lambda found: f"var(--{COLOURS[int(found[1], 16)]})", drawing)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    head = Markup('<svg viewBox="0 0 {} {}" {}><title>{}</title>').format(width, height, attributes, title)
    return head + Markup(drawing[drawing.index("<g>") :])


def legend(series: Sequence[Series]) -> Markup:
    """The names of the colours."""
    items = (f'<span class="key"><i class="{one.colour}"></i>{escape(one.label)}</span>' for one in series)
    return Markup(f'<p class="legend">{"".join(items)}</p>')


def spark(numbers: Sequence[float], limit: float | None) -> Markup:
    """A small histogram, with the limit if it is near; nothing if all numbers are the same."""
    low, high = float(np.min(numbers)), float(np.max(numbers))
    if high - low < 1e-9:
        return Markup("")
    span = max(high - low, abs(limit or 0) * 0.2)
    if limit is not None and low - 1.5 * span <= limit <= high + 1.5 * span:
        low, high = min(low, limit), max(high, limit)
    pad = 0.04 * (high - low)
    low, high = low - pad, high + pad
    axes = _axes(120, 28)
    axes.hist(numbers, bins=30, range=(low, high), rwidth=0.75, color=_colour("agent"))
    if limit is not None and low <= limit <= high:
        axes.axvline(limit, color=_colour("warn"), linewidth=2)
    axes.set(xlim=(low, high))
    axes.set_axis_off()
    return _svg(axes, Markup('class="spark" aria-hidden="true"'))


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    label: str
    value: str
    parts: tuple[tuple[str, float], ...]
    """Colour and width, in percent of the longest row, of each part."""


def bars(rows: Mapping[str, Mapping[str, float]], unit: str, most: int = 14) -> list[Bar]:
    """The rows {name: {colour: value}}, the largest first; what is beyond `most` rows is summed up."""
    ordered = sorted(rows.items(), key=lambda row: (-sum(row[1].values()), row[0]))
    if len(ordered) > most:
        rest: dict[str, float] = {}
        for _, parts in ordered[most - 1 :]:
            for colour, value in parts.items():
                rest[colour] = rest.get(colour, 0) + value
        ordered = [*ordered[: most - 1], (f"{len(ordered) - most + 1} others", rest)]
    longest = max((sum(parts.values()) for _, parts in ordered), default=0) or 1
    return [
        Bar(name, amount(sum(parts.values()), unit), tuple((c, round(100 * v / longest, 2)) for c, v in parts.items()))
        for name, parts in ordered
    ]


def amount(value: float, unit: str) -> str:
    """A value for people; hours below one are shown as minutes."""
    if unit == "h":
        return f"{value:,.1f} h" if value >= 1 else f"{60 * value:.1f} min"
    return f"{value:,.0f}{unit}"
