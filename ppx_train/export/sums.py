"""SHA256SUMS of an exported folder: written last, checked before the folder is used again."""

from pathlib import Path

from data_pipelines.files import sha256_file
from model.errors import UserError

SUMS = "SHA256SUMS"
"""The file of an exported folder, in the format of sha256sum."""


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of all files of a folder."""
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the hex sha256 by file name. Raises UserError if the folder has no SHA256SUMS."""
    path = folder / SUMS
    if not path.is_file():
        raise UserError(f"{folder}: holds no {SUMS}; not an export, choose another folder", code="not-found")
    return {name: value for value, _, name in (line.partition("  ") for line in path.read_text("utf-8").splitlines())}


def check_sums(folder: Path) -> None:
    """Raises UserError naming the first file that is missing, was added, or is not what was exported."""
    sums = read_sums(folder)
    for name in sorted(sums.keys() ^ set(_files(folder))):
        what = "is missing" if name in sums else "was added"
        raise UserError(f"{folder / name} {what} since the export: export to another folder", code="checksum")
    for name, value in sums.items():
        if sha256_file(folder / name) != value:
            raise UserError(f"{folder / name} has changed since the export: export to another folder", code="checksum")


def _files(folder: Path) -> list[str]:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in files if name != SUMS]
