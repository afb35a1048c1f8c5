"""Hugging Face datasets, in folders and behind a stand-in of the hub."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.recordings import hub
from data_pipelines.recordings.recording import Unready
from model.errors import Code, UserError
from tests.data_pipelines.recordings.imports import (
    COMMON,
    add,
    both_sides,
    flac,
    imported,
    loud_words,
    reasons,
    recordings,
)
from tests.data_pipelines.tiny_recordings import Words, conversation
from tests.paths import ROOT
from tests.refusals import refused

HF = ["--audio-field", "sound", "--text-field", "left=a", "right=b", "--id-field", "name"]
HF += ["--speaker-field", "left=who.l", "right=who.r"]


@pytest.fixture
def parquet(tmp_path: Path) -> tuple[Path, Words]:
    """A local data set of three recordings with words in columns; returns its folder and the words."""
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    audio, words = conversation(40.0)
    column = {s: [{"text": w.text, "start": w.start, "end": w.end} for w in words[s]] for s in words}
    rows = [
        {"sound": {"bytes": flac(audio), "path": f"{n}.flac"}, "a": column["left"], "b": column["right"],
         "name": f"call {n}", "who": {"l": f"p{n}", "r": f"q{n}"}}
        for n in range(3)
    ]  # fmt: skip
    text, number = datasets.Value("string"), datasets.Value("float64")
    said = datasets.List({"text": text, "start": number, "end": number})
    schema = datasets.Features(
        {"sound": datasets.Audio(), "a": said, "b": said, "name": text, "who": {"l": text, "r": text}}
    ).arrow_schema
    root = tmp_path / "set"
    root.mkdir()
    for n, part in enumerate((rows[:2], rows[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(part, schema=schema), root / f"train-{n:05d}-of-00002.parquet")
    return root, words


def argv(path: object, out: Path, *options: str) -> list[str]:
    return ["import", "hf", str(path), "--out", str(out), *COMMON, "--agent", "both", *options]


def test_a_local_data_set_is_streamed_without_a_decoder_of_its_own(tmp_path: Path, parquet: tuple[Path, Words]) -> None:
    root, words = parquet
    verbs.main(argv(root, tmp_path / "out", *HF))
    found = imported(tmp_path / "out")
    assert len(recordings(found)) == 3 and {d.left.speaker for _, d in found} == {"talks/p0", "talks/p1", "talks/p2"}
    for folder, dialogue in found:
        assert loud_words(dialogue, soundfile.read(folder / "audio.flac")[0].T, 24000) == (1.0, 0.0)
        assert {w.text for w in dialogue.left.words} <= {w.text for w in words["left"]}


def test_a_data_set_that_was_saved_to_disk_is_read(tmp_path: Path, parquet: tuple[Path, Words]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(parquet[0]), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("sound", datasets.Audio(decode=False))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
    verbs.main(argv(tmp_path / "saved", tmp_path / "out", *HF, "--hf-split", "test"))
    assert len(recordings(imported(tmp_path / "out"))) == 3


def test_a_layout_that_datasets_reads_only_with_a_decoder_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", None)
    audio, words = conversation(30.0)
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/a.tar", "w") as tar:
        add(tar, "one.flac", flac(audio))
        add(tar, "one.json", both_sides(words))
    with refused("missing-package", "torchcodec", "`ppx-data import webdataset`", error=Unready):
        fields = ["--audio-field", "flac", "--text-field", "json", "--id-field", "__key__"]
        verbs.main(argv(tmp_path / "set", tmp_path / "out", *fields))


@pytest.mark.parametrize(
    ("options", "code", "names"),
    [
        ([], "missing-option", ["--audio-field"]),
        (["--audio-field", "audio"], "bad-record", ["'audio'", "sound, a, b, name, who"]),
        (["--audio-field", "sound", "--hf-split", "test"], "not-found", ["split test"]),
        (["--audio-field", "left=sound"], "bad-value", ["--audio-field left=sound"]),
    ],
)
def test_columns_and_splits_that_are_not_there_are_named(
    tmp_path: Path, parquet: tuple[Path, Words], options: list[str], code: Code, names: list[str]
) -> None:
    with refused(code, *names):
        verbs.main(argv(parquet[0], tmp_path / "out", *options))


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"none, split train: cannot be loaded \(.*\), check the path, and log in"):
        verbs.main(argv(tmp_path / "none", tmp_path / "out", "--audio-field", "audio"))


def test_rows_with_broken_audio_or_the_same_name_are_listed(tmp_path: Path, parquet: tuple[Path, Words]) -> None:
    root, _ = parquet
    import pyarrow
    from pyarrow import parquet as files

    path = root / "train-00000-of-00002.parquet"
    table = files.read_table(path)
    rows = table.to_pylist()
    rows[0]["sound"]["bytes"] = b"no audio"
    secret = tmp_path / "secret.flac"
    secret.write_bytes(rows[1]["sound"]["bytes"])
    thefts = {
        "path": "/etc/passwd",
        "file chain": f"file://{secret}::hf://datasets/{root}/a.flac",
        "zip chain": f"zip://a.flac::{secret}::hf://datasets/{root}/a.zip",
        "local": f"local://{secret}",
        "other": "hf://datasets/org/other/a.flac",
        "up": f"hf://datasets/{root}/../../org/other/a.flac",
    }
    rows += [rows[1]]
    rows += [{**rows[1], "name": name, "sound": {"bytes": None, "path": path}} for name, path in thefts.items()]
    files.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)
    verbs.main(argv(root, tmp_path / "out", *HF))
    assert len(recordings(imported(tmp_path / "out"))) == 2
    given = reasons(tmp_path / "out")
    assert "cannot be read as audio" in given["train-00000-call 0"]
    assert given["train-00000-call 1 (row 2)"] == "another row has the same name"
    for name in thefts:
        assert "leads out of" in given[f"train-00000-{name}"], name


def test_a_repository_of_the_hub_is_streamed(tmp_path: Path, parquet: tuple[Path, Words]) -> None:
    from tests.hub_server import hub_server

    with hub_server(tmp_path / "hub") as served:
        served.add("org/talks", parquet[0], kind="dataset")
        code = f"from data_pipelines import verbs; verbs.main({argv('org/talks', tmp_path / 'out', *HF)!r})"
        environment = served.environment(tmp_path / "home") | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(recordings(imported(tmp_path / "out"))) == 3


def test_a_file_of_the_repository_itself_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def answer(path: str, mode: str) -> io.BytesIO:
        opened.append(path)
        return io.BytesIO(b"fLaC")

    monkeypatch.setattr("fsspec.open", answer)
    for path in ("hf://datasets/org/talks@refs%2Fpr%2F1/data/a b.flac", "hf://datasets/org/talks/a..flac"):
        assert hub._bytes({"bytes": None, "path": path}, "sound", "org/talks") == b"fLaC"
        assert opened.pop() == path
    for path in ("hf://datasets/org/talks2@main/a.flac", "hf://datasets/org/talks@main/a.flac::x", "hf://org/talks/a"):
        with refused("unsafe", path):
            hub._bytes({"bytes": None, "path": path}, "sound", "org/talks")
    assert not opened
