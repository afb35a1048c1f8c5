"""`ppx-data shard` that is killed with its workers at random moments: the shards of a run that never was."""

import shutil
from pathlib import Path

import pytest

from data_pipelines import verbs
from data_pipelines.shards.encode import build_shards
from model.files import LOCK
from tests.data_pipelines.kill import tree
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue
from tests.ppx_train.fixtures import make_codec
from tests.random_kills import KILLS, kill_some_time, moments, start


@pytest.mark.slow
def test_shards_are_the_same_however_often_all_processes_were_killed(tmp_path: Path) -> None:
    for n in range(18):
        split = "heldout" if n % 6 == 0 else "train"
        write_dialogue(tmp_path / "dialogues", f"call-{n:02d}", seconds=6.0, split=split, source=("a", "b")[n % 2])
    codec = make_codec(tmp_path / "codec.safetensors")
    words = ["shard", "--dialogues", str(tmp_path / "dialogues"), "--codec", str(codec), "--shard-mb", "1"]
    verbs.main([*words, "--out", str(tmp_path / "whole")])
    whole, out = tree(tmp_path / "whole"), tmp_path / "out"
    assert len([name for name in whole if name.endswith(".tar")]) > 6
    run = [*words, "--workers", "2", "--out", str(out)]
    draw, kills = moments(), 0
    while kills < KILLS:
        if kill_some_time(start("data", run), lambda: len(list(out.glob("*/*"))), draw, 2.0):
            kills += 1
            print("killed with", len(list(out.glob(".work/*.npz"))), "encoded,", len(list(out.glob("*/*.tar"))), "tars")
            continue
        assert tree(out) == whole
        shutil.rmtree(out)  # It has ended between two kills: the next one starts anew.
    process = start("data", run)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    assert tree(out) == whole


def test_a_run_that_was_killed_when_all_was_written_leaves_its_lock_to_the_next(tmp_path: Path) -> None:
    write_dialogue(tmp_path / "dialogues", "call")
    build_shards([tmp_path / "dialogues"], TinyCodec(), tmp_path / "out")
    whole = tree(tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / LOCK).write_text("process 1 on another-machine")
    build_shards([tmp_path / "dialogues"], TinyCodec(), tmp_path / "out")
    assert tree(tmp_path / "out") == whole
