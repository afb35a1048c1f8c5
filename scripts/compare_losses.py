"""Do two commits train alike? Trains both on the golden shards and compares the losses of every stream at every step.

    python scripts/compare_losses.py main .            # the working tree against main
    python scripts/compare_losses.py HEAD~5 HEAD --steps 50 --set model.lora.rank=4 --rtol 1e-5 --plot losses.png

A and B are commits, or `.` for the working tree of this script. Recipe, config groups and shards come from this tree,
so that commits from before they were stored can be compared; code and its defaults come from each commit. Relative
paths in the recipe begin at the root of this tree.

Exits with 0 if all losses are equal bit by bit (or within --rtol), with 1 if not, with 2 if a commit cannot be trained.
"""

import argparse
import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
RECIPE = ROOT / "tests" / "golden" / "training" / "golden.yaml"
SAME = (
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.threads=1", "trainer.precision=32-true",
    "logging.every=1", 'logging.wandb="off"',
)  # fmt: skip
"""Over any recipe, so that a run is deterministic and logs every step; --set wins over them."""

Losses = dict[str, dict[int, float]]
"""Name of a loss, such as train/text_loss -> step -> value."""


def parse() -> argparse.Namespace:
    about, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="commit, or . for the working tree")
    parser.add_argument("b", metavar="B", help="commit, or . for the working tree")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: those of the recipe)")
    parser.add_argument(
        "--recipe", type=recipe_file, default=RECIPE, help="a shipped recipe or a YAML file (default: the golden run)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings, as for ppx-train"
    )
    parser.add_argument("--rtol", type=float, default=0.0, help="relative difference that passes (default: 0, bitwise)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw every loss of both")
    parser.add_argument("--save", type=Path, metavar="JSON", help="write the losses of B")
    return parser.parse_args()


def recipe_file(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else ROOT / "recipes" / f"{name}.yaml"


def fail(message: str) -> NoReturn:
    """Ends the script with one line and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def resolved(recipe: Path, given: Sequence[str]) -> DictConfig:
    """The recipe with its config groups, SAME and the settings `given` merged in, and absolute paths.

    A setting that a commit does not know is left for that commit to refuse.
    """
    if not recipe.is_file():
        fail(f"--recipe {recipe}: no such file")
    for item in given:
        if "=" not in item:
            fail(f"--set {item}: write key=value, e.g. --set seed=2")
    swaps = dict(item.split("=", 1) for item in given if (CONFIGS / item.partition("=")[0]).is_dir())
    single = [item for item in given if item.partition("=")[0] not in swaps]
    try:
        own = DictConfig(OmegaConf.load(recipe))
        groups = {**own.pop("groups", {}), **swaps}
        layers = [{group: OmegaConf.load(CONFIGS / group / f"{name}.yaml")} for group, name in groups.items()]
        config = DictConfig(OmegaConf.merge(*layers, own, *map(OmegaConf.from_dotlist, (list(SAME), single))))
    except (OSError, ValueError, OmegaConfBaseException) as why:
        fail(f"{recipe}: {str(why).strip().splitlines()[0]}")
    for key in ("model.init", "model.codec", "model.tokenizer", "data.paths"):
        value = OmegaConf.select(config, key)
        if isinstance(value, str):
            OmegaConf.update(config, key, from_root(value))
        elif value is not None:
            OmegaConf.update(config, key, [from_root(path) for path in value], merge=False)
    return config


def from_root(path: str) -> str:
    """The absolute path of what lies below the root of this tree; anything else, such as a hub's name, as it is."""
    return str(ROOT / path) if (ROOT / path).exists() else path


def git(*arguments: str) -> str:
    """What git prints about this repository. Ends the script with git's message if the command fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        fail(f"git {arguments[0]}: {last_line(done.stderr).removeprefix('fatal: ')}")
    return done.stdout.strip()


def last_line(text: str) -> str:
    """The line that says what went wrong: the last of the form `error: ...` or `error[code]: ...`, else the last."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [found[1] for line in lines if (found := re.match(r"error(?:\[[\w-]+\])?: (.*)", line))]
    return [*(lines or ["no message"]), *errors][-1]


def title(commit: str) -> str:
    """`main (1a2b3c4 Subject)`. Ends the script if there is no such commit."""
    if commit == ".":
        return f"working tree ({ROOT})"
    return f"{commit} ({git('log', '-1', '--format=%h %s', commit, '--')})"


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The tree of a commit, as a git worktree at `folder` that is removed afterwards; this tree for `.`."""
    if commit == ".":
        yield ROOT
        return
    # without the user's hooks, which may expect a tree that lasts
    git("-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--quiet", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


@dataclass(frozen=True)
class Training:
    """A process that trains into `run_dir` and writes what it prints to `log`."""

    process: "subprocess.Popen[bytes]"
    run_dir: Path
    log: Path


@contextmanager
def training(tree: Path, recipe: Path, run_dir: Path) -> Iterator[Training]:
    """Trains with the code of `tree` in one thread and writes nothing into it; stops the process on leaving."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ppx_train", f"recipe={recipe}", f"run_dir={run_dir}"]
    log = run_dir.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Training(process, run_dir, log)
    finally:
        process.kill()
        process.wait()


def wait_for(trainings: Sequence[Training], steps: int) -> None:
    """Waits until all have ended well and shows how far they are. Ends the script if one fails."""
    with tqdm(total=steps * len(trainings), unit="step", desc="train", disable=None) as bar:
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            time.sleep(0.2)
            codes = [one.process.poll() for one in trainings]
            bar.n = sum(max(map(max, read_losses(one.run_dir).values()), default=0) for one in trainings)
            bar.refresh()
    for one in trainings:
        if one.process.returncode:
            fail(f"{one.run_dir.name} cannot be trained: {last_line(one.log.read_text('utf-8', 'replace'))}")


def order(name: str) -> tuple[bool, bool, str]:
    """Training before held-out losses, which are scored after the step; single streams before their sum."""
    return not name.startswith("train/"), name.endswith("/loss"), name


def read_losses(run_dir: Path) -> Losses:
    """All losses that a run has logged so far; a last line without an end is still being written."""
    losses: Losses = {}
    for path in run_dir.glob("logs/version_*/metrics.csv"):
        lines, _, _ = path.read_text("utf-8").rpartition("\n")
        for row in csv.DictReader(io.StringIO(lines)):
            for name, value in row.items():
                if name.endswith("loss") and value:
                    losses.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: losses[name] for name in sorted(losses, key=order)}


def distance(a: float, b: float) -> tuple[float, float]:
    """Absolute difference, and relative to the larger value: 0 for two NaNs, infinite for one that is not finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0, 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf, math.inf
    return abs(a - b), abs(a - b) / max(abs(a), abs(b))


def first_difference(a: Losses, b: Losses, rtol: float) -> str:
    """Where two runs part: step, loss and both values; empty if no loss differs by more than `rtol`."""
    names = sorted(a.keys() | b.keys(), key=order)
    for step in sorted({step for losses in (a, b) for points in losses.values() for step in points}):
        for name in names:
            one, other = a.get(name, {}).get(step), b.get(name, {}).get(step)
            if one is None and other is None:
                continue
            if one is None or other is None:
                return f"step {step}, {name}: only {'A' if other is None else 'B'} has it"
            if distance(one, other)[1] > rtol:
                return f"step {step}, {name}: A {one!r}, B {other!r}"
    return ""


def table(a: Losses, b: Losses) -> str:
    """One line for each loss that both have: first and last values, largest differences and their steps."""
    head = f"{'':28} {'first A':>9} {'last A':>9} {'last B':>9} {'max abs':>9} {'step':>5} {'max rel':>9} {'step':>5}"
    lines = [head]
    for name in sorted(a.keys() & b.keys(), key=order):
        steps = sorted(a[name].keys() & b[name].keys())
        if not steps:
            continue
        apart = [distance(a[name][step], b[name][step]) for step in steps]
        largest = [max((of_step[kind], -step) for of_step, step in zip(apart, steps, strict=True)) for kind in (0, 1)]
        values = [a[name][steps[0]], a[name][steps[-1]], b[name][steps[-1]]]
        cells = [f"{value:9.5f}" for value in values] + [f"{value:9.2e} {-step:5}" for value, step in largest]
        lines.append(f"{name:28} {' '.join(cells)}")
    return "\n".join(lines)


def draw(path: Path, a: Losses, b: Losses, labels: Sequence[str]) -> None:
    """Every loss of both over the steps: training above, held out below. B is a thin line on the wide one of A."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: dict[str, list[str]] = {}
    for name in sorted(a.keys() | b.keys(), key=order):
        rows.setdefault(name.partition("/")[0], []).append(name)
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(3 * columns, 2.8 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, names in enumerate(rows.values()):
        for column, name in enumerate(names, 1):
            axes = figure.add_subplot(len(rows), columns, row * columns + column)
            for losses, label, colour, width in zip((a, b), labels, ("#9db4c0", "#c1440e"), (3, 1), strict=True):
                if name in losses:
                    axes.plot(*zip(*sorted(losses[name].items()), strict=True), color=colour, lw=width, label=label)
            axes.set(title=name, xlabel="step")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if row == 0 and column == 1:
                axes.set_ylabel("loss (nats)")
                figure.legend(loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def losses_of(commits: Sequence[str], config: DictConfig, work: Path) -> list[Losses]:
    """Trains the commits at the same time, each in a folder of its own below `work`, and returns their losses."""
    recipe = work / "recipe.yaml"
    recipe.write_text(OmegaConf.to_yaml(config), "utf-8")
    with ExitStack() as stack:
        trees = [
            stack.enter_context(checked_out(commit, work / f"tree-{name}"))
            for commit, name in zip(commits, "AB", strict=True)
        ]
        runs = [
            stack.enter_context(training(tree, recipe, work / name)) for tree, name in zip(trees, "AB", strict=True)
        ]
        wait_for(runs, config.steps)
        found = [read_losses(run.run_dir) for run in runs]
    if not all(found):  # or two commits that log nothing would be equal
        fail(f"{'A' if not found[0] else 'B'} logged no loss: this script looks for them in RUN/logs/*/metrics.csv")
    return found


def main() -> int:
    args = parse()
    if not args.rtol >= 0:
        fail(f"--rtol {args.rtol:g}: give 0 or more")
    for path in filter(None, (args.plot, args.save)):
        if not path.parent.is_dir():
            fail(f"{path}: no such folder {path.parent}")
    config = resolved(args.recipe, [*args.set, *([f"steps={args.steps}"] if args.steps is not None else [])])
    if "steps" not in config:
        fail(f"{args.recipe} has no steps: add --steps 20")
    labels = [title(commit) for commit in (args.a, args.b)]
    print(*(f"{name}: {label}" for name, label in zip("AB", labels, strict=True)), sep="\n")
    for number in (signal.SIGINT, signal.SIGTERM):  # leaving by an exception removes the worktrees
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="compare-losses-") as work:
        a, b = losses_of((args.a, args.b), config, Path(work))
    print(table(a, b))
    if args.plot:
        draw(args.plot, a, b, labels)
        print(f"curves: {args.plot}")
    if args.save:
        args.save.write_text(json.dumps(b, indent=1) + "\n", "utf-8")
        print(f"losses of B: {args.save}")
    found = first_difference(a, b, args.rtol)
    how = f"within {args.rtol:g}" if args.rtol else "bit by bit"
    print(f"first difference at {found}" if found else f"equal {how}: {len(b)} losses over {config.steps} steps")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
