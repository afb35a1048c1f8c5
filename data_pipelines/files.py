"""Files of the stages: text and JSON that appear whole, content that is written once, checksums, and the cache."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.files import LOCK, whole_file, write_bytes

RUN_ONLY = ("skipped", "wall_seconds")
"""Keys of a report that describe one run instead of what the folder holds."""


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    """Hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def digest(*lines: str) -> str:
    """Hex sha256 of some lines of text."""
    return sha256("\n".join(lines).encode())


def verified(data: bytes, expected: str, what: str) -> bytes:
    """Returns `data` if its sha256 is the expected one. Raises UserError otherwise."""
    found = sha256(data)
    if found != expected:
        raise UserError(
            f"{what} has sha256 {found[:16]}..., pinned is {expected[:16]}... (damaged or replaced): "
            "fetch it again or choose another source with --from",
            code="checksum",
        )
    return data


def json_bytes(value: Any) -> bytes:
    """JSON for people: indented, with sorted keys; the same value gives the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people; the file appears whole or not at all."""
    write_bytes(path, json_bytes(value))


def write_line(path: Path, text: str) -> None:
    """Writes one line of text; the file appears whole or not at all."""
    write_bytes(path, (text + "\n").encode())


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Writes OUT/report.json: what OUT holds, rejected items included.

    The keys of one run (RUN_ONLY) are left out, so that a run that was stopped and resumed ends with the same file as
    one that was not.
    """
    write_json(out / "report.json", {key: value for key, value in report.items() if key not in RUN_ONLY})


def save_once(path: Path, content: bytes) -> bool:
    """Writes `content` and its parent folders; returns False if the file is already there with the same content.

    Raises: UserError if other content is in the way, or the folder cannot be written.
    """
    return save_pieces(path, [content])


def save_pieces(path: Path, pieces: Iterable[bytes]) -> bool:
    """Like `save_once`, for content that comes in pieces and need not fit into memory.

    Whatever `pieces` raises passes through, and leaves no file behind.
    """
    with _user_error(path):
        exists = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
    if exists:
        if not path.is_file() or not _holds(path, pieces):
            raise UserError(f"{path} exists with other content: remove it or choose another --out", code="exists")
        return False
    with whole_file(path) as temporary:
        with _user_error(path):
            file = temporary.open("wb")
        with file:
            for piece in pieces:
                with _user_error(path):
                    file.write(piece)
            with _user_error(path):
                file.flush()
    return True


def _holds(path: Path, pieces: Iterable[bytes]) -> bool:
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)


@contextmanager
def _user_error(path: Path) -> Iterator[None]:
    """Raises errors of the file system as UserErrors, except a full disk, for which the command has a message."""
    try:
        yield
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{path} cannot be written ({why.strerror}): choose another --out", code="cannot-write"
        ) from why


def claim_folder(out: Path, record: str, settings: Mapping[str, Any], verb: str) -> None:
    """Makes OUT ours: it is new or empty, or was left by a run of the same verb with the same settings.

    OUT/`record` keeps the settings. Raises: UserError otherwise, which names the setting that differs.
    """
    path = out / record
    if path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as why:
            raise UserError(
                f"{path} does not hold the settings of a run ({why}): give another --out", code="unreadable"
            ) from why
        refuse_other_settings(out, before, settings)
        return
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UserError(
            f"{out} exists and was not made by `ppx-data {verb}`: give another --out", code="other-settings"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def refuse_other_settings(out: Path, made_with: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises UserError that names the first setting in which `settings` differ from those that OUT was made with."""
    before, now = _leaves(made_with), _leaves(settings)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{out} was made with {name} {before.get(name)!r}, not {now.get(name)!r}: "
                "give another --out, or the same settings to resume",
                code="other-settings",
            )


def _leaves(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, each value as it would be read back from JSON."""
    if isinstance(settings, Mapping):
        return {key: leaf for k, v in settings.items() for key, leaf in _leaves(v, f"{name}{k}.").items()}
    return {name.removesuffix("."): json.loads(json.dumps(settings))}


def cache_root() -> Path:
    """The folder of what is fetched once: $PPX_CACHE, else ppx-train in the user's cache folder."""
    if os.environ.get("PPX_CACHE"):
        return Path(os.environ["PPX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppx-train"
