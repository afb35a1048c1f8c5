"""The picture of a run: the loss of each stream over the steps, in training and held out."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

STREAMS = ("text_loss", "semantic_loss", "acoustic_loss", "user_semantic_loss", "user_acoustic_loss")
"""The panels of a language model's run."""
AVERAGED = "heldout_ema"
"""The prefix of held-out figures of the moving average of the weights."""
WIDE_RANGE = 30
"""A panel whose values span more than this factor has a logarithmic axis: its end would be flat on a linear one."""


def read_metrics(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns every logged metric as (step, value) pairs; where a run was resumed, the later start wins."""
    merged: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(run_dir.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        merged[name][int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in merged.items()}


def draw_curves(run_dir: Path, panels: Sequence[str] = STREAMS, unit: str = "nats") -> Path:
    """Draws RUN/curves.png from RUN/logs and returns its path: a panel for each of these metrics that was logged."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(run_dir)
    shown = [name for name in panels if f"train/{name}" in metrics or f"heldout/{name}" in metrics]
    figure = Figure(figsize=(4 * max(1, len(shown)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        for kind, style in (
            ("train", {"color": "#9db4c0", "lw": 1.2}),
            ("heldout", {"color": "#c1440e", "marker": "o"}),
        ):
            points = metrics.get(f"{kind}/{name}", [])
            if points:
                axes.plot(*zip(*points, strict=True), label=kind.replace("heldout", "held out"), **style)
        values = [value for kind in ("train", "heldout") for _, value in metrics.get(f"{kind}/{name}", [])]
        is_wide = min(values) > 0 and max(values) > WIDE_RANGE * min(values)
        axes.set(
            title=name.removesuffix("_loss").replace("_", " "), xlabel="step", yscale="log" if is_wide else "linear"
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 1:
            axes.set_ylabel(f"loss ({unit})")
            axes.legend(frameon=False)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=110)
    return path
