"""Files that ship with the package."""

from pathlib import Path

from model.errors import UserError


def asset(name: str) -> Path:
    """Path of a shipped file, e.g. `mimi_small.safetensors`.

    Raises: UserError ("not-found") that lists the shipped files.
    """
    folder = Path(__file__).parent
    path = folder / name
    if not path.is_file():
        shipped = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".jsonl"))
        raise UserError(f"no shipped file {name}: choose one of {', '.join(shipped)}", code="not-found")
    return path
