"""Whole-or-nothing writing: what is on the disk after success, failure, and a run that was killed."""

import errno
import os
from pathlib import Path

import pytest

from model.files import inside, whole_file, whole_folder, write_bytes
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
