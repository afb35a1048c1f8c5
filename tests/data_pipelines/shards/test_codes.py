"""Stored codes against the real Mimi, whole and frame by frame, by the verb and its options."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data_pipelines import verbs
from data_pipelines.shards.codec import SharedCodec
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.sound.audio import loudness_normalise
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.mimi.files import save_mimi
from model.weights.sources import codec_path
from tests.data_pipelines.tiny_dialogues import write_corpus
from tests.paths import GOLDEN
from tests.refusals import refused

MIMI = GOLDEN / "mimi_small.safetensors"


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Five service, three assistant and two two-sided calls."""
    return write_corpus(tmp_path / "dialogues")


@pytest.fixture
def mimi() -> Mimi:
    """The small Mimi of the reference vectors."""
    tensors = load_file(MIMI)
    with safe_open(MIMI, framework="pt") as file:
        codec = Mimi(MimiConfig.from_json(file.metadata()["config"]))
    codec.load_state_dict({name[8:]: tensors[name] for name in tensors if name.startswith("weights.")})
    return codec.eval()


def test_the_shard_verb_stores_what_mimi_gives_for_each_channel(
    corpus: list[Path], tmp_path: Path, mimi: Mimi, capsys: pytest.CaptureFixture[str]
) -> None:
    save_mimi(mimi, tmp_path / "codec")
    argv = ["--dialogues", *map(str, corpus), "--codec", str(tmp_path / "codec"), "--out", str(tmp_path / "out")]
    verbs.main(["shard", *argv])
    reader = ShardReader(tmp_path / "out" / "train")
    wav_CS = torch.from_numpy(reader.audio(4)[0])
    left, right = (mimi.encode(wav_CS[None, n : n + 1])[0] for n in (0, 1))
    assert not torch.equal(left, right)
    assert torch.equal(reader.read(4).codes_QT, torch.cat([left, right]))
    assert torch.equal(reader.read(5).codes_QT, torch.cat([right, left]))
    assert read_manifest(tmp_path / "out").codec.fingerprint == mimi.fingerprint()
    verbs.main(["check", str(tmp_path / "out"), "--codec", str(tmp_path / "codec"), "--codec-samples", "2"])
    assert "train: good" in capsys.readouterr().out
    with refused("bad-combination", "--device cuda", "--gpus 0", "add --gpus"):
        verbs.main(["shard", *argv, "--device", "cuda", "--executor", "ray"])
    with refused("bad-combination", "--device cpu", "--gpus 1", "add --device cuda"):
        verbs.main(["shard", *argv, "--gpus", "1", "--executor", "ray"])
    with refused("no-device", "'tpu9'"):
        verbs.main(["shard", *argv, "--device", "tpu9"])


def test_stored_codes_are_those_that_the_streaming_runtime_makes_frame_by_frame(
    corpus: list[Path], tmp_path: Path, mimi: Mimi
) -> None:
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


def test_a_device_that_fails_is_not_the_fault_of_a_dialogue(corpus: list[Path], tmp_path: Path) -> None:
    broken = SharedCodec(codec_path("small"), "tpu9")
    with refused("no-device", "'tpu9'"):
        build_shards(corpus, broken, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
