"""`ppx-data check`: every fault of shards is found and named, and good shards have none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from data_pipelines import verbs
from data_pipelines.quality import check
from data_pipelines.quality.check import check_shards
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.pack import write_shard
from data_pipelines.shards.rows import NAME, Index
from data_pipelines.shards.scan import build_index
from data_pipelines.sound.audio import Audio
from tests.data_pipelines.tiny_dialogues import TinyCodec, overwrite, stored, write_corpus, write_dialogue
from tests.refusals import refused


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of the tiny corpus."""
    build_shards(write_corpus(tmp_path / "dialogues"), TinyCodec(), tmp_path / "out")
    return tmp_path / "out"


def edit_manifest(shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    change(manifest)
    (shards / "manifest.json").write_text(json.dumps(manifest))


def edit_index(split: Path, change: Callable[[Index], object]) -> None:
    index = Index.load(split)
    index.columns = {name: column.copy() for name, column in index.columns.items()}
    change(index)
    index.save(split / NAME)


def test_good_shards_have_no_problem(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_shards(shards, TinyCodec()) == []
    verbs.main(["check", str(shards)])
    out = capsys.readouterr().out
    assert "train: good (assistant 2, fisher 4, service 4 samples)" in out
    assert "note: 1 agent voices are in both splits: tiny/left" in out


def test_a_changed_tar_is_found_by_its_hash(shards: Path) -> None:
    overwrite(shards / "train", "call-0", "audio.flac", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    problems = check_shards(shards)
    assert "train/fisher-00000.tar: its sha256 is not the manifest's: the content has changed" in problems


def test_every_fault_of_the_files_is_listed_not_only_the_first(shards: Path) -> None:
    os.truncate(shards / "train" / "fisher-00000.tar", 5000)
    (shards / "heldout" / "service-00000.tar").unlink()
    (shards / "heldout" / "more-00000.tar").write_bytes(b"")
    problems = check_shards(shards)
    for part in (
        "fisher-00000.tar: 5000 bytes",
        "heldout/service-00000.tar: missing",
        "more-00000.tar: not in the man",
    ):
        assert [problem for problem in problems if part in problem]


def test_samples_that_cannot_be_read_are_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overwrite(shards / "train", "service-1", "codes.npy", lambda data: b"\0" * len(data))
    with refused("bad-shards", shards, "problems"):
        verbs.main(["check", str(shards)])
    assert "sample service-1: not a .npy array" in capsys.readouterr().out


def test_counts_that_are_not_those_of_the_manifest_are_named(shards: Path) -> None:
    edit_manifest(shards, lambda manifest: manifest["content"]["train"]["service"].update(samples=7))
    edit_manifest(shards, lambda manifest: manifest["content"]["heldout"].pop("service"))
    assert check_shards(shards) == [
        "train: service: 4 samples, the manifest says 7",
        "heldout: service: 1 samples, the manifest says 0",
    ]


def test_codes_beyond_the_codec_are_named(shards: Path) -> None:
    edit_manifest(shards, lambda manifest: manifest["codec"].update(card=20))
    assert [p for p in check_shards(shards) if "service-0/left: codes up to" in p and "the codec has 0 to 19" in p]


def test_an_unlisted_licence_is_named(shards: Path) -> None:
    edit_manifest(shards, lambda manifest: manifest["licences"].pop("MIT"))
    assert "train: qa-0/left: licence 'MIT' is not in the manifest" in check_shards(shards)


def test_words_after_the_audio_are_named(shards: Path) -> None:
    """The reader trusts meta.json's own length; the check compares with the codes."""
    overwrite(
        shards / "train", "qa-0", "meta.json", lambda data: data.replace(b'"seconds": 4.0', b'"seconds": 9.0').replace(
            b'"end": 3.4, ', b'"end": 8.4, ')
    )  # fmt: skip
    assert [p for p in check_shards(shards) if "qa-0/left: left words end after the audio of 4.00 s" in p]


def test_an_index_of_other_tars_is_named(shards: Path) -> None:
    before = (shards / "train" / "index.safetensors").read_bytes()
    (shards / "train" / "assistant-00000.tar").unlink()
    build_index(shards / "train")
    assert [p for p in check_shards(shards) if "assistant-00000.tar: missing" in p]
    (shards / "train" / "index.safetensors").write_bytes(before)
    assert [p for p in check_shards(shards) if "not the index of these tars" in p]


def test_swapped_tars_flipped_sides_and_zeroed_codes_are_found(shards: Path) -> None:
    for n in range(2):
        write_dialogue(shards.parent / "more", f"x-{n}")
    pair = shards.parent / "pair"
    build_shards([shards.parent / "more"], TinyCodec(), pair)
    tar, other = pair / "train" / "service-00000.tar", pair / "train" / "service-00001.tar"
    write_shard(other, [(f"y-{n}", stored(pair / "train", f"x-{n}")[1]) for n in range(2)])
    assert tar.stat().st_size == other.stat().st_size
    os.replace(other, tar)
    assert "train/service-00000.tar: its sha256 is not the manifest's: the content has changed" in check_shards(pair)

    def flip(index: Index) -> None:
        index.columns["side"][:] = 1 - index.columns["side"]

    edit_index(shards / "train", flip)
    problems = check_shards(shards)
    assert f"{shards / 'train' / NAME}: its sha256 is not the manifest's: the content has changed" in problems
    assert [p for p in problems if "not the index of these tars" in p]
    build_index(shards / "train")
    assert check_shards(shards) == []
    codes = stored(shards / "train", "qa-0")[1]["codes.npy"]
    overwrite(shards / "train", "qa-0", "codes.npy", lambda data: data[:128] + bytes(len(codes) - 128))
    assert "train/assistant-00000.tar: its sha256 is not the manifest's: the content has changed" in check_shards(
        shards
    )
    build_index(shards / "train")  # The hash of a tar is in the index, so an index of other tars is another one.
    assert f"{shards / 'train' / NAME}: its sha256 is not the manifest's: the content has changed" in check_shards(
        shards
    )


def test_an_index_whose_hashes_are_not_those_of_the_tars_is_named(shards: Path) -> None:
    def swap(index: Index) -> None:
        index.shard_hashes.reverse()

    edit_index(shards / "train", swap)
    edit_manifest(shards, lambda manifest: manifest.pop("index"))
    assert [p for p in check_shards(shards) if "not the index of these tars" in p]


def test_shards_of_an_early_version_are_good_and_the_missing_hash_is_said(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "heldout"):
        edit_index(shards / split, lambda index: index.shard_hashes.clear())
    edit_manifest(shards, lambda manifest: manifest.pop("index"))
    verbs.main(["check", str(shards)])
    assert f"(train, heldout): `ppx-data index {shards}` adds it" in capsys.readouterr().out
    verbs.main(["index", str(shards)])
    verbs.main(["check", str(shards)])
    assert "adds it" not in capsys.readouterr().out
    assert read_manifest(shards).index == {split: ShardReader(shards / split).sha256 for split in ("train", "heldout")}


def test_codes_that_are_not_those_of_the_audio_are_found(shards: Path) -> None:
    class Other(TinyCodec):
        def encode(self, wav_B1S: Tensor) -> Tensor:
            return super().encode(wav_B1S).flip(1)

    problems = check_shards(shards, Other(), again=100)
    assert len(problems) == 2 * 12
    assert "train: qa-0/left: 100.0% of its codes change on encoding" in problems

    class Newer(TinyCodec):
        def fingerprint(self) -> str:
            return "cd" * 32

    assert check_shards(shards, Newer()) == [
        "the codec is not the one that made these shards: give that one with --codec"
    ]


def test_a_split_instead_of_the_shards_is_refused(shards: Path) -> None:
    with refused("bad-shards", shards / "train", f"give {shards}"):
        check_shards(shards / "train")


def test_an_option_that_does_nothing_is_refused(shards: Path) -> None:
    for option, value in (("--codec-samples", "3"), ("--max-wer", "0.4"), ("--asr", "large-v3"), ("--device", "cuda")):
        partner = "--codec" if option == "--codec-samples" else "--asr-samples"
        with refused("bad-combination", f"{option} {value}", partner):
            verbs.main(["check", str(shards), option, value])
    for option, value in (("--codec-samples", "0"), ("--max-wer", "0"), ("--asr-samples", "0")):
        with refused("bad-value", f"{option} {value}"):
            verbs.main(["check", str(shards), "--codec", "small", "--asr-samples", "1", option, value])


def test_any_recogniser_may_listen(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deaf:
        def transcribe(self, audio: Audio, rate: int) -> str:
            return ""

        def identity(self) -> dict[str, Any]:
            return {"name": "deaf"}

    opened: list[tuple[str, ...]] = []

    def open_deaf(*words: str) -> Deaf:
        opened.append(words)
        return Deaf()

    monkeypatch.setattr(check, "open_asr", open_deaf)
    words = ["check", str(shards), "--asr-samples", "2", "--max-wer", "1"]
    verbs.main([*words, "--asr", "parakeet:folder", "--device", "cuda"])
    verbs.main(words)
    assert opened == [("parakeet:folder", "cuda"), ("tiny.en", "cpu")]
    assert "heard by {'name': 'deaf'}" in capsys.readouterr().out
