"""The commands as a person meets them: help, lists, one-line errors and exit codes."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.errors import UserError
from ppx_train import roots
from ppx_train.cli import commands as cli
from ppx_train.config import recipe_names
from ppx_train.training.checkpoint import PlainFiles
from tests.paths import ROOT


def call(command: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """One of the four commands in a fresh interpreter."""
    program = f"import sys; sys.argv[0] = 'ppx-{command}'; sys.path[0] = {str(ROOT)!r}; "
    program += f"from ppx_train.cli.commands import {command}; {command}()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=1200
    )


def test_recipes_are_listed_with_a_line_each() -> None:
    result = call("train", "recipes")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


def test_help_names_every_group_and_setting() -> None:
    result = call("train", "--help")
    assert result.returncode == 0
    for text in ("tiny", "personaplex_7b", "optim.lr.depth = 4e-06", "data.max_frames = 2048", "resume=true"):
        assert text in result.stdout
    assert "2048 frames" not in result.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["recipe=quikstart"], "did you mean 'quickstart'"),
        ("train", ["recipe=quickstart", "data.paths=[nowhere]", "model.tokenizer=none.model"], "none.model"),
        ("data", ["spaek"], "did you mean 'speak'"),
        ("data", ["check", "nowhere"], "nowhere"),
        ("export", ["checkpoint=nowhere", "out=there"], "nowhere"),
        ("export", ["chekpoint=a"], "chekpoint"),
        ("chat", ["--model", "nowhere", "--input-wav", "a.wav", "--output-wav", "b.wav"], "a.wav: no such audio file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    command: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = call(command, *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("error[")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def run_failing(why: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def command(_: list[str]) -> int:
        raise why

    with pytest.raises(SystemExit) as caught:
        cli._run(command)
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err


def test_a_full_disk_is_one_line_and_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fill(_: list[str]) -> int:
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)
        return 0

    with pytest.raises(SystemExit) as caught:
        cli._run(fill)
    assert caught.value.code == 1
    assert "no space left on the disk" in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: list[str]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli._run(broken)
    assert run_failing(UserError("mend this"), capsys) == (2, "error[bad-value]: mend this\n")
    assert run_failing(KeyboardInterrupt(), capsys) == (130, "error: interrupted: run the same command again\n")


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("")
    monkeypatch.setattr(
        roots, "find_spec", lambda name: type("S", (), {"origin": str(tmp_path / name / "__init__.py")})
    )
    with pytest.raises(UserError, match=f"`model` comes from {tmp_path}"):
        roots.check_packages()


def test_a_place_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    why = OSError(errno.EROFS, "Read-only file system", "/there/out")
    expected = "error: /there/out: Read-only file system: choose a folder that can be written\n"
    assert run_failing(why, capsys) == (1, expected)


def test_a_lost_process_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run_failing(RuntimeError("[gloo] Connection closed by peer [127.0.0.1]"), capsys)
    assert code == 1 and message.startswith("error: another process of this run has ended")


def test_a_checkpoint_on_a_full_disk_names_the_disk() -> None:
    with pytest.raises(OSError) as caught:
        PlainFiles().save_checkpoint({"state_dict": {"a": torch.zeros(1 << 16)}}, "/dev/full")
    assert caught.value.errno == errno.ENOSPC
