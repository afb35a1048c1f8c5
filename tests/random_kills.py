"""kill -9 at random moments, as often as PPX_KILLS says; PPX_KILL_SEED chooses other moments."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from tests.paths import ROOT

KILLS = int(os.environ.get("PPX_KILLS", "2"))


def moments() -> random.Random:
    """Where the moments are drawn from."""
    return random.Random(int(os.environ.get("PPX_KILL_SEED", "1")))


def start(command: str, words: Sequence[str]) -> subprocess.Popen[str]:
    """A command of ppx_train.cli, such as "data", with its words, in a process group of its own."""
    main = f"from ppx_train.cli.{command} import main; main()"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", main, *words], env=environment, text=True, preexec_fn=os.setpgrp,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kill_some_time(
    process: subprocess.Popen[str], state: Callable[[], object], draw: random.Random, seconds: float
) -> bool:
    """Kills the process group up to `seconds` after its start, or after the `state` of its output first changes.

    Returns whether it was killed before it ended. Fails if it ends with an error.
    """
    before = state()
    if draw.random() < 0.8:  # The others die while they start.
        while process.poll() is None and state() == before:
            time.sleep(0.001)
    time.sleep(draw.random() * seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0
