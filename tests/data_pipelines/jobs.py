"""Stage functions for tests of executors: workers import them by name."""

import os
import signal
import time
from pathlib import Path

from model.errors import UserError


def wait_for(condition, seconds=1200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def square(number):
    return number * number


def note_process(path):
    """Writes who worked on it: process, threads allowed, working folder."""
    Path(path).write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {os.getcwd()}")
    return path


def meet(path):
    """Writes who works on it, and ends when another process has done so in the same folder."""
    note_process(path)
    wait_for(lambda: len({other.read_text().partition(" ")[0] for other in Path(path).parent.iterdir()} - {""}) > 1)


def refuse_three(number):
    if number == 3:
        raise UserError("three is no good: leave it out")
    return number


def fill_disk(number):
    raise OSError(28, "No space left on device", f"/data/{number}")


def kill_once(job):
    """Kills its process the first time that job 5 is done."""
    number, folder = job
    if number == 5 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def kill_always(name):
    if name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def wait_for_go(path):
    """Says that it began, and ends when the file `go` is there."""
    Path(path).with_suffix(".begun").write_text(str(os.getpid()))
    wait_for((Path(path).parent / "go").exists)
    Path(path).write_text("done")
    return path


def wait_for_ever(path):
    """Says that it began; writes its file only if nobody ends it."""
    Path(path).with_suffix(".begun").write_text(str(os.getpid()))
    time.sleep(3600)
    Path(path).write_text("done")


def note_times(path):
    """Writes from when to when it ran."""
    begin = time.time()
    time.sleep(0.2)
    Path(path).write_text(f"{begin} {time.time()}")
