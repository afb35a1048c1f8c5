"""Whole-or-nothing writing and locks: what is on the disk after success, failure, and a run that was killed."""

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model import files
from model.files import LOCK, inside, lock, whole_file, whole_folder, write_bytes
from tests.refusals import refused


@pytest.mark.parametrize("name", ["../x", "..", "/etc/passwd", "a/../../x", "a\\b", "a\0b"])
def test_no_name_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with refused("unsafe", repr(name), tmp_path):
        inside(tmp_path, name)


def test_names_within_a_folder_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inside(tmp_path, "a/b..c/d.wav") == tmp_path / "a" / "b..c" / "d.wav"
    assert inside(tmp_path, str(tmp_path / "a")) == tmp_path / "a"
    monkeypatch.chdir(tmp_path)
    assert inside(Path("out"), str(tmp_path / "out" / "a")) == Path("out/a")
    with refused("unsafe", "/etc/passwd"):
        inside(Path("out"), "/etc/passwd")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path, shared=shared) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.txt"]


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch()
    temporary.write_text("half of a longer text")
    write_bytes(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new" and names(tmp_path) == ["a.txt"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch()
    temporary.symlink_to(tmp_path / "private")
    write_bytes(tmp_path / "a.txt", b"new")
    assert (tmp_path / "private").read_text() == "secret"
    assert (tmp_path / "a.txt").read_bytes() == b"new" and not (tmp_path / "a.txt").is_symlink()
    assert names(tmp_path) == ["a.txt", "private"]


def test_processes_that_share_a_file_write_to_paths_of_their_own(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt", shared=True) as ours:
        child = os.fork()
        if not child:
            with whole_file(tmp_path / "a.txt", shared=True) as theirs:
                os._exit(int(theirs == ours))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ours.write_text("ours")
    assert (tmp_path / "a.txt").read_text() == "ours"


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_folder_appears_whole_with_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with whole_folder(tmp_path / "deep" / "a") as fresh:
        (fresh / "x").write_text("x")
        assert not (tmp_path / "deep" / "a").exists()
    assert names(tmp_path / "deep") == ["a", "a/x"]
    assert (tmp_path / "deep" / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as fresh:
        (fresh / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a", replace=True) as fresh:
        (fresh / "new").touch()
        raise RuntimeError
    assert names(tmp_path) == ["a", "a/old"]


def test_a_folder_is_replaced_only_on_demand(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with whole_folder(tmp_path / "a", replace=True) as fresh:
            (fresh / name).touch()
    assert names(tmp_path) == ["a", "a/second"]
    with pytest.raises(OSError), whole_folder(tmp_path / "a") as fresh:
        (fresh / "third").touch()
    assert names(tmp_path) == ["a", "a/second"]


@contextmanager
def child(work: Callable[[int], None]) -> Iterator[int]:
    """A forked process that runs `work(pipe)`, which has begun once it has written to the pipe; it is killed."""
    begun, pipe = os.pipe()
    number = os.fork()
    if not number:
        try:
            work(pipe)
        finally:
            os._exit(0)
    os.close(pipe)
    try:
        assert os.read(begun, 1) == b"1", "the child ended before it held the lock"
        yield number
    finally:
        os.close(begun)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)


def hold(folder: Path) -> Callable[[int], None]:
    """Work of a child that locks a folder and keeps it until it is killed."""

    def work(pipe: int) -> None:
        with lock(folder):
            os.write(pipe, b"1")
            time.sleep(1200)

    return work


@pytest.fixture(params=["flock", "heartbeat"])
def with_or_without_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with locks, and one without."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "BEAT_SECONDS", 0.1)
    if request.param == "heartbeat":
        monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.usefixtures("with_or_without_flock")
def test_a_locked_folder_is_refused_with_its_holder_and_free_again_after_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with lock(folder):
        with refused("in-use", folder, f"process {os.getpid()} on {socket.gethostname()}"), lock(folder):
            pass
        (folder / "result").touch()
    with lock(folder):
        assert names(tmp_path) == ["deep", "deep/run", f"deep/run/{LOCK}", "deep/run/result"]
    assert names(tmp_path) == ["deep", "deep/run", "deep/run/result"]


@pytest.mark.usefixtures("with_or_without_flock")
def test_a_lock_leaves_no_folder_behind_that_it_made_and_nobody_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "run", tmp_path / "empty"):
        with pytest.raises(KeyboardInterrupt), lock(folder):
            raise KeyboardInterrupt
    assert names(tmp_path) == ["empty"]


@pytest.mark.usefixtures("with_or_without_flock")
def test_another_process_is_named_and_its_lock_ends_when_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(hold(tmp_path)) as number, refused("in-use", tmp_path, f"process {number} on"), lock(tmp_path):
        pass
    assert names(tmp_path) == [LOCK]  # It was killed.
    monkeypatch.setattr(files, "DEAD_SECONDS", 0.3)
    with lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


def test_a_worker_that_outlives_a_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    def work(pipe: int) -> None:
        with lock(tmp_path):
            if not os.fork():
                try:
                    os.write(pipe, str(os.getpid()).encode().rjust(20) + b"1")
                    time.sleep(1200)
                finally:
                    os._exit(0)
            time.sleep(1200)

    begun, pipe = os.pipe()
    holder = os.fork()
    if not holder:
        work(pipe)
    worker = int(os.read(begun, 21)[:20])
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        with lock(tmp_path):
            os.kill(worker, 0)  # It lives.
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(begun)
        os.close(pipe)


def test_a_child_that_leaves_the_block_does_not_end_the_lock_of_its_parent(tmp_path: Path) -> None:
    ours = lock(tmp_path)
    with ours:
        number = os.fork()
        if not number:
            try:
                ours.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(number, 0)
        with refused("in-use", tmp_path, f"process {os.getpid()} on"), lock(tmp_path):
            pass


def test_of_many_processes_one_at_a_time_gets_in(tmp_path: Path) -> None:
    children = []
    for _ in range(8):
        number = os.fork()
        if number:
            children.append(number)
            continue
        code = 1
        try:
            entered = 0
            while entered < 20:
                try:
                    with lock(tmp_path / "folder"):
                        os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
                        os.unlink(tmp_path / "inside")
                        entered += 1
                except files.UserError:
                    time.sleep(0.001)
            code = 0
        finally:
            os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in children] == [0] * 8
    assert names(tmp_path) in ([], ["folder"])  # The one that made it need not be the last.


def test_without_flock_a_holder_that_stood_still_and_lost_its_lock_ends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(files, "DEAD_SECONDS", 0.3)
    begun, pipe = os.pipe()
    number = os.fork()
    if not number:
        hold(tmp_path)(pipe)
    os.read(begun, 1)
    os.kill(number, signal.SIGSTOP)
    with lock(tmp_path):
        os.kill(number, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 1
    os.close(begun)
    os.close(pipe)


@pytest.mark.parametrize("replace", [False, True])
def test_the_next_run_clears_what_a_killed_one_left_of_a_folder(tmp_path: Path, replace: bool) -> None:
    def work(pipe: int) -> None:
        with whole_folder(tmp_path / "a", replace=replace) as fresh:
            (fresh / "half").mkdir()
            (fresh / "half" / "x").write_text("a part of it")
            os.write(pipe, b"1")
            time.sleep(1200)

    with child(work):
        with refused("in-use", tmp_path), whole_folder(tmp_path / "a", replace=replace):
            pass
        assert not (tmp_path / "a").exists()
    assert [name for name in names(tmp_path) if name.endswith("half/x")]
    with whole_folder(tmp_path / "a", replace=replace) as fresh:
        (fresh / "y").touch()
    assert names(tmp_path) == ["a", "a/y"]


def test_a_run_that_was_killed_while_it_exchanged_folders_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "older").touch()
    exchange = os.replace

    def work(pipe: int) -> None:
        def stop_after(source: Path, target: Path) -> None:
            exchange(source, target)
            os.write(pipe, b"1")
            time.sleep(1200)

        monkeypatch.setattr(os, "replace", stop_after)
        with whole_folder(tmp_path / "a", replace=True):
            pass

    with child(work):
        pass
    assert not (tmp_path / "a").exists()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a", replace=True):
        raise RuntimeError
    assert names(tmp_path) == ["a", "a/older"]
