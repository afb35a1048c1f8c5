"""Writing an output file once, atomically."""

import errno
import os
from pathlib import Path

from model.errors import UserError


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
