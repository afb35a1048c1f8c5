"""kill -9 or a full disk at any moment of any stage, then the same command again: the files of an undisturbed run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines import verbs
from data_pipelines.recordings.fisher import importer, placed
from data_pipelines.shards.encode import build_shards
from data_pipelines.writer.synth import write_scripts
from tests.data_pipelines.execution.test_executor import wait_for
from tests.data_pipelines.kill import kill_everywhere, tree
from tests.data_pipelines.recordings.fisher.calls import FakeAligner, talk, write_call, write_tables
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue
from tests.paths import ROOT
from tests.ppx_train.fixtures import make_codec


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The folder that every run starts with a copy of."""
    (tmp_path / "before").mkdir()
    return tmp_path / "before"


def test_synth(before: Path, tmp_path: Path) -> None:
    kill_everywhere(tmp_path, ["synth", "service", "--num", "5", "--out", "out/scripts.jsonl"])


def test_speak(before: Path, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    scripts = write_scripts("service", num=3, seed=1, max_seconds=20)
    (before / "scripts.jsonl").write_text("".join(script.to_json() + "\n" for script in scripts))
    argv = ["speak", "--scripts", "scripts.jsonl", "--engine", "espeak", "--voice-seconds", "3.2", "--out", "out"]
    assert kill_everywhere(tmp_path, argv) > 15


def use_fake_aligner() -> None:
    """Puts a fast aligner in the place of the real one."""
    aligner = FakeAligner()
    placed.shared_aligner = importer.shared_aligner = lambda: aligner  # type: ignore[assignment]


def test_fisher(before: Path, tmp_path: Path) -> None:
    pytest.importorskip("desphere_native")
    for name in ("00001", "00002"):
        write_call(before / "corpus", name, talk(40), 40)
    write_call(before / "corpus", "00003", talk(4), 4)
    write_tables(before / "corpus")
    argv = ["fisher", "--corpus", "corpus", "--max-seconds", "25", "--out", "out"]
    assert kill_everywhere(tmp_path, argv, setup="tests.data_pipelines.test_stops:use_fake_aligner") > 15


def test_shard(before: Path, tmp_path: Path) -> None:
    for n in range(2):
        write_dialogue(before / "dialogues", f"call-{n}", agents=("left", "right"), split="heldout" if n else "train")
    make_codec(before / "codec.safetensors")
    argv = ["shard", "--dialogues", "dialogues", "--codec", "codec.safetensors", "--out", "shards"]
    assert kill_everywhere(tmp_path, argv) > 20


def test_index(before: Path, tmp_path: Path) -> None:
    for n in range(2):
        write_dialogue(before / "dialogues", f"call-{n}", split="heldout" if n else "train")
    build_shards([before / "dialogues"], TinyCodec(), before / "shards")
    for path in before.glob("shards/*/index*"):
        path.unlink()
    assert kill_everywhere(tmp_path, ["index", "shards"]) > 1


def test_gate(before: Path, tmp_path: Path) -> None:
    for n in range(2):
        write_dialogue(before / "dialogues", f"call-{n}", split="heldout" if n else "train")
    argv = ["gate", "--dialogues", "dialogues", "--asr", "none", "--speaker", "none", "--out", "gate"]
    argv += ["--set", "swap_ratio=null", "--set", "agent_seconds=0"]
    assert kill_everywhere(tmp_path, argv) > 8


def test_tokenizer(before: Path, tmp_path: Path) -> None:
    scripts = write_scripts("service", num=20, seed=1)
    (before / "scripts.jsonl").write_text("".join(script.to_json() + "\n" for script in scripts))
    argv = ["tokenizer", "--scripts", "scripts.jsonl", "--vocab", "400", "--out", "text.model"]
    assert kill_everywhere(tmp_path, argv, most=4) > 1


def test_speak_on_two_workers_whose_command_is_killed(tmp_path: Path) -> None:
    """The command alone is killed: its workers must not go on beside the next run."""
    pytest.importorskip("espeakng_loader")
    scripts = write_scripts("service", num=8, seed=1)
    (tmp_path / "scripts.jsonl").write_text("".join(script.to_json() + "\n" for script in scripts))
    (tmp_path / "run.py").write_text("from ppx_train.cli.data import main\nif __name__ == '__main__':\n    main()\n")
    argv = ["speak", "--scripts", str(tmp_path / "scripts.jsonl"), "--engine", "espeak", "--out"]
    command = [sys.executable, str(tmp_path / "run.py"), *argv, str(tmp_path / "out"), "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("out/*/meta.json")))
    run.kill()
    assert run.wait() == -signal.SIGKILL and len(list(tmp_path.glob("out/*/meta.json"))) < 8
    subprocess.run(command, env=environment, check=True)
    verbs.main([*argv, str(tmp_path / "whole")])
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
