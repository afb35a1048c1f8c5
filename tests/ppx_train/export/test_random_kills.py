"""`ppx-export` that is killed at random moments: no folder, or a whole one, and the next run needs no clearing up."""

import shutil
from pathlib import Path

import pytest

from ppx_train.cli import export
from tests.data_pipelines.kill import tree
from tests.ppx_train.fixtures import make_shards, write_checkpoint
from tests.random_kills import KILLS, kill_some_time, moments, start

SHAPE = ("model.lm.dim=256", "model.lm.num_layers=6")
"""A few million weights: writing and hashing them takes a while in which a kill may fall."""


@pytest.mark.slow
def test_a_folder_is_whole_or_not_there_however_often_its_export_was_killed(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    make_shards(data, dialogues=6)
    write_checkpoint(data, tmp_path / "run", 3, *SHAPE)
    words = ["--checkpoint", str(tmp_path / "run"), "--dtype", "fp32", "--out"]
    export.command([*words, str(out)])
    whole = tree(out)
    shutil.rmtree(out)
    inside = sorted(path.name for path in tmp_path.iterdir())

    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir() if path.name not in inside)

    def state() -> tuple[bool, int]:
        """Whether the folder is there, and when the one was begun that is being written; 0 without one."""
        return out.exists(), fresh.stat().st_ctime_ns if fresh.exists() else 0

    fresh = tmp_path / ".out.part" / "new"
    draw, kills = moments(), 0
    while kills < KILLS:
        was_killed = kill_some_time(start("export", [*words, str(out)]), state, draw, 0.3)
        kills += was_killed
        print("killed:" if was_killed else "ended:", left(), *sorted(path.name for path in fresh.glob("*")))
        assert set(left()) <= {"out", ".out.part"}
        if out.exists():  # As the option says, a folder that is there is never touched.
            assert tree(out) == whole
            shutil.rmtree(out)
    process = start("export", [*words, str(out)])
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    assert tree(out) == whole and left() == ["out"]
