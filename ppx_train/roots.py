"""Where the shipped files are, and the check that no other project's `model` or `data_pipelines` is imported."""

from importlib.util import find_spec
from pathlib import Path

from model.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages, recipes/ and configs/, in a checkout as in an installed wheel."""
RECIPES = ROOT / "recipes"
CONFIGS = ROOT / "configs"


def check_packages() -> None:
    """Raises UserError naming the intruder if `model` or `data_pipelines` comes from another folder.

    Plain top-level package names can be shadowed by a `model/` in the current folder or on PYTHONPATH.
    """
    for name in ("model", "data_pipelines"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parents[1] != ROOT:
            raise UserError(
                f"package `{name}` comes from {found}, not from {ROOT}: run from another folder", code="bad-combination"
            )
