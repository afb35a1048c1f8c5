"""A disk that is really full: a small file system in memory, which only this test sees."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines import verbs
from tests.data_pipelines.kill import tree
from tests.data_pipelines.tiny_dialogues import write_dialogue
from tests.paths import ROOT
from tests.ppx_train.fixtures import make_codec

SCRIPT = """
set -e
mount -t tmpfs -o size=24k none disk
set +e
"$@" --workers 2 2> errors.txt; echo $? > code.txt
set -e
find disk -name '*.part' > halves.txt
mount -o remount,size=64m disk
"$@"
cp -r disk/out out
"""
RUN = "from ppx_train.cli.data import main\nif __name__ == '__main__':\n    main()\n"


def may_mount() -> bool:
    done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(shutil.which("unshare") is None or not may_mount(), reason="needs a kernel that lets us mount")
def test_one_line_says_that_the_disk_is_full_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        write_dialogue(tmp_path / "dialogues", f"call-{n}", seconds=2, split="heldout" if n < 2 else "train")
    make_codec(tmp_path / "codec.safetensors")
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.py").write_text(RUN)
    verb = ["shard", "--dialogues", "dialogues", "--codec", "codec.safetensors", "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run.py", *verb, "disk/out"]
    mounted = ["unshare", "-rm", "bash", "-c", SCRIPT, "bash", *command]
    done = subprocess.run(mounted, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    errors = (tmp_path / "errors.txt").read_text().splitlines()
    message = r"error: no space left on the disk while writing disk/out/\.work/\S+: free some and run it again"
    assert re.fullmatch(message, errors[-1]) and "Traceback" not in " ".join(errors)
    assert (tmp_path / "code.txt").read_text() == "1\n" and not (tmp_path / "halves.txt").read_text()
    monkeypatch.chdir(tmp_path)
    verbs.main([*verb, "whole"])
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
