"""Writing files that appear whole or not at all, and hashing them."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.errors import UserError

RUN_ONLY = ("skipped", "wall_seconds")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def digest(*lines: str) -> str:
    """Hex sha256 of some lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Another path to write to, which becomes `path` when the block ends well, and is removed if it does not.

    It has one name, so that what a killed run left is written over by the next.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as why:
        why.filename = why.filename or str(path)  # a disk that fills up while writing names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    with appearing(path) as temporary:
        temporary.write_bytes(data)


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Writes OUT/report.json: what OUT holds, rejected items included.

    What one run alone did (`skipped`, `wall_seconds`) is left out: a run that was stopped and went on ends with the
    same file as one that was not.
    """
    write_json(out / "report.json", {key: value for key, value in report.items() if key not in RUN_ONLY})


def write_line(path: Path, text: str) -> None:
    """Writes a file of one line of text, atomically."""
    write_bytes(path, (text + "\n").encode())


def save_once(path: Path, content: bytes) -> bool:
    """Writes `content`; returns False if the file is already there with the same content.

    Raises: UserError if a file with other content is in the way, or the folder cannot be written.
    """
    return save_pieces(path, [content])


def save_pieces(path: Path, pieces: Iterable[bytes]) -> bool:
    """Like `save_once`, for content that comes piece by piece and need not fit into memory.

    Whatever `pieces` raises passes through, and no file is left behind.
    """
    temporary = path.with_name(f".{path.name}.part")
    same = None
    try:
        with _writing(path):
            if path.exists():
                same = path.open("rb") if path.is_file() else None
                _refuse_unless(same is not None, path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = same or temporary.open("wb")
        with file:
            for piece in pieces:
                with _writing(path):
                    if same:
                        _refuse_unless(same.read(len(piece)) == piece, path)
                    else:
                        file.write(piece)
            with _writing(path):
                if same:
                    _refuse_unless(not same.read(1), path)
                else:
                    file.close()  # flushes, which may fail
                    os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the folder may not be one
            temporary.unlink(missing_ok=True)
    return same is None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tells errors of the file system as the user's, but for a full disk: there the command says what to do."""
    try:
        yield
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{path}: cannot be written ({why.strerror}): choose another --out") from why


def _refuse_unless(same: bool, path: Path) -> None:
    if not same:
        raise UserError(f"{path}: exists with other content: remove it or choose another --out")


def claim_folder(out: Path, record: str, settings: dict[str, Any], verb: str) -> None:
    """Makes OUT ours: new or empty, or left by a run of the same verb with the same settings.

    OUT/`record` keeps the settings. Raises: UserError otherwise, naming the setting that differs.
    """
    path = out / record
    if path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as why:
            raise UserError(f"{path}: not the settings of a run ({why}): give another --out") from why
        refuse_other_settings(out, before, settings)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and was not made by `ppx-data {verb}`: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def refuse_other_settings(out: Path, made_with: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises UserError naming the first setting in which `settings` differ from those that OUT was made with."""
    before, now = _leaves(made_with), _leaves(settings)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{out} was made with {name} {before.get(name)!r}, not {now.get(name)!r}: "
                "give another --out, or the same settings to resume"
            )


def _leaves(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as JSON would give them back, by dotted names."""
    if isinstance(settings, dict):
        return {key: leaf for k, v in settings.items() for key, leaf in _leaves(v, f"{name}{k}.").items()}
    return {name.removesuffix("."): json.loads(json.dumps(settings))}


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def verified(data: bytes, expected: str, what: str) -> bytes:
    """`data`, if its checksum is the expected one. Raises UserError otherwise."""
    found = sha256(data)
    if found != expected:
        raise UserError(
            f"{what}: sha256 is {found[:16]}..., pinned is {expected[:16]}...: damaged or replaced, "
            "fetch it again or choose another source with --from"
        )
    return data


def cache_root() -> Path:
    """PPX_CACHE, else ppx-train in the user's cache folder."""
    if os.environ.get("PPX_CACHE"):
        return Path(os.environ["PPX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppx-train"
