"""Stage functions for tests of executors: workers import them by name."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from model.errors import UserError


def wait_for(condition: Callable[[], object], seconds: float = 1200) -> None:
    """Returns when the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def square(number: int) -> int:
    """The square of a number."""
    return number * number


def note_process(path: Path) -> Path:
    """Writes who worked on it: process, threads allowed, working folder."""
    path.write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {os.getcwd()}")
    return path


def meet(path: Path) -> None:
    """Writes who works on it, and ends when another process has done so in the same folder."""
    note_process(path)
    wait_for(lambda: len({other.read_text().partition(" ")[0] for other in path.parent.iterdir()} - {""}) > 1)


def refuse_three(number: int) -> int:
    """Raises UserError for 3."""
    if number == 3:
        raise UserError("three is no good: leave it out", code="bad-record")
    return number


def fill_disk(number: int) -> int:
    """Finds the disk full."""
    raise OSError(28, "No space left on device", f"/data/{number}")


def kill_once(job: tuple[int, Path]) -> int:
    """Kills its process the first time that job 5 is done."""
    number, folder = job
    if number == 5 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def kill_always(name: str) -> str:
    """Kills its process each time that the job is `bad`."""
    if name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def wait_for_go(path: Path) -> Path:
    """Says that it began, and ends when the file `go` is there."""
    path.with_suffix(".begun").write_text(str(os.getpid()))
    wait_for((path.parent / "go").exists)
    path.write_text("done")
    return path


def wait_for_ever(path: Path) -> None:
    """Says that it began; writes its file only if nobody ends it."""
    path.with_suffix(".begun").write_text(str(os.getpid()))
    time.sleep(3600)
    path.write_text("done")


def note_times(path: Path) -> None:
    """Writes from when to when it ran."""
    begin = time.time()
    time.sleep(0.2)
    path.write_text(f"{begin} {time.time()}")
