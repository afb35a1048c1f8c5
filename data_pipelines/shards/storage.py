"""Where shards are read from: a folder on disk, or whatever fsspec opens by URL (s3://, gs://, https://, memory://).

A storage holds no open file and no connection, so that it may be forked, pickled and shared by threads.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from model.errors import UserError
from model.files import check_link

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each retry of a request that failed."""


class StorageError(UserError):
    """A storage cannot be read now. No sample may be skipped because of it, since it is not the fault of one sample."""


class NotThere(StorageError):
    """The storage responds, and has no such file."""


class Storage(Protocol):
    """A folder of files that are read as a whole or in ranges."""

    @property
    def is_remote(self) -> bool:
        """Whether each read costs the time of a request."""

    def inside(self, name: str) -> "Storage":
        """The folder `name` in this one."""

    def whole(self, name: str) -> bytes | None:
        """A whole file; None if there is no such file. Raises StorageError."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file, or fewer if it ends before. Raises StorageError."""

    def sizes(self, names: list[str]) -> list[int | None]:
        """The size of each file in bytes; None for one that is not there. Raises StorageError."""


@dataclass(frozen=True)
class Folder:
    """A folder on disk. Links that lead out of it are refused (UserError with code "unsafe")."""

    path: Path
    is_remote = False

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    def inside(self, name: str) -> "Folder":
        """The folder `name` in this one."""
        return Folder(self.path / name)

    def whole(self, name: str) -> bytes | None:
        """A whole file; None if there is no such file. Raises StorageError."""
        check_link(self.path, name)
        path = self.path / name
        try:
            if path.exists() and not path.is_file():  # A pipe would be waited for.
                raise StorageError(f"{path} is no regular file: copy it again", code="unreadable")
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as why:
            raise self._unreadable(name, why) from why

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file, or fewer if it ends before. Raises StorageError."""
        try:
            # Opening the file for each read takes 10 us. It avoids a limit on the number of shards, and processes share
            # nothing.
            file = os.open(self.path / name, os.O_RDONLY)
            try:
                return os.pread(file, size, offset)
            finally:
                os.close(file)
        except OSError as why:
            raise self._unreadable(name, why) from why

    def sizes(self, names: list[str]) -> list[int | None]:
        """The size of each file in bytes; None for one that is not there. Raises StorageError."""
        try:
            entries = [entry for entry in os.scandir(self.path) if entry.is_file()]
            found = {entry.name: entry.stat().st_size for entry in entries}
        except OSError as why:
            raise StorageError(
                f"{self.path} cannot be listed ({why.strerror}): copy it again", code="unreadable"
            ) from why
        for name in sorted({entry.name for entry in entries if entry.is_symlink()} & set(names)):
            check_link(self.path, name)
        return [found.get(name) for name in names]

    def _unreadable(self, name: str, why: OSError) -> StorageError:
        return StorageError(f"{self.path / name} cannot be read ({why.strerror}): copy it again", code="unreadable")


@dataclass(frozen=True)
class Remote:
    """A folder that fsspec opens by URL."""

    url: str
    is_remote = True

    def __str__(self) -> str:
        """The URL."""
        return self.url

    def inside(self, name: str) -> "Remote":
        """The folder `name` in this one."""
        return Remote(f"{self.url}/{name}")

    def whole(self, name: str) -> bytes | None:
        """A whole file; None if there is no such file. Raises StorageError."""
        fs, root = self._open()
        try:
            return bytes(self._retried(name, lambda: fs.cat_file(f"{root}/{name}")))
        except NotThere:
            return None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file, or fewer if it ends before. Raises StorageError."""
        fs, root = self._open()
        data: bytes = self._retried(name, lambda: fs.cat_file(f"{root}/{name}", start=offset, end=offset + size))
        if len(data) > size:
            raise StorageError(
                f"the server of {self.url}/{name} sent {len(data)} instead of {size} bytes because it ignores byte "
                f"ranges: use another one, or simplecache::{self.url} to copy each shard once",
                code="bad-answer",
            )
        return data

    def sizes(self, names: list[str]) -> list[int | None]:
        """The size of each file in bytes, by one listing; None for one that is not there.

        Raises: StorageError, and NotImplementedError if the server cannot list sizes (plain HTTP).
        """
        fs, root = self._open()
        try:
            entries = self._retried("", lambda: fs.ls(root, detail=True))
        except StorageError as why:
            raise NotImplementedError from why
        found = {entry["name"].rstrip("/").rpartition("/")[2]: entry.get("size") for entry in entries}
        if not any(found.values()):
            raise NotImplementedError
        return [found.get(name) for name in names]

    def _open(self) -> tuple[Any, str]:
        return _file_system(self.url, os.getpid())

    def _retried(self, name: str, request: Callable[[], T]) -> T:
        """Returns request(), which is retried if the network or the server fails. Raises StorageError."""
        where = f"{self.url}/{name}" if name else self.url
        for wait in (*WAITS, None):
            try:
                return request()
            except FileNotFoundError as why:
                raise NotThere(
                    f"{where} is not there: check the URL, or copy the shards again", code="not-found"
                ) from why
            except PermissionError as why:
                raise StorageError(
                    f"{where} denies access: check the credentials of its storage", code="no-access"
                ) from why
            except Exception as why:  # each of fsspec's clients has errors of its own
                reason = f"{type(why).__name__}: {why}".strip(": ").splitlines()[0]
                if not _is_temporary(why):
                    raise StorageError(
                        f"{where} is refused ({reason}): check the URL and its credentials", code="no-access"
                    ) from why
                if wait is None:
                    raise StorageError(
                        f"{where} cannot be read after {len(WAITS) + 1} tries ({reason}): check the network and "
                        "start again, nothing is lost",
                        code="unreachable",
                    ) from why
                time.sleep(wait)
        raise AssertionError("unreachable")


@lru_cache(maxsize=64)
def _file_system(url: str, process: int) -> tuple[Any, str]:
    """The fsspec client of a URL and the path in it; one for each process, because clients do not survive a fork."""
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as why:
        raise UserError(
            f"{url} cannot be opened ({str(why).splitlines()[0]}): `pip install` it and try again",
            code="missing-package",
        ) from why
    except (ValueError, OSError) as why:
        raise UserError(
            f"{url} is no URL that fsspec can open ({why}): give e.g. s3://BUCKET/shards", code="bad-value"
        ) from why
    return fs, root.rstrip("/")


def _is_temporary(why: Exception) -> bool:
    """Whether a request is worth a retry, which it is not if the server understood and refused it."""
    status = getattr(why, "status", None)
    return not isinstance(status, int) or status >= 500 or status in (408, 425, 429)


def is_url(path: Path | str) -> bool:
    """Whether fsspec opens this path: scheme://..., or a chain such as simplecache::s3://... ."""
    return isinstance(path, str) and "://" in path


def storage_at(path: Path | str) -> Storage:
    """The storage at a path or URL. Nothing is opened yet."""
    return Remote(path.rstrip("/")) if is_url(path) and isinstance(path, str) else Folder(Path(path))
