"""kill -9 of one rank, of all, and while a checkpoint is written: the run goes on from the last good checkpoint.

`PPX_KILLS=20 pytest -s tests/ppx_train/training/test_kills.py` kills twenty times and prints what happened.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppx_train.training import checkpoint_files
from ppx_train.training.checkpoint import check_sums, checkpoints, read_checkpoint
from ppx_train.training.saved_tensors import whole_tensors, write_tensors
from tests.paths import ROOT
from tests.ppx_train.fixtures import run_arguments
from tests.ppx_train.ranks import start_ranks, train_on_ranks
from tests.random_kills import KILLS, moments

pytestmark = pytest.mark.slow
RANKS, PATIENCE = 2, 600
STEPS = 4 * KILLS + 8
MORE = (f"steps={STEPS}", "optim.warmup_steps=1", "data.heldout_samples=0", "trainer.checkpoint_every=2",
        "trainer.keep_checkpoints=2", "trainer.precision=32-true", "trainer.strategy=fsdp2", "logging.samples=true",
        "resume=auto")  # fmt: skip
WAYS = ("one rank", "all ranks", "one rank while saving", "all ranks while saving")


def words(prepared: Path, run_dir: Path) -> list[str]:
    return [*run_arguments(prepared, run_dir, *MORE), f"trainer.devices={RANKS}"]


def lines(run_dir: Path, rank: int) -> list[dict[str, Any]]:
    """The log of samples of a rank."""
    path = run_dir / "logs" / f"samples.rank{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(run_dir: Path) -> int:
    """The step of the last good checkpoint; 0 without one."""
    found = checkpoints(run_dir)
    return int(found[-1].name[5:]) if found else 0


def wait_for(what: Callable[[], bool], alive: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while alive() and not what():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.005)


def slow_disk(path: Path, parts: Any) -> str:
    """Half of a file lies there for a while before it is written whole."""
    path.write_bytes(b"half")
    time.sleep(0.3)
    return write_tensors(path, parts)


def test_no_kill_loses_or_repeats_a_sample(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "write_tensors", slow_disk)  # The ranks are forked.
    train_on_ranks(RANKS, words(prepared, tmp_path / "whole"), tmp_path / "log")
    run_dir, draw, told = tmp_path / "run", moments(), Counter[str]()
    resumed: list[tuple[int, list[int]]] = []
    """After each kill: the step of the last good checkpoint, and how many lines each rank had written."""
    for number in range(KILLS):
        way = WAYS[number % len(WAYS)] if len(WAYS) <= KILLS else draw.choice(WAYS[number % 2 :: 2])
        before = len(lines(run_dir, 0))
        ranks = [process for process, _ in start_ranks(RANKS, words(prepared, run_dir), tmp_path / "log")]
        victims = [draw.choice(ranks)] if way.startswith("one") else ranks
        steps, rest = draw.randrange(8), draw.random() * 0.2

        def alive(ranks: list[Any] = ranks) -> bool:
            return all(process.is_alive() for process in ranks)

        wait_for(lambda: len(lines(run_dir, 0)) > before + steps, alive)  # noqa: B023 - it is called at once
        if "saving" in way:
            wait_for(lambda: any(run_dir.glob("checkpoints/*.partial/tensors-*")), alive)
        time.sleep(rest)
        saving = any(run_dir.glob("checkpoints/*.partial"))
        for victim in victims:
            victim.kill()  # Nothing happens to one that has ended.
        for process in ranks:  # Those that were left end by themselves.
            process.join(PATIENCE)
            assert not process.is_alive()
        told[f"{way}{'' if saving == ('saving' in way) else ', saving' if saving else ', after it'}"] += 1
        good = newest(run_dir)
        if good:
            check_sums(checkpoints(run_dir)[-1])
        if good == STEPS:
            shutil.rmtree(checkpoints(run_dir)[-1])  # It was done; the next kill still finds work.
        resumed.append((newest(run_dir), [len(lines(run_dir, rank)) for rank in range(RANKS)]))
        at = max((line["step"] for line in lines(run_dir, 0)), default=0)
        print(f"kill {number + 1}: {way}, at step {at} at the most; the last good checkpoint is of {newest(run_dir)}")
    train_on_ranks(RANKS, words(prepared, run_dir), tmp_path / "log")
    print(dict(told), "batches computed again:", sum(len(lines(run_dir, rank)) - STEPS for rank in range(RANKS)))
    for rank in range(RANKS):
        expected = {line["batch"]: line for line in lines(tmp_path / "whole", rank)}
        assert [*expected] == list(range(1, STEPS + 1))
        found = lines(run_dir, rank)
        # Every batch was trained on, and one that came again after a kill was the same; its later line counts.
        assert {line["batch"] for line in found} == expected.keys()
        assert all(line == expected[line["batch"]] for line in found)
        # Each life goes on where a checkpoint ends, and leaves no batch out.
        begins = {written[rank]: good + 1 for good, written in resumed}
        for at, line in enumerate(found):
            assert line["batch"] == begins.get(at, found[at - 1]["batch"] + 1 if at else 1)
    ours, theirs = (whole_tensors(read_checkpoint(checkpoints(tmp_path / name)[-1])) for name in ("run", "whole"))
    assert int(ours["global_step"]) == STEPS
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert not list(run_dir.glob("checkpoints/*.partial"))


def test_a_rank_that_is_killed_is_named_and_ends_the_run(prepared: Path, tmp_path: Path) -> None:
    arguments = run_arguments(prepared, tmp_path / "run", "steps=100000", "data.heldout_samples=0")
    arguments = [*(word for word in arguments if "devices" not in word), "trainer.devices=2", "logging.samples=true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "ppx_train", *arguments], cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(lines(tmp_path / "run", 1)) > 1, lambda: process.poll() is None)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (child,) = (int(pid) for pid in children if b"ppx_train" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(child, signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE)
    # Either the first rank sees that the other has gone, or Lightning ends all, whichever comes first.
    assert process.returncode in (1, -signal.SIGKILL), stderr
    assert re.search(
        r"rank 1 of 2 has ended with signal 9|\[rank: 1\] Child process .* terminated with code -9", stderr
    )
