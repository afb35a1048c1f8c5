"""Writes what `ppx-train plan` says of each recipe for GPUs into the table of docs/guide/recipes.md.

    python scripts/recipe_plans.py            # prints the table
    python scripts/recipe_plans.py --write    # puts it into the page

The hardware is that of the first comment of a recipe, such as 8 x 80 GB. Everything is an estimate.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from model.config import FRAME_RATE  # noqa: E402
from ppx_train.config.load import load  # noqa: E402
from ppx_train.config.run import Run  # noqa: E402
from ppx_train.planning.gpus import Gpu, find_gpu  # noqa: E402
from ppx_train.planning.plan import gigabytes, needed_by  # noqa: E402
from ppx_train.planning.speed import step_time  # noqa: E402
from ppx_train.recipes import recipe_names, recipe_summary  # noqa: E402
from ppx_train.training.build import empty_lm  # noqa: E402
from ppx_train.training.memory import parameter_sizes  # noqa: E402

PAGE = ROOT / "docs" / "guide" / "recipes.md"
MEAN_SECONDS = 56
"""The published mean length of a dialogue."""
HARDWARE = re.compile(r"(\d+) x (\d+) GB$")
NAMES = {24: "RTX 4090", 80: "H100"}
"""The GPU of each size of memory that times are estimated for."""
HEAD = "| recipe plan | GPUs | GB of a GPU | s a step | hours | GB a checkpoint |\n|---|---|---|---|---|---|\n"


def hardware(recipe: str) -> tuple[int, Gpu] | None:
    """The number and kind of the GPUs that a recipe is made for; None for a CPU."""
    found = HARDWARE.search(recipe_summary(recipe))
    return (int(found[1]), find_gpu(NAMES[int(found[2])])) if found else None


def rows() -> Iterator[str]:
    """One line of the table for each recipe that is made for GPUs."""
    for recipe in recipe_names():
        if made_for := hardware(recipe):
            number, gpu = made_for
            run = load([f"recipe={recipe}", "data.paths=[shards]"])
            assert isinstance(run, Run)
            lm = empty_lm(run)
            seconds = step_time(run, lm, gpu, MEAN_SECONDS * FRAME_RATE).total
            cells = (
                f"`{recipe}`", f"{number} x {gpu.name}", gigabytes(needed_by(run, lm)), f"{seconds:.2f}",
                f"{seconds * run.steps / 3600:.1f}", gigabytes(12.0 * parameter_sizes(run, lm).trained),
            )  # fmt: skip
            yield f"| {' | '.join(cells)} |\n"


def with_table(page: str) -> str:
    """The page with the table of today."""
    start = page.index(HEAD.partition("\n")[0])
    end = page.index("\n\n", start) + 1
    return page[:start] + HEAD + "".join(rows()) + page[end:]


def main() -> None:
    about, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/recipes.md")
    if parser.parse_args().write:
        PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
    else:
        print(HEAD + "".join(rows()), end="")


if __name__ == "__main__":
    main()
