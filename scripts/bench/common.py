"""What the benchmarks share: sizes, the machine's name and matrix-product peak, timing in turns, tables and JSON."""

import argparse
import ctypes
import gc
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model import devices
from model.config import LMConfig
from model.errors import UserError
from model.kernels.matmul import linear

SIZES = {
    "tiny": LMConfig(
        dim=256, num_heads=4, num_layers=4, text_card=1000, depformer_dim=128, depformer_num_heads=4,
        depformer_num_layers=2, depformer_dim_feedforward=528,
    ),
    "mid": LMConfig(
        dim=512, num_heads=8, num_layers=8, depformer_dim=256, depformer_num_heads=8, depformer_num_layers=4,
        depformer_dim_feedforward=1056,
    ),
    "7b": LMConfig(),
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def machine(device: str) -> str:
    """Name of the processor that does the work, with the versions that matter."""
    if device == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        name = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used"
        name += f", {torch.backends.cpu.get_cpu_capability()}"
    else:
        name = torch.cuda.get_device_name(device)
    return f"{name}, torch {torch.__version__}"


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Ends the benchmark with one line if the device cannot be used."""
    try:
        devices.check_device(device)
    except UserError as why:
        parser.error(str(why))


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def clock(device: str) -> Callable[[], float]:
    """CPU time with one thread, since other programs hardly change it; wall time otherwise."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def in_turns(work: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each round of each piece of work, run in turns after one warm-up each."""
    now = clock(device)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(-1, rounds):
        for name, call in work.items():
            synchronise(device)
            start = now()
            call()
            synchronise(device)
            if round_number >= 0:
                seconds[name].append(now() - start)
    return seconds


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that `call` needs beyond what was held before it: allocated on a GPU, resident on Linux with a CPU."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the best of a few square matrix products: the yardstick of what this machine can do."""
    size, best = (1024 if device == "cpu" else 8192), 0.0
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    kernels: dict[str, Callable[[], Any]] = {"matmul": lambda: a @ b}
    if device == "cpu":
        kernels["linear"] = lambda: linear(a, b)
    for times in in_turns(kernels, 8, device).values():
        best = max(best, 2 * size**3 / min(times))
    return best


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; the keys of the first row are the columns."""
    heads = list(rows[0])
    cells = [[_cell(row.get(head, "")) for head in heads] for row in rows]
    widths = [max(len(head), *(len(line[i]) for line in cells)) for i, head in enumerate(heads)]
    lines = [heads, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else (
        f"{value:,.0f}" if isinstance(value, float) else str(value)
    )  # fmt: skip


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Writes the figures, if a path was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"figures: {path}")
