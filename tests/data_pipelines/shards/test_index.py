"""Samples by number: what they hold, who may read them concurrently, and what is said about damaged ones."""

import io
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save

from data_pipelines import verbs
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.pack import write_shard
from data_pipelines.shards.rows import NAME, Index
from data_pipelines.shards.scan import build_index
from model.errors import UserError
from tests.data_pipelines.forked import forked_totals, total
from tests.data_pipelines.tiny_dialogues import TinyCodec, overwrite, stored, write_corpus
from tests.data_pipelines.tiny_recordings import without_length
from tests.refusals import refused

Change = Callable[[bytes], bytes]


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A folder of tars: 2 assistant, 4 fisher samples of 2 calls, 4 service."""
    build_shards(write_corpus(tmp_path / "dialogues"), TinyCodec(), tmp_path / "out")
    return tmp_path / "out" / "train"


def test_rows_name_every_agent_side(train: Path) -> None:
    reader = ShardReader(train)
    assert [(row.id, row.side, row.source) for row in reader.rows] == [
        ("qa-0", "left", "assistant"),
        ("qa-1", "left", "assistant"),
        ("call-0", "left", "fisher"),
        ("call-0", "right", "fisher"),
        ("call-1", "left", "fisher"),
        ("call-1", "right", "fisher"),
        *((f"service-{n}", "left", "service") for n in range(4)),
    ]
    assert reader.sources() == {"assistant": [0, 1], "fisher": [2, 3, 4, 5], "service": [6, 7, 8, 9]}
    row = reader.rows[4]
    assert (row.num_frames, row.voice_frames) == (50, 40)
    agent = reader.dialogue(4).side(row.side)
    assert (row.num_words, row.role_chars) == (len(agent.words), len(agent.role_prompt)) == (7, 13)
    assert reader.rows[-1] == list(reader.rows)[9] == reader.rows[8:][1]
    with pytest.raises(IndexError):
        reader.rows[10]


def test_a_sample_has_the_agent_first_whichever_side_it_is(train: Path) -> None:
    reader = ShardReader(train)
    codes = np.load(io.BytesIO(stored(train, "call-0")[1]["codes.npy"]))
    left, right = reader.read(2), reader.read(3)
    assert torch.equal(left.codes_QT, torch.from_numpy(codes.astype(np.int64)))
    assert torch.equal(right.codes_QT, torch.from_numpy(np.concatenate([codes[8:], codes[:8]]).astype(np.int64)))
    for sample in (left, right):
        agent = reader.dialogue(2).side(sample.side)
        assert sample.role_prompt == agent.role_prompt == f"You are {sample.side}."
        assert sample.words == [(word.text, word.start) for word in agent.words] and sample.words
        voice = np.load(io.BytesIO(stored(train, "call-0")[1][f"{sample.side}.voice.npy"]))
        assert np.array_equal(sample.voice_codes_QP, voice)


def test_audio_comes_back_as_recorded(train: Path, tmp_path: Path) -> None:
    reader = ShardReader(train)
    wav_CS, rate = reader.audio(6)
    expected, _ = soundfile.read(tmp_path / "dialogues" / "synth" / "service-0" / "audio.flac", dtype="float32")
    assert rate == 24000 and np.array_equal(wav_CS, expected.T)


def test_an_error_of_a_sample_crosses_processes_whole() -> None:
    why = pickle.loads(pickle.dumps(BadSample("service-1", "torn")))
    assert (why.id, why.reason, why.code) == ("service-1", "torn", "bad-shards")
    assert str(why) == str(BadSample("service-1", "torn"))


def test_threads_and_forked_processes_share_a_reader(train: Path) -> None:
    reader = ShardReader(train)
    order = [7, 2, 9, 0, 3, 1, 8, 5, 4, 6] * 5
    alone = {i: total(ShardReader(train), i) for i in range(10)}
    assert len(set(alone.values())) > 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, [reader] * 50, order)) == [alone[i] for i in order]
    assert forked_totals(str(train)) == list(alone.values())


def test_reading_leaves_no_file_open(train: Path) -> None:
    reader = ShardReader(train)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(len(reader)):
        reader.read(i)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("member", "change", "reason"),
    [
        ("codes.npy", lambda data: b"\0" * len(data), "not a .npy array"),
        ("codes.npy", lambda data: data.replace(b"<i2", b"<u2"), "codes are uint16"),
        ("codes.npy", lambda data: data[:-2] + b"\xff\xff", "codes hold the negative value -1"),
        ("codes.npy", lambda data: data.replace(b"'<i2', ", b"'|O',  "), "not a .npy array: Object arrays"),
        ("left.voice.npy", lambda data: data.replace(b"(8, 40)", b"(4, 80)"), r"not int16 \[8, 40\]"),
        ("left.text.json", lambda data: b"[" + data[1:], "not the text of a side"),
        (
            "left.text.json",
            lambda data: data.replace(b"starts", b"STARTS"),
            "not the text of a side: KeyError 'starts'",
        ),
        ("left.text.json", lambda data: data.replace(b'"w0",', b"     "), "not the text of a side: ValueError zip"),
        ("left.text.json", lambda data: b"\xff" + data[1:], "can't decode"),
    ],
)
def test_one_bad_sample_is_named_and_the_others_are_read(train: Path, member: str, change: Change, reason: str) -> None:
    overwrite(train, "service-1", member, change)
    reader = ShardReader(train)
    good = []
    for i in range(len(reader)):
        try:
            good.append(reader.read(i).id)
        except BadSample as why:
            assert why.id == "service-1"
            assert isinstance(why, UserError)
            with pytest.raises(BadSample, match=reason):
                raise
    assert len(good) == 9 and "service-1" not in good


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"[" + data[1:], "not a dialogue record"),
        (lambda data: b"\xff" + data[1:], "can't decode"),
        (lambda data: data.replace(b"service-1", b"service-7"), "is of dialogue 'service-7'"),
        (lambda data: data.replace(b'"is_agent": true', b'"is_agent":false'), "neither side is an agent"),
    ],
)
def test_a_bad_record_is_named(train: Path, change: Change, reason: str) -> None:
    overwrite(train, "service-1", "meta.json", change)
    with pytest.raises(BadSample, match=f"sample service-1: .*{reason}"):
        ShardReader(train).dialogue(7)


def test_sound_of_unknown_length_is_read(train: Path) -> None:
    for member in ("audio.flac", "left.voice.flac"):
        expected, _ = soundfile.read(io.BytesIO(stored(train, "service-1")[1][member]), dtype="float32", always_2d=True)
        overwrite(train, "service-1", member, without_length)
        reader = ShardReader(train)
        wav_CS, _ = (reader.audio if member == "audio.flac" else reader.voice_clip)(7)
        np.testing.assert_array_equal(wav_CS, expected.T)


def test_words_that_are_no_text_cost_their_sample_only(train: Path) -> None:
    for member, change in (
        ("left.text.json", lambda data: data.replace(b'"w0"', b"   0")),
        ("left.text.json", lambda data: data.replace(b'"w0"', b"null")),
        ("left.text.json", lambda data: b"[" * len(data)),
        ("left.text.json", lambda data: data.replace(b"You are left", b"\\ud800......")),
        ("left.text.json", lambda data: data.replace(b'"starts":[0.1', b'"starts":[NaN')),
        ("meta.json", lambda data: b"[" * len(data)),
        ("meta.json", lambda data: data.replace(b"You are left", b"\\ud800......")),
        ("meta.json", lambda data: data.replace(b'"source": "service"', b'"source": "fisher" ')),
    ):
        before = stored(train, "service-1")[1][member]
        overwrite(train, "service-1", member, change)
        with refused("bad-shards", "sample service-1", error=BadSample):
            ShardReader(train).read(7)
            ShardReader(train).dialogue(7)
        overwrite(train, "service-1", member, lambda _, before=before: before)  # type: ignore[misc]


def test_sound_that_is_no_flac_is_neither_passed_on_nor_indexed(train: Path) -> None:
    for member, part in (("audio.flac", "audio"), ("left.voice.flac", "clip")):
        before = stored(train, "service-1")[1][member]
        overwrite(train, "service-1", member, lambda data: b"root:x:0:0" + data[10:])
        reader = ShardReader(train)
        with refused("bad-shards", "service-1", "is no FLAC", error=BadSample):
            reader.stored(7, part)
        with refused("bad-shards", "service-1", "is no FLAC", error=BadSample):
            (reader.audio if part == "audio" else reader.voice_clip)(7)
        assert build_index(train) == [f"service-00000.tar: service-1: {member} is no FLAC"]
        overwrite(train, "service-1", member, lambda _, before=before: before)  # type: ignore[misc]
        assert build_index(train) == []


def test_a_tar_is_indexed_by_a_name_that_is_safe(train: Path) -> None:
    os.replace(train / "fisher-00000.tar", train / "My calls.tar")
    with refused("bad-shards", train / "My calls.tar", "SOURCE-00000.tar"):
        build_index(train)


@pytest.mark.parametrize(
    ("id", "source"), [("../../../x", "service"), ("a b", "service"), ("x", "../../x"), ("x", "a/b"), ("__x", "x")]
)
def test_names_that_lead_elsewhere_are_not_indexed(train: Path, id: str, source: str) -> None:
    members = stored(train, "service-1")[1]
    record = members["meta.json"].replace(b'"service-1"', json.dumps(id).encode())
    record = record.replace(b'"source": "service"', f'"source": "{source}"'.encode())
    write_shard(train / "more-00000.tar", [(id, members | {"meta.json": record})])
    [problem] = build_index(train)
    assert problem.startswith("more-00000.tar: ") and len(ShardReader(train)) == 10


def test_a_truncated_tar_is_named_at_the_start(train: Path) -> None:
    path = train / "fisher-00000.tar"
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    with refused("bad-shards", path, size - 1000, size, f"`ppx-data index {train}`"):
        ShardReader(train)


def test_a_missing_tar_is_named_at_the_start(train: Path) -> None:
    (train / "service-00000.tar").unlink()
    with refused("bad-shards", train / "service-00000.tar", "is missing"):
        ShardReader(train)


def test_missing_folders_and_broken_indexes_are_named(train: Path, tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "nowhere"):
        ShardReader(tmp_path / "nowhere")
    (train / "index.safetensors").write_bytes(b"PK and then nothing")
    with refused("unreadable", train / NAME):
        ShardReader(train)
    (train / "index.safetensors").unlink()
    with refused("not-found", train / NAME, f"`ppx-data index {train}`"):
        ShardReader(train)


def test_an_index_of_another_layout_is_refused(train: Path) -> None:
    index = Index.load(train)
    index.columns["side"] = index.columns["side"].astype(np.int64)
    index.save(train / NAME)
    with refused("bad-shards", train / NAME):
        ShardReader(train)
    columns = {"offset": torch.zeros(1, dtype=torch.int64)}
    (train / NAME).write_bytes(save(columns, metadata={"facts": '{"layout": 2}'}))
    with refused("bad-shards", train / NAME):
        ShardReader(train)


def test_tars_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "nowhere"):
        build_index(tmp_path / "nowhere")
    (tmp_path / "x").mkdir()
    with refused("no-data", tmp_path / "x"):
        build_index(tmp_path / "x")
    write_shard(tmp_path / "x" / "a-00000.tar", [])
    with refused("bad-shards", "a-00000.tar"):
        build_index(tmp_path / "x")
    (tmp_path / "x" / "a-00000.tar").write_bytes(b"")
    with refused("bad-shards", "a-00000.tar"):
        build_index(tmp_path / "x")
    write_shard(tmp_path / "x" / "a-00000.tar", [("one", {"txt": b"hello"})])
    with refused("no-data", tmp_path / "x", "a-00000.tar: one: no meta.json"):
        build_index(tmp_path / "x")


@pytest.mark.parametrize("cut", [100, 700, 10_500, 30_000])
def test_no_truncated_tar_is_indexed(train: Path, cut: int) -> None:
    path = train / "fisher-00000.tar"
    os.truncate(path, path.stat().st_size - 10_240 - cut)
    (train / "index.safetensors").unlink()
    with refused("bad-shards", path):
        build_index(train)


def test_indexing_again_gives_the_same_bytes(train: Path) -> None:
    before = (train / "index.safetensors").read_bytes()
    assert build_index(train) == []
    assert (train / "index.safetensors").read_bytes() == before


def test_the_index_verb_leaves_broken_dialogues_out_and_says_so(
    train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(train, "service-1", "codes.npy", lambda data: b"\0" * len(data))
    verbs.main(["index", str(train.parent)])
    out = capsys.readouterr().out
    assert "9 samples (assistant 2, fisher 4, service 3), 1 dialogues left out" in out
    assert "service-00000.tar: service-1: not a .npy array" in out
    assert len(ShardReader(train)) == 9
    with refused("no-data", "dialogues", "train, heldout"):
        verbs.main(["index", str(train.parent.parent / "dialogues")])
