"""What a checkpoint remembers of the code and the start weights it comes from."""

import subprocess
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from ppx_train import __version__
from ppx_train.config.load import load
from ppx_train.training import origin
from tests.hub_server import hub_server
from tests.ppx_train.fixtures import run_arguments


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *author, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_if_files_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert origin.project_commit() == ""  # no checkout
    git(tmp_path, "init", "-q")
    assert origin.project_commit() == ""  # no commit
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes").write_text("not part of it")
    assert origin.project_commit() == commit and len(commit) == 40
    (tmp_path / "code.py").write_text("2\n")
    assert origin.project_commit() == f"{commit}-dirty"
    inside = tmp_path / "venv" / "lib"
    inside.mkdir(parents=True)
    monkeypatch.setattr(origin, "ROOT", inside)
    assert origin.project_commit() == ""  # installed inside the checkout of something else


def test_the_commit_of_start_weights_is_the_one_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    with hub_server(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        old = hub.add("org/start", {"model.safetensors": b"old"}).head
        run = load(run_arguments(tmp_path, tmp_path / "run", "model.init=org/start"))
        assert origin.origin(run) == {"version": __version__}
        hf_hub_download("org/start", "model.safetensors")
        hub.add("org/start", {"model.safetensors": b"new"})
        assert origin.origin(run) == {"version": __version__, "start_commit": old}
    local = load(run_arguments(tmp_path, tmp_path / "run"))
    assert origin.origin(local) == {"version": __version__}
