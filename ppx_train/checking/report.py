"""`device_report.json`: what a machine is and what was found on it, in a form that a user may send.

It names no paths, users, hosts, sources or samples.
"""

import platform
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch

from ppx_train import __version__
from ppx_train.checking.result import CheckResult
from ppx_train.config.run import Run
from ppx_train.recipes import recipe_names

VERSION = 1
"""Of the report's form: it grows when a field changes its meaning or goes."""


def report(run: Run, device: torch.device, results: list[CheckResult], planned: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of the report; docs/reference/device_report.md describes it."""
    return {
        "report": "ppx-train check",
        "version": VERSION,
        "software": software(),
        "device": device_facts(device),
        "settings": settings(run),
        "checks": {result.name: {"passed": result.passed, **result.figures} for result in results},
        "planned": planned,
    }


def software() -> dict[str, str | None]:
    """Returns the versions that results may depend on."""
    return {
        "ppx_train": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "lightning": lightning.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Returns what computes: kind, name, number, memory and driver."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return {
            "kind": "cuda",
            "name": facts.name,
            "count": torch.cuda.device_count(),
            "memory_bytes": facts.total_memory,
            "capability": f"{facts.major}.{facts.minor}",
            "driver": driver_version(),
        }
    return {
        "kind": "cpu",
        "name": processor(),
        "count": 1,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def driver_version() -> str | None:
    """Returns the version of NVIDIA's driver; None where its program is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None


def settings(run: Run) -> dict[str, Any]:
    """Returns the settings of a run that its speed and memory depend on; a recipe of one's own has no name."""
    model, data, trainer = run.model, run.data, run.trainer
    return {
        "recipe": run.recipe if run.recipe in recipe_names() else None,
        "processes": run.processes,
        "strategy": trainer.strategy,
        "precision": trainer.precision,
        "checkpointing": model.activation_checkpointing,
        "compile": model.compile,
        "lora_rank": model.lora.rank,
        "base": model.lora.base,
        "steps": run.steps,
        "batch": data.batch,
        "pass_frames": data.pass_frames,
        "max_frames": data.max_frames,
        "lm": asdict(model.lm),
    }
