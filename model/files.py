"""Files and folders that appear whole or not at all, and folders that one process at a time works in.

A run that is killed leaves nothing that looks complete, and no lock that a later run would have to remove.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import UserError

LOCK = ".lock"
"""The file of a locked folder, which names the process that holds it."""
BEAT_SECONDS, DEAD_SECONDS = 10.0, 60.0
"""Where the file system has no locks: how often the holder touches the file, and the age at which it counts as dead."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_HOLDER = re.compile(r"process \d+ on [\w.-]+")
_held: set[int] = set()


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


def check_link(folder: Path, name: str) -> None:
    """Raises UserError with code "unsafe" if `name` is a link that leads out of `folder`, or lies behind one.

    For folders from elsewhere: what a link leads to would be read, and perhaps published, as if it came with them.
    """
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"{path} is a link that leads out of {folder}: put the file itself there, or copy the folder with `cp -rL` "
            "if you trust it",
            code="unsafe",
        )


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields another path to write to, which becomes `path` if the block succeeds and is removed if it fails.

    Each run uses the same other path, so that it overwrites what a killed run left. With `shared` the path also names
    the process, because several processes may write the same file concurrently.
    Raises: OSError, which names `path` where the system names no file (a disk that fills up while writing).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    if temporary.is_symlink():
        temporary.unlink()  # In a folder from elsewhere it may lead to any file, which must not be overwritten.
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

    Each run makes it in the same locked folder beside `path`, and first clears what a killed run left there. With
    `replace` it takes the place of an older folder, which is then deleted. Parents are made as needed.
    Raises: UserError with code "in-use" if another process is making `path`; OSError if `path` has appeared meanwhile,
    without `replace`, and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f".{path.name}.part")
    fresh, old = holder / "new", holder / "old"
    try:
        with lock(holder):
            _settle(path, fresh, old)
            try:
                fresh.mkdir()
                yield fresh
                if replace and path.exists():
                    os.replace(path, old)
                os.replace(fresh, path)
            finally:
                _settle(path, fresh, old)
    finally:
        with suppress(OSError):  # The folder of a killed run, which `lock` did not make, or another process is in it.
            holder.rmdir()


def _settle(path: Path, fresh: Path, old: Path) -> None:
    """Removes what is left of an exchange of folders; one that ended half way is undone."""
    if old.exists() and not path.exists():
        os.replace(old, path)
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds `folder`, which is made if necessary, so that no other process that asks for it gets in.

    The lock ends with the block or with the process, however that ends. Where the file system has no locks (some
    network file systems), the holder touches the file LOCK every BEAT_SECONDS, and a process that comes after a killed
    one waits until the file is DEAD_SECONDS old. A folder that was made here and stays empty is removed again.
    Raises: UserError with code "in-use" that names the process and host that hold it; OSError if it cannot be written.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    path = folder / LOCK
    owner = os.getpid()
    let_go = _lock_file(path) or _beat(path)
    try:
        yield
    finally:
        if os.getpid() == owner:  # A forked child that leaves the block does not end the lock of its parent.
            let_go()
            for empty in made:
                with suppress(OSError):
                    empty.rmdir()


def _lock_file(path: Path) -> Callable[[], None] | None:
    """Locks a file and returns how to let it go; None if its file system has no locks. Raises UserError as `lock`."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # Another process has just removed the folder, which it had made.
            continue
        except FileExistsError:
            if path.parent.exists():  # It is a file.
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                with suppress(OSError):  # A full disk takes no name, but the lock holds.
                    os.ftruncate(file, 0)
                    os.write(file, _this_process().encode())
                _held.add(file)
                return lambda: _unlock(path, file)
        except BlockingIOError:
            os.close(file)
            raise _in_use(path) from None
        except OSError as why:
            os.close(file)
            if why.errno in _NO_LOCKS:
                return None
            raise
        os.close(file)  # Its holder has removed it meanwhile, and perhaps another process has made a new one.


def _is_at(path: Path, file: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _unlock(path: Path, file: int) -> None:
    path.unlink(missing_ok=True)  # While it is still locked, so that it cannot be another's.
    _held.discard(file)
    os.close(file)


def _close_held() -> None:
    """A forked child shares the open files of its parent, and would keep the locks of a parent that is killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_held)


def _beat(path: Path) -> Callable[[], None]:
    """Holds a lock file by touching it again and again; returns how to let it go. Raises UserError as `lock`."""
    mine = f"{_this_process()} {uuid.uuid4().hex}\n"
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        _await_death(path, own, mine)
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
    time.sleep(BEAT_SECONDS / 10)
    if _text(path) != mine:  # Of several processes that found the former one dead together, the last one wins.
        raise _in_use(path)
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(BEAT_SECONDS):
            with suppress(OSError):  # A server that fails for a moment; the next beat may succeed.
                if path.read_text("utf-8") == mine:
                    os.utime(path)
                    continue
                # This process stood still for so long that another one took over: it must not write any more.
                print(f"error[in-use]: {_in_use(path)}", file=sys.stderr, flush=True)
                os._exit(1)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()

    def let_go() -> None:
        stopped.set()
        thread.join()
        if _text(path) == mine:
            path.unlink(missing_ok=True)

    return let_go


def _await_death(path: Path, own: Path, mine: str) -> None:
    """Returns once no living process holds `path`. Raises UserError if its holder touches it.

    Ages are differences of two times of the file system, since the clocks of two machines differ: `own` is written
    for that.
    """
    before = None
    while True:
        own.write_text(mine, "utf-8")
        try:
            with path.open("rb") as file:  # Network file systems ask the server for the times of a file that is opened.
                found = os.fstat(file.fileno())
        except FileNotFoundError:
            return
        if not found.st_size or own.stat().st_mtime - found.st_mtime > DEAD_SECONDS:
            return
        if before is not None and before != found.st_mtime_ns:
            raise _in_use(path)
        before = found.st_mtime_ns
        time.sleep(BEAT_SECONDS / 10)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _text(path: Path) -> str:
    """The content of a lock file; "" without one."""
    try:
        return path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _in_use(path: Path) -> UserError:
    found = _HOLDER.match(_text(path))
    holder = found[0] if found else "another process"
    return UserError(
        f"{path.parent} is in use by {holder}: wait until that has ended, or choose another folder",
        code="in-use",
    )
