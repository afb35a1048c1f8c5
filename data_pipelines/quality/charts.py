"""Charts as inline SVG and HTML. Colours are classes of the page's style sheet; all text is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 216
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 10, 34


@dataclass(frozen=True)
class Line:
    """One distribution: its label, colour class (c0 to c5, agent, user, or ref) and numbers."""

    label: str
    colour: str
    numbers: Sequence[float]


def histogram(lines: Sequence[Line], low: float, high: float, label: str, bins: int = 40, zero: bool = False) -> Markup:
    """Shares of the numbers by bins from `low` to `high`, as one stepped line each; the ends hold what lies beyond.

    The distribution of class "ref" is a filled area. `zero` marks 0 on the horizontal axis.
    """
    drawn = [line for line in lines if len(line.numbers)]
    if not drawn or high <= low:
        return Markup('<p class="none">nothing to show</p>')
    edges = np.linspace(low, high, bins + 1)
    shares = [np.histogram(np.clip(line.numbers, low, high), edges)[0] / len(line.numbers) for line in drawn]
    top = max(float(share.max()) for share in shares) * 1.08
    ticks = nice_ticks(low, high)
    parts = [_grid(top), *(_x_tick(tick, low, high) for tick in ticks)]
    if zero:
        parts.append(f'<line class="zero" x1="{_x(0, low, high)}" x2="{_x(0, low, high)}" y1="{TOP}" y2="{_y(0, 1)}"/>')
    order = sorted(zip(drawn, shares, strict=True), key=lambda pair: pair[0].colour != "ref")
    for line, share in order:
        path = _steps(share, edges, top, low, high)
        area = f"{path}V{_y(0, 1)}H{_x(low, low, high)}Z"
        parts.append(f'<path class="area {line.colour}" d="{area}"/><path class="line {line.colour}" d="{path}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(label)}</text>')
    medians = "; ".join(f"{line.label}: median {np.median(line.numbers):.3g}" for line in drawn)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}. {escape(medians)}">'
        f"<title>{escape(medians)}</title>{''.join(parts)}</svg>"
    )


def _x(value: float, low: float, high: float) -> str:
    return f"{LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT):.1f}"


def _y(value: float, top: float) -> str:
    return f"{HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM):.1f}"


def _steps(share: npt.NDArray[np.float64], edges: npt.NDArray[np.floating], top: float, low: float, high: float) -> str:
    points = [f"M{_x(low, low, high)} {_y(0, 1)}"]
    points += [f"V{_y(value, top)}H{_x(edge, low, high)}" for value, edge in zip(share, edges[1:], strict=True)]
    return "".join(points)


def _grid(top: float) -> str:
    """Horizontal lines with the share in percent."""
    lines = []
    for tick in nice_ticks(0, 100 * top, 4):
        y = _y(tick / 100, top)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="tick" x="{LEFT - 5}" y="{y}" dy="3.5" text-anchor="end">{tick:g}%</text>'
        )
    return "".join(lines)


def _x_tick(tick: float, low: float, high: float) -> str:
    y = HEIGHT - BOTTOM + 14
    return f'<text class="tick" x="{_x(tick, low, high)}" y="{y}" text-anchor="middle">{tick:g}</text>'


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between low and high, about so many."""
    raw = (high - low) / about
    power = 10 ** np.floor(np.log10(raw))
    step = float(power * min(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999))
    first = int(np.ceil(low / step - 1e-9))
    return [round(step * n, 10) for n in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def legend(lines: Sequence[Line]) -> Markup:
    """Names of the colours."""
    items = (f'<span class="key"><i class="{line.colour}"></i>{escape(line.label)}</span>' for line in lines)
    return Markup(f'<p class="legend">{"".join(items)}</p>')


def spark(numbers: Sequence[float], limit: float | None) -> Markup:
    """A small histogram, with its limit if that lies in reach; nothing if all numbers are the same."""
    low, high = float(np.min(numbers)), float(np.max(numbers))
    if high - low < 1e-9:
        return Markup("")
    if limit is not None:
        span = max(high - low, abs(limit) * 0.2, 1e-6)
        if low - 1.5 * span <= limit <= high + 1.5 * span:
            low, high = min(low, limit), max(high, limit)
    pad = 0.04 * (high - low)
    low, high = low - pad, high + pad
    counts, edges = np.histogram(numbers, np.linspace(low, high, 31))
    bars = "".join(
        f"M{4 * n + 2} 26v-{max(1.5, 24 * count / np.max(counts)):.1f}" for n, count in enumerate(counts) if count
    )
    mark = ""
    if limit is not None and low <= limit <= high:
        x = 120 * (limit - low) / (high - low)
        mark = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="28"/>'
    return Markup(f'<svg class="spark" viewBox="0 0 120 28" aria-hidden="true"><path d="{bars}"/>{mark}</svg>')


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: widths in percent of the longest, by colour class."""

    label: str
    value: str
    parts: tuple[tuple[str, float], ...]


def bars(rows: Mapping[str, Mapping[str, float]], unit: str, most: int = 14) -> list[Bar]:
    """Rows of {name: {colour: value}}, the largest first; what is beyond `most` rows is summed up."""
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
    """A value for the eye: hours below one as minutes."""
    if unit == "h":
        return f"{value:,.1f} h" if value >= 1 else f"{60 * value:.1f} min"
    return f"{value:,.0f}{unit}"
