"""Writing files that appear whole or not at all, and hashing them."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from model.errors import UserError


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


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_line(path: Path, text: str) -> None:
    """Writes a file of one line of text, atomically."""
    write_bytes(path, (text + "\n").encode())


def save_once(path: Path, content: bytes) -> bool:
    """Writes `content`; returns False if the file is already there with the same content.

    Raises: UserError if a file with other content is in the way, or the folder cannot be written.
    """
    try:
        if path.exists():
            if path.is_file() and path.read_bytes() == content:
                return False
            raise UserError(f"{path}: exists with other content: remove it or choose another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # no mistake of the user: the command says what to do
        raise UserError(f"{path}: cannot be written ({why.strerror}): choose another --out") from why
    return True


def claim_folder(out: Path, record: str, settings: dict[str, Any], verb: str) -> None:
    """Makes OUT ours: new or empty, or left by a run of the same verb with the same settings.

    OUT/`record` keeps the settings. Raises: UserError otherwise, naming the setting that differs.
    """
    path = out / record
    if path.is_file():
        before, now = (_leaves(value) for value in (json.loads(path.read_text("utf-8")), settings))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise UserError(
                    f"{out} was made with {name} {before.get(name)!r}, not {now.get(name)!r}: "
                    "give another --out, or the same settings to resume"
                )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and was not made by `ppx-data {verb}`: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _leaves(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as JSON would give them back, by dotted names."""
    if isinstance(settings, dict):
        return {key: leaf for k, v in settings.items() for key, leaf in _leaves(v, f"{name}{k}.").items()}
    return {name.removesuffix("."): json.loads(json.dumps(settings))}
