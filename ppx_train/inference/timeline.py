"""A picture of a conversation: both waveforms over time and the agent's words where they were said."""

# Shapes: S samples

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from model.config import SAMPLE_RATE
from model.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Audio = npt.NDArray[np.float32]

USER_COLOUR = "#5b6c8f"
AGENT_COLOUR = "#d1495b"
TEXT_COLOUR = "#222222"
GRID_COLOUR = "#e4e4e8"
ROW_WIDTH_INCHES = 14.0
LETTER_INCHES = 0.078
"""Mean width of a letter at 8.5 points, measured on DejaVu Sans."""
WORD_LEVELS = 4
"""Lines below a waveform on which words are written."""
LONGEST_ROW_SECONDS = 15.0


@dataclass(kw_only=True, frozen=True)
class AgentWord:
    """A word of the agent, and the second in which the model generated its first piece."""

    text: str
    seconds: float


def draw_timeline(
    path: Path, user_S: Audio, agent_S: Audio, words: Sequence[AgentWord], *, title: str, facts: Sequence[str]
) -> None:
    """Draws user above agent, in rows of at most 15 s, and writes a PNG that appears whole or not at all.

    Shapes: user_S, agent_S mono samples at 24 kHz.
    facts: short strings for the line under the title, such as "voice NATF0".
    """
    # A figure of its own instead of pyplot needs neither global state nor a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = max(len(user_S), len(agent_S)) / SAMPLE_RATE
    row_seconds = _row_seconds(total)
    num_rows = max(1, int(np.ceil(total / row_seconds - 1e-6)))
    height = 1.15 + 2.1 * num_rows
    figure = Figure(figsize=(ROW_WIDTH_INCHES, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(num_rows, 1, squeeze=False)
    for row, axis in enumerate(axes[:, 0]):
        _draw_row(axis, row * row_seconds, row_seconds, user_S, agent_S, words)
    axes[-1, 0].set_xlabel("seconds", fontsize=9, color=TEXT_COLOUR)
    figure.suptitle(
        title, x=0.045, y=1 - 0.2 / height, ha="left", va="top", fontsize=13, weight="bold", parse_math=False
    )
    line = "   |   ".join(facts)
    figure.text(0.045, 1 - 0.5 / height, line, ha="left", va="top", fontsize=9, color="#666666", parse_math=False)
    figure.subplots_adjust(left=0.045, right=0.985, top=1 - 0.82 / height, bottom=0.5 / height, hspace=0.22)
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a rare script is drawn as boxes
        figure.savefig(temporary, dpi=130, format="png")


def printable(text: str) -> str:
    """Returns text without control characters: an untrained model says any byte, also those that steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _row_seconds(total: float) -> float:
    """The length of a row. Rows have equal whole seconds, so that the last is not left half empty."""
    num_rows = max(1, int(np.ceil(total / LONGEST_ROW_SECONDS - 1e-6)))
    return max(total, 1.0) if num_rows == 1 else float(np.ceil(total / num_rows))


def _draw_row(
    axis: "Axes", start: float, seconds: float, user_S: Audio, agent_S: Audio, words: Sequence[AgentWord]
) -> None:
    """One row: user centred on y = 2, agent on y = 0, words below."""
    for signal_S, centre, colour, name in ((user_S, 2.0, USER_COLOUR, "user"), (agent_S, 0.0, AGENT_COLOUR, "agent")):
        # The whole signal has one scale, so that rows compare; a silent side stays a line.
        scale = 0.92 / max(float(np.abs(signal_S).max(initial=0.0)), 0.05)
        times, low, high = _envelope(signal_S, start, seconds)
        axis.axhline(centre, color=colour, linewidth=0.5, alpha=0.5)
        axis.fill_between(times, centre + low * scale, centre + high * scale, color=colour, linewidth=0, alpha=0.9)
        label_x = start - seconds * 0.006
        axis.text(label_x, centre, name, ha="right", va="center", fontsize=9, color=colour, weight="bold")
    visible = [word for word in words if start <= word.seconds < start + seconds]
    for word, level in zip(visible, _levels(visible, seconds), strict=True):
        x, y = min(word.seconds, start + seconds - _width(word, seconds)), -1.55 - 0.62 * level
        axis.plot([word.seconds, word.seconds], [-1.05, y], color=AGENT_COLOUR, linewidth=0.6, alpha=0.35, zorder=1)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axis.text(
            x,
            y,
            printable(word.text),
            ha="left",
            va="center",
            fontsize=8.5,
            color=TEXT_COLOUR,
            bbox=box,
            parse_math=False,
        )
    axis.set_xlim(start, start + seconds)
    axis.set_ylim(-1.55 - 0.62 * WORD_LEVELS + 0.25, 3.1)
    axis.set_yticks([])
    axis.set_xticks(np.arange(np.ceil(start), start + seconds + 1e-6))
    axis.tick_params(axis="x", labelsize=8, length=0, colors="#666666")
    axis.grid(axis="x", color=GRID_COLOUR, linewidth=0.7)
    axis.set_axisbelow(True)
    for side in axis.spines.values():
        side.set_visible(False)


def _envelope(signal_S: Audio, start: float, seconds: float) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """The lowest and highest sample of each of up to 1500 slices of a row: the peaks are exact at any length."""
    part = signal_S[int(start * SAMPLE_RATE) : int((start + seconds) * SAMPLE_RATE)]
    if not len(part):
        return np.array([start]), np.zeros(1), np.zeros(1)
    edges = np.unique(np.linspace(0, len(part), min(1500, len(part)) + 1).astype(int))[:-1]
    return start + edges / SAMPLE_RATE, np.minimum.reduceat(part, edges), np.maximum.reduceat(part, edges)


def _levels(words: Sequence[AgentWord], seconds: float) -> list[int]:
    """The line of each word: the highest on which it does not touch the word before, else the one that ends first."""
    free_from = [0.0] * WORD_LEVELS
    levels = []
    for word in words:
        freest = free_from.index(min(free_from))
        level = next((n for n, free in enumerate(free_from) if free <= word.seconds), freest)
        free_from[level] = max(free_from[level], word.seconds + _width(word, seconds))
        levels.append(level)
    return levels


def _width(word: AgentWord, seconds: float) -> float:
    """The width of a word with the space after it, in seconds of a row."""
    return (len(word.text) + 1) * LETTER_INCHES * seconds / (ROW_WIDTH_INCHES * 0.94)
