"""Dialogues to shards: the layout, the bytes whatever happens on the way, and what is never touched."""

import hashlib
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from data_pipelines.execution.executor import Executor
from data_pipelines.shards import encode
from data_pipelines.shards.codec import SharedCodec
from data_pipelines.shards.encode import build_shards, encode_audio
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import CodecFacts
from data_pipelines.shards.pack import cut_into_shards
from data_pipelines.sound.audio import loudness
from model.errors import UserError
from model.files import LOCK
from model.mimi.files import load_mimi
from model.weights.sources import codec_path
from tests.data_pipelines.tiny_dialogues import RATE, TinyCodec, noise, write_corpus, write_dialogue
from tests.refusals import refused


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Five service, three assistant and two two-sided calls."""
    return write_corpus(tmp_path / "dialogues")


def test_the_layout_has_both_splits_all_sources_and_no_leftovers(
    corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = build_shards(corpus, TinyCodec(), tmp_path / "out")
    assert sorted(tree(tmp_path / "out")) == [
        "heldout/assistant-00000.tar",
        "heldout/index.safetensors",
        "heldout/service-00000.tar",
        "manifest.json",
        "report.json",
        "train/assistant-00000.tar",
        "train/fisher-00000.tar",
        "train/index.safetensors",
        "train/service-00000.tar",
    ]
    assert not (tmp_path / "out" / ".work").exists()
    stored = (tmp_path / "out" / "manifest.json").read_text()
    assert json.loads(stored) == json.loads(json.dumps(asdict(manifest)))
    assert asdict(manifest.content["train"]["fisher"]) == {
        "dialogues": 2, "samples": 4, "hours": pytest.approx(7 / 3600), "agent_words": 5 + 3 + 7 + 5
    }  # fmt: skip
    assert manifest.codec == CodecFacts(
        fingerprint="ab" * 32, card=64, num_codebooks=8,
        silence_codes=tuple(range(8)), sine_codes=tuple(range(8, 16)),
    )  # fmt: skip
    assert {name: shard.sha256 for name, shard in manifest.shards.items()} == {
        name: value for name, value in tree(tmp_path / "out").items() if name.endswith(".tar")
    }
    out = capsys.readouterr().out
    assert "10 dialogues, 12 samples" in out and "5 shards; 0 rejected" in out
    assert "licence CC0-1.0: 7 dialogues" in out and "licence MIT: 3 dialogues" in out


def test_stored_codes_are_those_of_the_files(corpus: list[Path], tmp_path: Path) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    reader = ShardReader(tmp_path / "out" / "train")
    sample = reader.read(reader.sources()["service"][1])
    assert (sample.id, sample.side) == ("service-1", "left")
    wav_SC, _ = soundfile.read(corpus[0] / "service-1" / "audio.flac", dtype="float32")
    wav_SC = np.pad(wav_SC, ((0, -len(wav_SC) % 1920), (0, 0)))
    levels = np.abs(wav_SC).reshape(-1, 1920, 2).mean(axis=1) * 200
    assert np.array_equal(sample.codes_QT[0], np.floor(levels[:, 0]))
    assert np.array_equal(sample.codes_QT[15], np.floor(levels[:, 1]) + 7)
    assert sample.codes_QT.shape == (16, 38) and sample.codes_QT.dtype == torch.int64


def test_voice_prompts_are_encoded_at_minus_24_lufs(tmp_path: Path) -> None:
    """Two recordings of one clip, 20 dB apart, give the same codes, and those of the clip at -24 LUFS."""
    seen: list[Tensor] = []

    class Listening(TinyCodec):
        def encode(self, wav_B1S: Tensor) -> Tensor:
            seen.append(wav_B1S)
            return super().encode(wav_B1S)

    for name, level in (("loud", 0.5), ("faint", 0.05)):
        folder = write_dialogue(tmp_path / "d", name)
        soundfile.write(folder / "left.voice.flac", noise(3.5, level, 1), RATE, subtype="PCM_16")
    build_shards([tmp_path / "d"], Listening(), tmp_path / "out")
    reader = ShardReader(tmp_path / "out" / "train")
    assert torch.equal(reader.read(0).voice_codes_QP, reader.read(1).voice_codes_QP)
    voices = [wav for wav in seen if wav.shape[2] == round(3.5 * RATE)]
    assert [loudness(wav[0].numpy(), RATE) for wav in voices] == pytest.approx([-24, -24], abs=0.01)


def test_shards_are_cut_by_size() -> None:
    assert cut_into_shards([4, 4, 4, 9, 1, 1], 8) == [range(2), range(2, 3), range(3, 4), range(4, 6)]
    assert cut_into_shards([], 8) == []


def test_a_small_limit_gives_several_shards_with_all_dialogues(tmp_path: Path) -> None:
    for n in range(9):
        write_dialogue(tmp_path / "d", f"x-{n}", seconds=6.0)
    manifest = build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out", shard_mb=1)
    assert len(manifest.shards) > 2
    assert all(shard.bytes < 1_000_000 + 20_480 for shard in manifest.shards.values())
    assert [row.id for row in ShardReader(tmp_path / "out" / "train").rows] == [f"x-{n}" for n in range(9)]


def interrupted_at(stop: str, folders: list[Path], codec: TinyCodec, out: Path, patch: pytest.MonkeyPatch) -> None:
    """Interrupts a run where it calls the function `stop`, or leaves it to the codec if that is "encode"."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with patch.context() as patched, pytest.raises(KeyboardInterrupt):
        if stop != "encode":
            patched.setattr(encode, stop, interrupt)
        build_shards(folders, codec, out)


@pytest.mark.parametrize("stop", ["encode", "build_index", "make_manifest"])
def test_a_killed_run_resumes_and_gives_the_same_bytes(
    corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "whole")
    encoded: list[int] = []

    class Killed(TinyCodec):
        def encode(self, wav_B1S: Tensor) -> Tensor:
            encoded.append(len(wav_B1S))
            if stop == "encode" and len(encoded) == 9:
                raise KeyboardInterrupt
            return super().encode(wav_B1S)

    interrupted_at(stop, corpus, Killed(), tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = len(encoded)
    stop = ""
    build_shards(corpus, Killed(), tmp_path / "out")
    assert len(encoded) - first <= 20 + 12 - first + 4  # 20 channels, 12 voices; one dialogue may be done again
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_two_runs_never_write_one_folder_together(corpus: list[Path], tmp_path: Path) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "alone")
    refusals: list[str] = []

    class Watched(TinyCodec):
        def encode(self, wav_B1S: Tensor) -> Tensor:
            if not refusals:
                with refused("in-use", tmp_path / "out", f"process {os.getpid()}"):
                    build_shards(corpus, TinyCodec(), tmp_path / "out")
                refusals.append("seen")
            return super().encode(wav_B1S)

    build_shards(corpus, Watched(), tmp_path / "out")
    assert refusals and tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_a_killed_run_leaves_no_lock_that_stops_the_next(corpus: list[Path], tmp_path: Path) -> None:
    """A lock file without a holder is what a process leaves that was killed before it wrote anything else."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).write_text("process 1 on nowhere")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    assert not (tmp_path / "out" / LOCK).exists()


def test_bytes_do_not_depend_on_the_number_of_workers(corpus: list[Path], tmp_path: Path) -> None:
    (corpus[0] / "service-1" / "left.voice.flac").unlink()
    build_shards(corpus, TinyCodec(), tmp_path / "one")
    build_shards(corpus, TinyCodec(), tmp_path / "two", executor=Executor(workers=2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_codes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    """With all weights of the shipped codec; more threads sum in another order."""
    wav_CS = np.stack([noise(4, 0.3, 1), noise(4, 0.1, 2)])
    codec, before = SharedCodec(codec_path("small")), torch.get_num_threads()
    codes: list[np.ndarray] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            codes.append(encode_audio(codec, wav_CS))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert np.array_equal(codes[0], codes[1])


def test_a_codec_for_many_workers_is_pickled_as_its_path() -> None:
    codec = SharedCodec(codec_path("small"))
    assert codec.fingerprint() == load_mimi(codec_path("small")).fingerprint()
    assert len(pickle.dumps(codec)) < 1000 and pickle.loads(pickle.dumps(codec)) == codec


def test_more_dialogues_may_join_an_unfinished_run(
    corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_at("make_manifest", corpus[:1], TinyCodec(), tmp_path / "out", monkeypatch)
    manifest = build_shards(corpus[1:], TinyCodec(), tmp_path / "out")
    assert list(manifest.shards) == ["train/fisher-00000.tar"]
    assert len(ShardReader(tmp_path / "out" / "train")) == 4


def test_finished_shards_are_left_alone(corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    before = tree(tmp_path / "out")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    with refused("other-settings", tmp_path / "out", "use another --out"):
        build_shards(corpus[:1], TinyCodec(), tmp_path / "out")
    with refused("other-settings", tmp_path / "out"):
        build_shards(corpus, TinyCodec(), tmp_path / "out", shard_mb=100)
    assert tree(tmp_path / "out") == before


def test_a_folder_of_something_else_is_not_touched(corpus: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with refused("other-settings", tmp_path / "mine", "not an unfinished `ppx-data shard`"):
        build_shards(corpus, TinyCodec(), tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"thesis.tex": hashlib.sha256(b"years of work").hexdigest()}


def test_wrong_folders_are_named(corpus: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        build_shards([tmp_path / "nowhere"], TinyCodec(), tmp_path / "out")
    with pytest.raises(UserError, match="qa-0"):
        build_shards([corpus[0] / "qa-0"], TinyCodec(), tmp_path / "out")
    with pytest.raises(UserError, match="qa-0 .*synth .*synth"):
        build_shards([corpus[0], corpus[0]], TinyCodec(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_the_user_in_an_unfinished_run_is_never_deleted(
    corpus: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_at("make_manifest", corpus, TinyCodec(), tmp_path / "out", monkeypatch)
    for name in ("notes.txt", "mine-00000.tar"):
        mine = tmp_path / "out" / "train" / name
        mine.write_text("keep me")
        with refused("exists", mine):
            build_shards(corpus, TinyCodec(), tmp_path / "out")
        assert mine.read_text() == "keep me"
        mine.unlink()
    build_shards(corpus, TinyCodec(), tmp_path / "out")
