"""kill -9 at any moment of any stage, and the same command again: the files of an undisturbed run."""

import pytest

from tests.data_pipelines.kill import kill_everywhere
from tests.data_pipelines.tiny_dialogues import write_dialogue
from tests.ppx_train.fixtures import make_codec


@pytest.fixture
def before(tmp_path):
    (tmp_path / "before").mkdir()
    return tmp_path / "before"


def test_synth(before, tmp_path):
    kill_everywhere(tmp_path, ["synth", "service", "--num", "5", "--out", "out/scripts.jsonl"])


def test_shard(before, tmp_path):
    for n in range(3):
        write_dialogue(before / "dialogues", f"call-{n}", agents=("left", "right"), split="heldout" if n else "train")
    make_codec(before / "codec.safetensors")
    argv = ["shard", "--dialogues", "dialogues", "--codec", "codec.safetensors", "--out", "shards"]
    assert kill_everywhere(tmp_path, argv, most=16) > 20
