"""The whole path with the real commands, small: scripts -> speech -> shards -> training -> export -> chat."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ppx_train.training.curves import read_metrics
from tests.paths import ROOT


def call(folder: Path, command: str, *arguments: str) -> str:
    """One command in its own process, in `folder`. Returns what it printed; fails the test if it failed."""
    program = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv[0] = 'ppx-{command}'; "
    program += f"from ppx_train.cli.{command} import main; main()"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_from_text_to_a_conversation(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    call(tmp_path, "data", "synth", "service", "--num", "6", "--max-seconds", "24", "--out", "service.jsonl")
    call(tmp_path, "data", "synth", "assistant", "--num", "3", "--max-seconds", "25", "--out", "assistant.jsonl")
    call(tmp_path, "data", "tokenizer", "--vocab", "1000", "--out", "tokenizer.model")
    for source in ("service", "assistant"):
        speak = ("--scripts", f"{source}.jsonl", "--engine", "espeak", "--out", f"dialogues/{source}")
        call(tmp_path, "data", "speak", *speak, "--workers", "2", "--voice-seconds", "3.2")
    dialogues = ("dialogues/service", "dialogues/assistant")
    call(tmp_path, "data", "shard", "--dialogues", *dialogues, "--codec", "small", "--out", "shards")
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text("utf-8"))
    assert manifest["content"]["train"]["service"]["dialogues"] > 0
    assert manifest["content"]["heldout"]["service"]["dialogues"] > 0
    call(tmp_path, "data", "report", "shards", "--out", "report.html")

    train = ["recipe=quickstart", "run_dir=run", "data.paths=[shards]", "model.tokenizer=tokenizer.model"]
    train += ["data.mix={service: 2, assistant: 1, fisher: 0}", "model.lm.dim=64", "model.lm.num_layers=2"]
    train += ["model.lm.depformer_dim=32", "model.lm.depformer_dim_feedforward=132", "trainer.devices=1"]
    train += ["steps=20", "optim.warmup_steps=4", "trainer.heldout_every=20", "data.batch=4"]
    call(tmp_path, "train", *train)
    losses = read_metrics(tmp_path / "run")
    for stream in ("text", "semantic", "acoustic", "user_semantic"):
        before, after = (value for _, value in losses[f"heldout/{stream}_loss"])
        assert after < before, stream

    call(tmp_path, "export", "--checkpoint", "run", "--out", "model")
    call(tmp_path, "data", "extract", "shards/heldout", "--source", "service", "--out", "caller")
    role = (tmp_path / "caller" / "role.txt").read_text("utf-8")
    chat = ["--model", "model", "--input-wav", "caller/user.flac", "--text-prompt", role, "--seed", "3"]
    chat += ["--voice-prompt", "caller/voice.flac"]
    for name in ("first", "second"):
        call(tmp_path, "chat", *chat, "--output-wav", f"{name}.wav", "--output-text", f"{name}.json")
    user, rate = soundfile.read(tmp_path / "caller" / "user.flac")
    agent, agent_rate = soundfile.read(tmp_path / "first.wav")
    assert (rate, agent_rate) == (24000, 24000)
    assert len(agent) == len(user)
    assert np.isfinite(agent).all()
    pieces = json.loads((tmp_path / "first.json").read_text("utf-8"))
    assert len(pieces) == -(-len(user) // 1920)
    assert (tmp_path / "first.wav").read_bytes() == (tmp_path / "second.wav").read_bytes()
    assert (tmp_path / "first.png").stat().st_size > 20_000
