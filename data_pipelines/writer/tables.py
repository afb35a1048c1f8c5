"""The text tables of the writer: YAML files beside this module, read once."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.files import digest

FOLDER = Path(__file__).parent / "tables"
# libyaml reads the tables ten times faster where PyYAML was built with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def table(name: str) -> dict[str, Any]:
    """The table `tables/{name}.yaml`; callers must not change it."""
    loaded = yaml.load((FOLDER / f"{name}.yaml").read_text("utf-8"), Loader=LOADER)
    assert isinstance(loaded, dict), name
    return loaded


@cache
def service_domains() -> dict[str, dict[str, Any]]:
    """All service domains by name, in the order of their file names."""
    return {path.stem: table(f"service/{path.stem}") for path in sorted((FOLDER / "service").glob("*.yaml"))}


@cache
def tables_digest() -> str:
    """Hex sha256 of all tables: other tables write other scripts."""
    return digest(*(f"{path.name} {path.read_text('utf-8')}" for path in sorted(FOLDER.rglob("*.yaml"))))
