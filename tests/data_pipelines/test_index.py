import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
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


@pytest.fixture
def train(tmp_path):
    """A folder of tars: 2 assistant, 4 fisher samples of 2 calls, 4 service."""
    build_shards(write_corpus(tmp_path / "dialogues"), TinyCodec(), tmp_path / "out")
    return tmp_path / "out" / "train"


def test_rows_name_every_agent_side(train):
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


def test_a_sample_has_the_agent_first_whichever_side_it_is(train):
    reader = ShardReader(train)
    codes = np.load(io.BytesIO(stored(train, "call-0")[1]["codes.npy"]))
    left, right = reader.read(2), reader.read(3)
    assert torch.equal(left.codes_KT, torch.from_numpy(codes.astype(np.int64)))
    assert torch.equal(right.codes_KT, torch.from_numpy(np.concatenate([codes[8:], codes[:8]]).astype(np.int64)))
    for sample in (left, right):
        agent = reader.dialogue(2).side(sample.side)
        assert sample.role_prompt == agent.role_prompt == f"You are {sample.side}."
        assert sample.words == [(word.text, word.start) for word in agent.words] and sample.words
        voice = np.load(io.BytesIO(stored(train, "call-0")[1][f"{sample.side}.voice.npy"]))
        assert np.array_equal(sample.voice_codes_CP, voice)


def test_audio_comes_back_as_recorded(train, tmp_path):
    import soundfile

    reader = ShardReader(train)
    wav_CS, rate = reader.audio(6)
    expected, _ = soundfile.read(tmp_path / "dialogues" / "synth" / "service-0" / "audio.flac", dtype="float32")
    assert rate == 24000 and np.array_equal(wav_CS, expected.T)


def test_threads_and_forked_processes_share_a_reader(train):
    reader = ShardReader(train)
    order = [7, 2, 9, 0, 3, 1, 8, 5, 4, 6] * 5
    alone = {i: total(ShardReader(train), i) for i in range(10)}
    assert len(set(alone.values())) > 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, [reader] * 50, order)) == [alone[i] for i in order]
    assert forked_totals(str(train)) == list(alone.values())


def test_reading_leaves_no_file_open(train):
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
def test_one_bad_sample_is_named_and_the_others_are_read(train, member, change, reason):
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
def test_a_bad_record_is_named(train, change, reason):
    overwrite(train, "service-1", "meta.json", change)
    with pytest.raises(BadSample, match=f"sample service-1: .*{reason}"):
        ShardReader(train).dialogue(7)


def test_a_truncated_tar_is_named_at_the_start(train):
    path = train / "fisher-00000.tar"
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    expected = f"fisher-00000.tar: has {size - 1000} bytes, its index expects {size} bytes: .*ppx-data index"
    with pytest.raises(UserError, match=expected):
        ShardReader(train)


def test_a_missing_tar_is_named_at_the_start(train):
    (train / "service-00000.tar").unlink()
    with pytest.raises(UserError, match="service-00000.tar: is missing, its index expects [0-9]+ bytes"):
        ShardReader(train)


def test_missing_folders_and_broken_indexes_are_named(train, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder of shards"):
        ShardReader(tmp_path / "nowhere")
    (train / "index.safetensors").write_bytes(b"PK and then nothing")
    with pytest.raises(UserError, match="index.safetensors: broken index"):
        ShardReader(train)
    (train / "index.safetensors").unlink()
    with pytest.raises(UserError, match="index.safetensors: no index: make it with `ppx-data index"):
        ShardReader(train)


def test_an_index_of_another_layout_is_refused(train):
    index = Index.load(train)
    index.columns["side"] = index.columns["side"].astype(np.int64)
    index.save(train / NAME)
    with pytest.raises(UserError, match="an index of another version"):
        ShardReader(train)
    columns = {"offset": torch.zeros(1, dtype=torch.int64)}
    (train / NAME).write_bytes(save(columns, metadata={"facts": '{"layout": 2}'}))
    with pytest.raises(UserError, match="an index of another version"):
        ShardReader(train)


def test_tars_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder of shards"):
        build_index(tmp_path / "nowhere")
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="x: holds no shard"):
        build_index(tmp_path / "x")
    write_shard(tmp_path / "x" / "a-00000.tar", [])
    with pytest.raises(UserError, match="a-00000.tar: an empty shard"):
        build_index(tmp_path / "x")
    (tmp_path / "x" / "a-00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="a-00000.tar: not a whole plain tar"):
        build_index(tmp_path / "x")
    write_shard(tmp_path / "x" / "a-00000.tar", [("one", {"txt": b"hello"})])
    with pytest.raises(UserError, match="no usable sample in 1 shards; the first: a-00000.tar: one: no meta.json"):
        build_index(tmp_path / "x")


@pytest.mark.parametrize("cut", [100, 700, 10_500, 30_000])
def test_no_truncated_tar_is_indexed(train, cut):
    path = train / "fisher-00000.tar"
    os.truncate(path, path.stat().st_size - 10_240 - cut)
    (train / "index.safetensors").unlink()
    with pytest.raises(UserError, match="fisher-00000.tar: (not a whole plain tar|truncated)"):
        build_index(train)


def test_indexing_again_gives_the_same_bytes(train):
    before = (train / "index.safetensors").read_bytes()
    assert build_index(train) == []
    assert (train / "index.safetensors").read_bytes() == before


def test_the_index_verb_leaves_broken_dialogues_out_and_says_so(train, capsys):
    overwrite(train, "service-1", "codes.npy", lambda data: b"\0" * len(data))
    verbs.main(["index", str(train.parent)])
    out = capsys.readouterr().out
    assert "9 samples (assistant 2, fisher 4, service 3), 1 dialogues left out" in out
    assert "service-00000.tar: service-1: not a .npy array" in out
    assert len(ShardReader(train)) == 9
    with pytest.raises(UserError, match="neither of train, heldout"):
        verbs.main(["index", str(train.parent.parent / "dialogues")])
