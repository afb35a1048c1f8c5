"""A folder of shards from elsewhere with each trick of `tricks`, alone and together, through all that opens shards."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile

from model.errors import UserError
from ppx_train.cli import data, export, train
from ppx_train.cli.run import run
from tests.data_pipelines.publish.tricks import FOLDER_TRICKS, INDEX_TRICKS, SAMPLE_TRICKS, SECRET, everything
from tests.data_pipelines.tiny_dialogues import noise
from tests.ppx_train.fixtures import make_shards, run_arguments, write_checkpoint

Command = tuple[Callable[[Sequence[str]], int | None], Callable[[Path, Path, Path], list[str]]]
"""A command, and its words for (what was prepared, the foreign shards, where it may write)."""
COMMANDS: dict[str, Command] = {
    "check": (data.command, lambda own, shards, out: ["check", str(shards)]),
    "index": (data.command, lambda own, shards, out: ["index", str(shards)]),
    "report": (data.command, lambda own, shards, out: ["report", str(shards), "--out", str(out / "page.html")]),
    "extract": (data.command, lambda own, shards, out: ["extract", str(shards / "train"), "--out", str(out / "one")]),
    "to-moshi": (data.command, lambda own, shards, out: ["to-moshi", str(shards), "--out", str(out / "moshi")]),
    "to-hf": (data.command, lambda own, shards, out: ["to-hf", str(shards), "--out", str(out / "hf")]),
    "train": (
        train.command,
        lambda own, shards, out: run_arguments(
            own, out / "run", f"data.paths=[{shards}]", "steps=1", "optim.warmup_steps=0", "data.heldout_samples=1",
            "trainer.heldout_every=1", "data.batch=1",
        ),
    ),
    "export": (
        export.command,
        lambda own, shards, out: [
            "--checkpoint", str(own / "run"), "--out", str(out / "model"), "--data", str(shards),
        ],
    ),
}  # fmt: skip

if find_spec("datasets") is None:
    del COMMANDS["to-hf"]
ALL = frozenset(COMMANDS)
TAKEN: dict[str, frozenset[str]] = {
    # `index` makes a new index of the tars that are there, and notes its hash.
    **dict.fromkeys((*INDEX_TRICKS, "other-hash"), frozenset({"index"})),
    "planted-links": ALL,  # They are not followed.
    "deep-report": ALL - {"report"},  # The others do not read it.
    # What it says is escaped in cards, and stripped from what is printed; but voice files take printable text alone.
    "nasty-licence": ALL - {"check", "export"},
    "nasty-licence-of-manifest": ALL,
    "clip-no-flac": frozenset({"report", "train", "export"}),  # They read no clips.
    "audio-no-flac": frozenset({"report", "train", "export"}),  # The first leaves it out, the others read codes.
    "words-no-text": frozenset({"index", "report", "extract"}),  # Not all dialogues are touched; those are left out.
    "lone-surrogates": frozenset({"train"}),
    "deep-record": frozenset({"train"}),  # It reads no records.
    "deep-text": frozenset({"report", "extract", "to-moshi", "to-hf"}),  # They read records instead.
}
"""Which commands take what they read in spite of a trick; all others refuse it."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codec, tokenizer, shards and a checkpoint."""
    folder = tmp_path_factory.mktemp("own")
    make_shards(folder, dialogues=6)
    write_checkpoint(folder, folder / "run", 3)
    return folder


@pytest.fixture
def foreign(own: Path, tmp_path: Path) -> Path:
    """Shards two folders below files that are nobody's business."""
    shards = Path(shutil.copytree(own / "shards", tmp_path / "a/b/shards"))
    for path in shards.rglob("*.tar"):
        path.chmod(0o644)
    (tmp_path / "a/private").write_bytes(SECRET)
    soundfile.write(tmp_path / "a/own.flac", noise(1.0, 0.1, 1), 24_000)
    (tmp_path / "out").mkdir()
    return shards


def listing(folder: Path, *without: Path) -> dict[str, tuple[object, ...]]:
    """Everything below `folder`, but not below `without`: kind, size, time and SHA-256, or where a link leads."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        if not any(path.is_relative_to(other) for other in without):
            facts = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            target = os.readlink(path) if path.is_symlink() else ""
            found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, content, target)
    return found


def takes(name: str, own: Path, shards: Path, out: Path) -> bool:
    """Runs a command; returns whether it takes what it reads. Any error but a refusal in one line is raised."""
    command, words = COMMANDS[name]
    try:
        command(words(own, shards, out))
    except UserError as why:
        assert len(str(why).splitlines()) == 1, str(why)
        str(why).encode()
        return False
    return True


@pytest.mark.parametrize("trick", [*INDEX_TRICKS, *FOLDER_TRICKS, *SAMPLE_TRICKS])
def test_each_trick_alone_is_refused_or_harmless(own: Path, foreign: Path, tmp_path: Path, trick: str) -> None:
    (INDEX_TRICKS | FOLDER_TRICKS | SAMPLE_TRICKS)[trick](foreign)
    taken = set()
    for name in COMMANDS:
        shards, without = foreign, [tmp_path / "out"]
        if name == "index":  # It writes into the shards.
            shards = Path(shutil.copytree(foreign, foreign.with_name("copy"), symlinks=True))
            without.append(shards)
        before = listing(tmp_path, *without)
        taken |= {name} if takes(name, own, shards, tmp_path / "out") else set()
        assert listing(tmp_path, *without) == before, name
        if name == "index":
            shutil.rmtree(shards)
    assert taken == TAKEN.get(trick, ALL - ALL) & ALL
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or SECRET[:100] not in path.read_bytes(), path


@pytest.mark.parametrize("name", COMMANDS)
def test_all_tricks_together_are_one_line_and_exit_code_2(
    own: Path,
    foreign: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything(foreign)
    command, words = COMMANDS[name]
    before = listing(tmp_path, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [name, *words(own, foreign, tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run(command)
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.startswith("error[") and len(errors.splitlines()) == 1, errors
    assert errors.removesuffix("\n").isprintable()
    assert listing(tmp_path, tmp_path / "out") == before
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
