"""Runs a dry step in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.dry_run.fake_gpu import environment
from tests.paths import ROOT

NAMES = (
    "mix_real_synth, 8 ranks",
    "mix_real_synth_4gpu, 2 passes",
    "mix_real_synth_2nodes",
    "lora_voice",
    "lora_voice, int8 base",
    "lora_voice_24gb",
    "streaming, 1 call",
    "streaming, 32 calls",
)


def run_dry(name: str, library: Path) -> dict[str, Any]:
    """The figures of one case; library: the guard that `build` compiled.

    Raises: RuntimeError with what the process said if it fails.
    """
    command = [sys.executable, "-m", "tests.dry_run.cases", name]
    done = subprocess.run(command, cwd=ROOT, env=environment(library), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
