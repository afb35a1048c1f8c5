"""A disk that is really full, for all that writes much: one line with the path, nothing half done, and on it goes.

`PPX_DISK_TABLE=FILE pytest tests/test_full_disks.py` also writes the table of docs/how-to/scale.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data_pipelines.recordings.imports import both_sides
from tests.data_pipelines.test_full_disk import may_mount
from tests.data_pipelines.tiny_recordings import conversation, write_wav
from tests.paths import ROOT
from tests.ppx_train.fixtures import make_shards, run_arguments, write_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("unshare") is None or not may_mount(), reason="needs a kernel that lets us mount"),
]
CASES = ("train", "shard", "import", "to-moshi", "to-hf", "export")
SHARES = (0.3, 0.85)
"""Sizes of the disk, as shares of what a run writes that has room."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to each command (tests.full_disk)."""
    own = tmp_path_factory.mktemp("own")
    disk = own / "disk"
    disk.mkdir()
    make_shards(own, dialogues=6)
    write_checkpoint(own, own / "run", 3)
    audio, words = conversation(40.0)
    for name in ("one", "two", "three"):
        write_wav(own / f"talks/{name}.flac", audio)
        (own / f"talks/{name}.json").write_bytes(both_sides(words))
    often = ("steps=4", "trainer.checkpoint_every=1", "data.heldout_samples=0", "data.batch=2", "resume=true")
    words_of = {
        "train": ("train", run_arguments(own, disk / "run", *often)),
        "shard": ("data", ["shard", "--dialogues", str(own / "dialogues"), "--codec", str(own / "codec.safetensors")]),
        "import": ("data", ["import", "subtitles", str(own / "talks"), "--source", "talks", "--licence", "CC BY 4.0",
                            "--agent", "both"]),
        "to-moshi": ("data", ["to-moshi", str(own / "shards")]),
        "to-hf": ("data", ["to-hf", str(own / "shards"), "--file-mb", "1"]),
        "export": ("export", ["--checkpoint", str(own / "run"), "--include-voices", "none"]),
    }  # fmt: skip
    cases = {
        name: {
            "command": command,
            "words": words if name == "train" else [*words, "--out", str(disk / "out")],
            "shares": SHARES,
        }
        for name, (command, words) in words_of.items()
    }
    (own / "spec.json").write_text(json.dumps({"disk": str(disk), "cases": cases}))
    command = ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", str(own / "spec.json"), str(own / "result")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads((own / "result").read_text())
    if os.environ.get("PPX_DISK_TABLE"):
        Path(os.environ["PPX_DISK_TABLE"]).write_text(json.dumps(result, indent=1).replace(str(own), "OWN"))
    return result


def kept(tree: dict[str, str]) -> dict[str, str]:
    """What has to be the same in the end: of a run the weights, as logs begin anew with each start."""
    return {name: value for name, value in tree.items() if not name.startswith("run/") or name.endswith(".ckpt")}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", SHARES)
def test_one_line_says_where_nothing_is_half_done_and_the_same_command_goes_on(
    found: dict[str, Any], name: str, share: float
) -> None:
    whole, one = found[name], found[name][str(share)]
    assert whole["whole"]["code"] == 0, whole["whole"]["errors"]
    message = r"error: no space left on the disk while writing \S+/disk/\S+: free some and run it again"
    errors = one["full"]["errors"]
    assert one["full"]["code"] == 1 and re.fullmatch(message, errors.splitlines()[-1]), errors
    assert "Traceback" not in errors
    assert not [path for path in one["left"] if re.search(r"\.part\b|\.partial\b|\.tmp|\.lock", path)], one["left"]
    # What has its final name is what a run that has room writes there.
    changed = {path for path, value in kept(one["left"]).items() if whole["tree"].get(path, value) != value}
    assert not changed
    assert one["again"]["code"] == 0, one["again"]["errors"]
    assert kept(one["tree"]) == kept(whole["tree"])
