"""Files and folders that appear whole or not at all: a run that is killed leaves nothing that looks complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import UserError


def inside(folder: Path, name: str, what: str = "path") -> Path:
    """Returns the path `name` below `folder`. Only names are looked at; a link that lies in `folder` may be followed.

    `what` says in the message whose name it is. An absolute name is accepted if it lies in `folder`.
    Raises: UserError if it leads out of `folder` (code "unsafe").
    """
    path, root = Path(name), folder.absolute()
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UserError(f"{what} {name!r} leads out of {folder}: only files inside of it are used", code="unsafe")
    return folder / path


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields another path to write to, which becomes `path` if the block succeeds and is removed if it fails.

    Each run uses the same other path, so that it overwrites what a killed run left. With `shared` the path also names
    the process, because several processes may write the same file concurrently.
    Raises: OSError, which names `path` where the system names no file (a disk that fills up while writing).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as why:
        if why.errno is not None and not why.filename:
            why.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes or replaces a file, which appears whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a new folder, which becomes `path` if the block succeeds and is removed if it fails.

    With `replace` it takes the place of an older folder, which is then deleted. Parents are made as needed.
    Raises: OSError if `path` has appeared meanwhile, without `replace`, and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        fresh = holder / "new"
        fresh.mkdir()  # unlike the holder, it gets the permissions that the user's folders have
        yield fresh
        if replace and path.exists():
            os.replace(path, holder / "old")
        os.replace(fresh, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
