"""Draws the pictures of the docs.

architecture.png shows the way of the data, rooms.png which room may import which, and sequence.png what the model sees.

python scripts/draw_architecture.py
"""

import ast
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

# (fill, edge) of each package; what lies on disk is white
DATA = ("#e3edf7", "#4a7fb0")
MODEL = ("#fbe9d7", "#cf7a2c")
TRAIN = ("#e2f0e6", "#4b9166")
DISK = ("#ffffff", "#8a8f98")
INK, FAINT = "#23272e", "#6b7280"
SILENCE = ("#f1f2f4", "#c3c7cd")
ARROW = {"arrowstyle": "-|>", "color": FAINT, "lw": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A white page whose data units are tenths of an inch, so that text and boxes keep their proportion."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width * 10), ylim=(0, height * 10))
    axes.set_axis_off()
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, title: str, lines: str, colours: tuple[str, str]) -> None:
    """One station, 13 units high, with its lower left corner at (x, y)."""
    fill, edge = colours
    style = "round,pad=0,rounding_size=1.1"
    axes.add_patch(FancyBboxPatch((x, y), width, 13, boxstyle=style, facecolor=fill, edgecolor=edge, lw=1.4))
    axes.text(x + width / 2, y + 9.9, title, ha="center", va="center", fontsize=11.5, weight="bold", color=INK)
    axes.text(x + width / 2, y + 4.5, lines, ha="center", va="center", fontsize=9.3, color=INK, linespacing=1.4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: str = "") -> None:
    axes.annotate("", end, start, arrowprops=ARROW | ({"connectionstyle": bend} if bend else {}))


def draw_flow() -> Figure:
    """Sources -> scripts -> dialogues -> shards; shards -> model -> checkpoint; checkpoint -> export -> stream."""
    figure, axes = new_axes(13.2, 8.4)
    axes.text(3, 80.2, "From raw speech to a live stream", fontsize=15, weight="bold", color=INK, va="center")
    legend = (("data_pipelines", DATA), ("model", MODEL), ("ppx_train", TRAIN), ("files on disk", DISK))
    for at, (name, (fill, edge)) in zip((72, 90, 101, 114), legend, strict=True):
        axes.add_patch(Rectangle((at, 79.4), 2.2, 1.7, facecolor=fill, edgecolor=edge, lw=1.2))
        axes.text(at + 3, 80.2, name, fontsize=9, color=INK, va="center")

    for y, name, command in (
        (74.3, "1  Make data", "ppx-data synth | speak | fisher | import | gate | shard"),
        (37.6, "2  Train", "ppx-train recipe=NAME"),
        (17.6, "3  Use", "ppx-export, ppx-chat"),
    ):
        axes.text(3, y, name, fontsize=11.5, weight="bold", color=INK, va="center")
        axes.text(20, y, command, fontsize=9, color=FAINT, va="center", family="DejaVu Sans Mono")
        axes.plot((3, 129), (y - 2.2, y - 2.2), color="#e3e5e9", lw=1, zorder=0)

    top, middle, bottom = 57.3, 49.3, 41.3
    box(axes, 3, top, 23, "synth", "service and assistant scripts:\ntemplates or a language model", DATA)
    box(axes, 30, top, 22, "speak", "text to speech, turn taking,\nbarge-ins, noise, word times", DATA)
    box(axes, 3, bottom, 23, "recordings", "Fisher calls, other data sets,\naudio without transcripts", DISK)
    box(axes, 30, bottom, 22, "fisher | import", "transcripts, forced alignment,\nwindows, role prompts", DATA)
    box(axes, 57, middle, 22, "dialogues", "stereo 24 kHz, timed words,\nvoice clip and role", DISK)
    box(axes, 83, middle, 21, "gate", "recognition, speakers, roles,\nduplicates, leaks; report", DATA)
    box(axes, 108, middle, 21, "shard", "Mimi codes, 12.5 frames/s;\ntars, index, manifest", DATA)
    arrow(axes, (26, top + 6.5), (30, top + 6.5))
    arrow(axes, (26, bottom + 6.5), (30, bottom + 6.5))
    arrow(axes, (52, top + 6.5), (57, 58))
    arrow(axes, (52, bottom + 6.5), (57, 53.6))
    arrow(axes, (79, 55.8), (83, 55.8))
    arrow(axes, (104, 55.8), (108, 55.8))

    y = 21.3
    box(axes, 3, y, 22.5, "sample order", "step number -> samples:\na pure function of the seed", DATA)
    box(axes, 29, y, 22.5, "sequences", "hybrid prompt + dialogue,\n17 streams, undelayed", TRAIN)
    box(axes, 55, y, 26, "DuplexLM", "temporal over frames, depth over\n16 codebooks; delays inside", MODEL)
    box(axes, 84.5, y, 20.5, "loss", "per stream, divided by the\nweight of the whole step", TRAIN)
    box(axes, 108.5, y, 20.5, "run", "checkpoints, logs,\ncurves.png", DISK)
    for start, end in ((25.5, 29), (51.5, 55), (81, 84.5), (105, 108.5)):
        arrow(axes, (start, y + 6.5), (end, y + 6.5))
    # shards back to the start of the second row, in the gap above its heading
    axes.plot((126, 126, 1.2, 1.2), (49.3, 39.9, 39.9, y + 6.5), color=FAINT, lw=1.3)
    arrow(axes, (1.2, y + 6.5), (3, y + 6.5))
    axes.text(98, 40.7, "shards: train and heldout", ha="center", va="bottom", fontsize=8.4, color=FAINT)

    y = 1.3
    box(axes, 3, y, 26, "export", "layout kyutai: 8 depth steps,\nlayout nvidia: 16", TRAIN)
    box(axes, 34, y, 27, "model folder", "weights, codec, tokenizer,\nvoices, model card, SHA256SUMS", DISK)
    box(axes, 66, y, 30, "DuplexStream", "each 80 ms: user frame in,\nagent text and audio frame out", MODEL)
    box(axes, 101, y, 28, "chat", "agent WAV, words,\ntimeline picture", TRAIN)
    for start, end in ((29, 34), (61, 66), (96, 101)):
        arrow(axes, (start, y + 6.5), (end, y + 6.5))
    axes.plot((126, 126, 1.2, 1.2), (21.3, 19.9, 19.9, y + 6.5), color=FAINT, lw=1.3)
    arrow(axes, (1.2, y + 6.5), (3, y + 6.5))
    return figure


def draw_rooms() -> Figure:
    """The rooms of the three packages as pyproject.toml's layers state them: a room may import those below it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = {contract["containers"][0]: contract["layers"] for contract in contracts if "containers" in contract}
    columns = (("ppx_train", TRAIN, 3.0), ("data_pipelines", DATA, 46.0), ("model", MODEL, 89.0))
    height = 6.4
    tall = 13 + height * max(map(len, layers.values()))
    figure, axes = new_axes(13.2, tall / 10)
    axes.text(3, tall - 3.5, "Rooms and their layers", fontsize=15, weight="bold", color=INK, va="center")
    below = "a room may import rooms below it and the packages to its right; rooms on one line do not know each other"
    axes.text(3, tall - 6.6, below, fontsize=9, color=FAINT, va="center")
    for package, (fill, edge), x in columns:
        axes.text(x, tall - 10.2, package, fontsize=11.5, weight="bold", color=INK, va="center")
        y = tall - 12 - height
        for layer in layers[package]:
            rooms = [room.strip() for room in layer.split("|") if "(" not in room]
            width = (40 - 0.8 * (len(rooms) - 1)) / len(rooms)
            for n, room in enumerate(rooms):
                at = x + n * (width + 0.8)
                style = "round,pad=0,rounding_size=0.7"
                axes.add_patch(FancyBboxPatch((at, y), width, 5.4, boxstyle=style, facecolor=fill, edgecolor=edge))
                axes.text(
                    at + width / 2, y + 3.5, room, ha="center", va="center", fontsize=8.6, weight="bold", color=INK
                )
                axes.text(
                    at + width / 2,
                    y + 1.6,
                    _about(package, room, width),
                    ha="center",
                    va="center",
                    fontsize=6.2,
                    color=FAINT,
                )
            y -= height
    return figure


def _about(package: str, room: str, width: float) -> str:
    """The beginning of the room's docstring in at most two lines of `width` tenths of an inch."""
    path = ROOT / package / room
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text("utf-8"))) or ""
    phrase = text.split("\n")[0].split(":")[0].split(". ")[0].rstrip(".").replace("`", "")
    return "\n".join(textwrap.wrap(phrase, int(width * 2), max_lines=2, placeholder=" ..."))


def draw_sequence() -> Figure:
    """The three channels of a training sequence: prompt segments, then the dialogue."""
    figure, axes = new_axes(13.2, 4.0)
    axes.text(3, 36.6, "What the model sees", fontsize=15, weight="bold", color=INK, va="center")
    below = "one column is one frame of 80 ms; the same function builds the prompt for training and for a live call"
    axes.text(3, 33.2, below, fontsize=9, color=FAINT, va="center")
    left, heights = 20, {"agent text": 22.0, "agent audio": 14.3, "user audio": 6.6}
    channels = {"agent text": "channel 0", "agent audio": "channels 1..8", "user audio": "channels 9..16"}
    segments = (
        ("voice prompt", 24, ("PAD", "codes of the clip", "440 Hz tone")),
        ("pause", 9, ("PAD", "silence", "tone")),
        ("role prompt", 29, ("<system> You work for ... <system>", "silence", "440 Hz tone")),
        ("pause", 9, ("PAD", "silence", "tone")),
        ("dialogue", 38, ("words, EPAD, PAD", "codes of the agent", "codes of the user")),
    )
    for name, y in heights.items():
        axes.text(left - 1.5, y + 3.9, name, ha="right", va="center", fontsize=10, weight="bold", color=INK)
        axes.text(left - 1.5, y + 1.5, channels[name], ha="right", va="center", fontsize=8, color=FAINT)
    x: float = left
    speaking = {"codes of the clip": MODEL, "codes of the agent": MODEL, "codes of the user": DATA}
    speaking |= {"<system> You work for ... <system>": TRAIN, "words, EPAD, PAD": TRAIN}
    for name, width, contents in segments:
        axes.text(x + width / 2, 29.7, name, ha="center", va="center", fontsize=9.5, weight="bold", color=INK)
        for y, content in zip(heights.values(), contents, strict=True):
            fill, edge = speaking.get(content, SILENCE)
            axes.add_patch(Rectangle((x + 0.2, y), width - 0.4, 5.6, facecolor=fill, edgecolor=edge, lw=1.1))
            colour = INK if content in speaking else FAINT
            axes.text(x + width / 2, y + 2.8, content, ha="center", va="center", fontsize=8.6, color=colour)
        x += width
    prompt_end = left + 71
    for start, end, text, colour in (
        (left + 0.2, prompt_end - 0.4, "prompt: no loss; frame 0 is discarded", FAINT),
        (prompt_end + 0.2, left + 108.8, "loss: text, agent audio, user audio", MODEL[1]),
    ):
        axes.plot((start, start, end, end), (5.2, 4.2, 4.2, 5.2), color=colour, lw=1.3)
        axes.text((start + end) / 2, 2.3, text, ha="center", va="center", fontsize=9, color=colour)
    return figure


def main() -> None:
    for name, figure in (("architecture", draw_flow()), ("rooms", draw_rooms()), ("sequence", draw_sequence())):
        path = ROOT / "docs/images" / f"{name}.png"
        figure.savefig(path, dpi=140)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
