import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data_pipelines import verbs
from data_pipelines.execution.executor import Executor
from data_pipelines.records.schema import Word
from data_pipelines.shards import encode
from data_pipelines.shards.codec import SharedCodec
from data_pipelines.shards.encode import build_shards, encode_audio
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.pack import cut_into_shards
from data_pipelines.sound.audio import loudness, loudness_normalise
from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.mimi.files import load_mimi, save_mimi
from model.weights.sources import codec_path
from tests.data_pipelines.tiny_dialogues import RATE, TinyCodec, noise, words_every, write_corpus, write_dialogue
from tests.paths import GOLDEN

MIMI = GOLDEN / "mimi_small.safetensors"


def tree(folder):
    """Every file below a folder with its hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "dialogues")


def test_the_layout_has_both_splits_all_sources_and_no_leftovers(corpus, tmp_path, capsys):
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
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["content"]["train"]["fisher"] == {
        "dialogues": 2, "samples": 4, "hours": pytest.approx(7 / 3600), "agent_words": 5 + 3 + 7 + 5
    }  # fmt: skip
    assert manifest["codec"] == {
        "fingerprint": "ab" * 32, "card": 64, "num_codebooks": 8,
        "silence_codes": list(range(8)), "sine_codes": list(range(8, 16)),
    }  # fmt: skip
    assert {name: shard["sha256"] for name, shard in manifest["shards"].items()} == {
        name: value for name, value in tree(tmp_path / "out").items() if name.endswith(".tar")
    }
    out = capsys.readouterr().out
    assert "10 dialogues, 12 samples" in out and "5 shards; 0 rejected" in out
    assert "licence CC0-1.0: 7 dialogues" in out and "licence MIT: 3 dialogues" in out


def test_stored_codes_are_those_of_the_files(corpus, tmp_path):
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


def test_voice_prompts_are_encoded_at_minus_24_lufs(tmp_path):
    """Two recordings of one clip, 20 dB apart, give the same codes, and those of the clip at -24 LUFS."""
    seen = []

    class Listening(TinyCodec):
        def encode(self, wav_B1S):
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


def test_shards_are_cut_by_size():
    assert cut_into_shards([4, 4, 4, 9, 1, 1], 8) == [range(0, 2), range(2, 3), range(3, 4), range(4, 6)]
    assert cut_into_shards([], 8) == []


def test_a_small_limit_gives_several_shards_with_all_dialogues(tmp_path):
    for n in range(9):
        write_dialogue(tmp_path / "d", f"x-{n}", seconds=6.0)
    manifest = build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out", shard_mb=1)
    assert len(manifest["shards"]) > 2
    assert all(shard["bytes"] < 1_000_000 + 20_480 for shard in manifest["shards"].values())
    assert [row.id for row in ShardReader(tmp_path / "out" / "train").rows] == [f"x-{n}" for n in range(9)]


@pytest.mark.parametrize("stop", ["encode", "pack", "manifest"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(corpus, tmp_path, monkeypatch, stop):
    build_shards(corpus, TinyCodec(), tmp_path / "whole")
    encoded = []

    class Killed(TinyCodec):
        def encode(self, wav_B1S):
            encoded.append(len(wav_B1S))
            if stop == "encode" and len(encoded) == 9:
                raise KeyboardInterrupt
            return super().encode(wav_B1S)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stop == "pack":
            patch.setattr(encode, "build_index", interrupted)
        if stop == "manifest":
            patch.setattr(encode, "make_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_shards(corpus, Killed(), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = len(encoded)
    stop = ""
    build_shards(corpus, Killed(), tmp_path / "out")
    assert len(encoded) - first <= 20 + 12 - first + 4  # 20 channels, 12 voices; one dialogue may be done again
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_bytes_do_not_depend_on_the_number_of_workers(corpus, tmp_path):
    (corpus[0] / "service-1" / "left.voice.flac").unlink()
    build_shards(corpus, TinyCodec(), tmp_path / "one")
    build_shards(corpus, TinyCodec(), tmp_path / "two", executor=Executor(workers=2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_codes_do_not_depend_on_the_number_of_threads(tmp_path):
    """With all weights of the shipped codec; more threads sum in another order."""
    wav_CS = np.stack([noise(4, 0.3, 1), noise(4, 0.1, 2)])
    codec, before, codes = SharedCodec(codec_path("small")), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            codes.append(encode_audio(codec, wav_CS))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert np.array_equal(*codes)


def test_a_codec_for_many_workers_is_pickled_as_its_path():
    codec = SharedCodec(codec_path("small"))
    assert codec.fingerprint() == load_mimi(codec_path("small")).fingerprint()
    assert len(pickle.dumps(codec)) < 1000 and pickle.loads(pickle.dumps(codec)) == codec


def test_more_dialogues_may_join_an_unfinished_run(corpus, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "make_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_shards(corpus[:1], TinyCodec(), tmp_path / "out")
    manifest = build_shards(corpus[1:], TinyCodec(), tmp_path / "out")
    assert list(manifest["shards"]) == ["train/fisher-00000.tar"]
    assert len(ShardReader(tmp_path / "out" / "train")) == 4


def test_finished_shards_are_left_alone(corpus, tmp_path, capsys):
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    before = tree(tmp_path / "out")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists, made from other dialogues, codec or --shard-mb: use another --out"):
        build_shards(corpus[:1], TinyCodec(), tmp_path / "out")
    with pytest.raises(UserError, match="use another --out"):
        build_shards(corpus, TinyCodec(), tmp_path / "out", shard_mb=100)
    assert tree(tmp_path / "out") == before


def test_a_folder_of_something_else_is_not_touched(corpus, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not an unfinished `ppx-data shard`: use another --out"):
        build_shards(corpus, TinyCodec(), tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"thesis.tex": hashlib.sha256(b"years of work").hexdigest()}


def spoil_mono(folder):
    soundfile.write(folder / "audio.flac", noise(4, 0.1, 0), RATE)


def spoil_rate(folder):
    soundfile.write(folder / "audio.flac", np.stack([noise(4, 0.1, 0)] * 2, 1), 16000)


def spoil_length(folder):
    soundfile.write(folder / "audio.flac", np.stack([noise(3, 0.1, 0)] * 2, 1), RATE)


def spoil_clipped(folder):
    wav_SC = np.stack([noise(4, 0.1, 0)] * 2, 1)
    wav_SC[500:503, 1] = 1
    soundfile.write(folder / "audio.flac", wav_SC, RATE)


def spoil_silence(folder):
    wav_SC = np.stack([noise(4, 0.1, 0)] * 2, 1)
    wav_SC[:, 0] = 0
    soundfile.write(folder / "audio.flac", wav_SC, RATE)


def spoil_audio(folder):
    (folder / "audio.flac").write_bytes(b"fLaC, more or less")


def spoil_meta(folder):
    (folder / "meta.json").write_text('{"id": "bad"}')


def spoil_type(folder):
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"seconds": 4.0', '"seconds": "4 s"'))


def spoil_encoding(folder):
    (folder / "meta.json").write_bytes(b"\xff\xfe{}")


def spoil_unfinished(folder):
    (folder / "meta.json").unlink()


def spoil_id(folder):
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"id": "bad"', '"id": "good"'))


def spoil_split(folder):
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"split": "train"', '"split": "test"'))


def spoil_licence(folder):
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"licence": "CC0-1.0"', '"licence": " "'))


def spoil_voice(folder):
    (folder / "left.voice.flac").unlink()


def spoil_short_voice(folder):
    soundfile.write(folder / "left.voice.flac", noise(1.5, 0.1, 0), RATE)


def spoil_silent_voice(folder):
    soundfile.write(folder / "left.voice.flac", np.zeros(4 * RATE), RATE)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_mono, "has 1 channel, a dialogue needs 2"),
        (spoil_rate, "16000 Hz"),
        (spoil_length, "3.00 s, but its transcript is for 4.00 s"),
        (spoil_clipped, "right channel is clipped"),
        (spoil_silence, "left channel is silent but has words"),
        (spoil_audio, "cannot be read as audio"),
        (spoil_meta, "not a dialogue record"),
        (spoil_type, "not a dialogue record"),
        (spoil_encoding, "not a dialogue record"),
        (spoil_unfinished, "unfinished"),
        (spoil_id, "id 'good' must be the folder's name"),
        (spoil_split, "split 'test': use one of train, heldout"),
        (spoil_licence, "no licence"),
        (spoil_voice, "left.voice.flac: no such audio file"),
        (spoil_short_voice, "1.50 s: a voice prompt lasts 3 to 10 s"),
        (spoil_silent_voice, "silent"),
    ],
)
def test_one_bad_dialogue_is_left_out_with_its_reason(tmp_path, spoil, reason):
    write_dialogue(tmp_path / "d", "good")
    spoil(write_dialogue(tmp_path / "d", "bad"))
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["done"], [r["id"] for r in report["rejected"]]) == (1, ["bad"])
    assert reason in report["rejected"][0]["reason"]
    assert [row.id for row in ShardReader(tmp_path / "out" / "train").rows] == ["good"]


@pytest.mark.parametrize(
    ("left", "reason"),
    [((), "the agent .left. says no word"), ((Word(text="late", start=5, end=6),), "does not fit")],
)
def test_words_must_be_there_and_inside_the_audio(tmp_path, left, reason):
    write_dialogue(tmp_path / "d", "bad", words={"left": left, "right": words_every(4, 1)})
    with pytest.raises(UserError, match=f"none of 1 dialogues can be used.*{reason}"):
        build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")


def test_nothing_usable_can_be_mended_and_run_again(tmp_path):
    folder = write_dialogue(tmp_path / "d", "only")
    voice = (folder / "left.voice.flac").read_bytes()
    spoil_voice(folder)
    with pytest.raises(UserError, match="none of 1 dialogues can be used"):
        build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    (folder / "left.voice.flac").write_bytes(voice)
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    assert len(ShardReader(tmp_path / "out" / "train")) == 1


def test_wrong_folders_are_named(corpus, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        build_shards([tmp_path / "nowhere"], TinyCodec(), tmp_path / "out")
    with pytest.raises(UserError, match="holds no dialogue folder"):
        build_shards([corpus[0] / "qa-0"], TinyCodec(), tmp_path / "out")
    with pytest.raises(UserError, match="dialogue qa-0 is in .*synth and in .*synth"):
        build_shards([corpus[0], corpus[0]], TinyCodec(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def mimi():
    """The small Mimi of the reference vectors."""
    tensors = load_file(MIMI)
    with safe_open(MIMI, framework="pt") as file:
        codec = Mimi(MimiConfig.from_json(file.metadata()["config"]))
    codec.load_state_dict({name[8:]: tensors[name] for name in tensors if name.startswith("weights.")})
    return codec.eval()


def test_the_shard_verb_stores_what_mimi_gives_for_each_channel(corpus, tmp_path, mimi, capsys):
    save_mimi(mimi, tmp_path / "codec")
    argv = ["--dialogues", *map(str, corpus), "--codec", str(tmp_path / "codec"), "--out", str(tmp_path / "out")]
    verbs.main(["shard", *argv])
    reader = ShardReader(tmp_path / "out" / "train")
    wav_CS = torch.from_numpy(reader.audio(4)[0])
    left, right = (mimi.encode(wav_CS[None, n : n + 1])[0] for n in (0, 1))
    assert not torch.equal(left, right)
    assert torch.equal(reader.read(4).codes_QT, torch.cat([left, right]))
    assert torch.equal(reader.read(5).codes_QT, torch.cat([right, left]))
    assert read_manifest(tmp_path / "out")["codec"]["fingerprint"] == mimi.fingerprint()
    verbs.main(["check", str(tmp_path / "out"), "--codec", str(tmp_path / "codec"), "--again", "2"])
    assert "train: good" in capsys.readouterr().out
    with pytest.raises(UserError, match="--device cuda and --gpus 0 do not fit together: add --gpus"):
        verbs.main(["shard", *argv, "--device", "cuda", "--executor", "ray"])
    with pytest.raises(UserError, match="--device cpu and --gpus 1 do not fit together: add --device cuda"):
        verbs.main(["shard", *argv, "--gpus", "1", "--executor", "ray"])
    with pytest.raises(UserError, match="--device tpu9: not usable on"):
        verbs.main(["shard", *argv, "--device", "tpu9"])


def test_stored_codes_are_those_that_the_streaming_runtime_makes_frame_by_frame(corpus, tmp_path, mimi):
    build_shards(corpus, mimi, tmp_path / "out")
    reader = ShardReader(tmp_path / "out" / "train")
    for i in (reader.sources()["service"][3], reader.sources()["fisher"][1]):
        row, (wav_CS, _) = reader.rows[i], reader.audio(i)
        codes_QT, voice_QP = reader.codes(i)
        agent, user = wav_CS if row.side == "left" else wav_CS[::-1]
        voice = loudness_normalise(*reader.voice_clip(i))[0]
        for wav_S, stored in ((agent, codes_QT[:8]), (user, codes_QT[8:]), (voice, voice_QP)):
            wav_S = torch.from_numpy(np.pad(wav_S, (0, -len(wav_S) % 1920)))
            state = mimi.init_encoder_state(1)
            frames = [mimi.encode_frame(state, frame[None, None]) for frame in wav_S.split(1920)]
            assert torch.equal(torch.cat(frames, dim=2)[0], stored)


def test_the_manifest_names_voices_engines_gates_and_packages(tmp_path):
    for n, (id, split) in enumerate([("a", "train"), ("b", "train"), ("c", "heldout")]):
        meta = write_dialogue(tmp_path / "d", id, split=split, agents=("left", "right") if id == "b" else ("left",))
        record = json.loads((meta / "meta.json").read_text())
        record["provenance"] = {
            "engine": {"name": "tone", "version": "1.2", "model_sha256": "0123456789abcdef"},
            "word_times": "ruler 3",
            "script": {"seed": n, "llm": {"name": "openai", "model": "big-llm"}},
        }
        (meta / "meta.json").write_text(json.dumps(record))
    engines = {"asr": {"name": "ear", "version": "7"}}
    gates = {"format": 1, "values": {"wer": 0.1}, "rejected": [], "limits": {"wer": 0.15}, "engines": engines}
    (tmp_path / "d" / "a" / "gates.json").write_text(json.dumps(gates))
    manifest = build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest["voices"] == {
        "train": {"agent": {"tiny/left": 2, "tiny/right": 1}, "user": {"tiny/right": 1}},
        "heldout": {"agent": {"tiny/left": 1}, "user": {"tiny/right": 1}},
    }
    assert manifest["engines"] == {
        "engine: tone 1.2 0123456789ab": 3, "word_times: ruler 3": 3, "llm: openai big-llm": 3, "asr: ear 7": 1
    }  # fmt: skip
    assert manifest["gates"] == {'{"wer": 0.15}': 1}
    assert manifest["packages"]["torch"] == torch.__version__


def test_plain_webdataset_reads_the_shards(corpus, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    tars = [str(path) for path in sorted((tmp_path / "out" / "train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [f"qa-{n}" for n in range(2)] + [f"call-{n}" for n in range(2)] + [
        f"service-{n}" for n in range(4)
    ]
    assert samples[0]["codes.npy"].shape == (16, 50) and samples[0]["codes.npy"].dtype == np.int16
    assert samples[3]["meta.json"]["id"] == "call-1" and "right.voice.npy" in samples[3]


HF = """
import sys
from datasets import Features, Json, List, Value, load_dataset
codes = List(List(Value("int16")))
features = Features({
    "__key__": Value("string"), "__url__": Value("string"), "meta.json": Json(), "codes.npy": codes,
    "audio.flac": Value("binary"),
    "left.voice.flac": Value("binary"), "left.voice.npy": codes, "left.text.json": Json(),
    "right.voice.flac": Value("binary"), "right.voice.npy": codes, "right.text.json": Json()})
for streaming in (False, True):
    data = load_dataset("webdataset", data_files=sys.argv[1] + "/*.tar", features=features, split="train",
                        streaming=streaming, cache_dir=sys.argv[2])
    rows = list(data)
    print(*(row["__key__"] for row in rows))
    assert all(len(row["codes.npy"]) == 16 and row["meta.json"]["id"] == row["__key__"] for row in rows)
"""


def test_hugging_face_datasets_read_the_shards(corpus, tmp_path):
    pytest.importorskip("datasets")
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    args = [str(tmp_path / "out" / "train"), str(tmp_path / "cache")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", HF, *args], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    expected = "qa-0 qa-1 call-0 call-1 service-0 service-1 service-2 service-3"
    assert done.stdout.splitlines() == [expected, expected]


def test_a_file_of_the_user_in_an_unfinished_run_is_never_deleted(corpus, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "make_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_shards(corpus, TinyCodec(), tmp_path / "out")
    for name in ("notes.txt", "mine-00000.tar"):
        mine = tmp_path / "out" / "train" / name
        mine.write_text("keep me")
        with pytest.raises(UserError, match=f"{name}: was not written by"):
            build_shards(corpus, TinyCodec(), tmp_path / "out")
        assert mine.read_text() == "keep me"
        mine.unlink()
    build_shards(corpus, TinyCodec(), tmp_path / "out")


@pytest.mark.parametrize("key", ["codec", "content", "shards", "inputs"])
def test_a_manifest_without_a_key_is_named(corpus, tmp_path, key):
    build_shards(corpus, TinyCodec(), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in facts.items() if name != key}))
    with pytest.raises(UserError, match=f"damaged, {key} is missing"):
        read_manifest(tmp_path / "out")
    path.write_text(json.dumps(facts | {"content": {"train": {"fisher": 3}}}))
    with pytest.raises(UserError, match="damaged, content.train.fisher is 3, it should be an object: make"):
        read_manifest(tmp_path / "out")
