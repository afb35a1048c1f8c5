"""`ppx-train check`: all checks in turn, and what was measured against what was planned."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_pipelines.files import json_bytes
from model.errors import UserError
from model.files import write_bytes
from ppx_train.checking.compare import check_devices, check_fast_paths, check_streaming
from ppx_train.checking.data import check_data
from ppx_train.checking.report import device_facts, report
from ppx_train.checking.result import CheckResult
from ppx_train.checking.steps import check_steps
from ppx_train.config.run import Run
from ppx_train.planning.gpus import gpu_of
from ppx_train.planning.plan import gigabytes, table
from ppx_train.planning.speed import step_time
from ppx_train.training.build import empty_lm
from ppx_train.training.memory import OUTSIDE, rank_memory
from ppx_train.training.run import check_device, prepare_process

WORDS = {True: "ok", False: "FAILED", None: "-"}


def check(run: Run, steps: int, out: Path) -> int:
    """Makes all checks, prints them, writes the report, and returns 0 if none failed, else 1.

    Nothing is written to the run's own folder.
    Raises: UserError if the report is there already, or the command was started as one of several processes.
    """
    refuse_misuse(run, steps, out)
    device = torch.device("cuda" if run.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    results = [shown(check_data(run))]
    if results[0].passed:
        results.append(shown(check_steps(run, steps)))
    else:
        results.append(shown(CheckResult(name="steps", passed=None, line="not taken, since the data is not good")))
    prepare_process(run)
    results += [shown(compared(run, device)) for compared in (check_fast_paths, check_streaming, check_devices)]
    planned: dict[str, Any] = {}
    if results[1].passed:
        planned = planned_figures(run, device, results[1].figures)
        print()
        print("\n".join(comparison(run, results[1].figures, planned)))
        results.append(shown(check_memory(device, results[1].figures, planned)))
    write_bytes(out, json_bytes(report(run, device, results, planned)))
    failed = [result.name for result in results if result.passed is False]
    print(f"\nreport: {out} (no paths or names in it)")
    print(f"failed: {', '.join(failed)}" if failed else "all good")
    return 1 if failed else 0


def refuse_misuse(run: Run, steps: int, out: Path) -> None:
    """Raises UserError for what is no use of the command."""
    if out.exists():
        raise UserError(f"{out} exists: move it, or give another --out", code="exists")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"--out {out}: its folder cannot be written, or is not there", code="cannot-write")
    if steps < 2:
        raise UserError(f"--steps {steps}: give 2 or more, the first one is not timed", code="bad-value")
    if "RANK" in os.environ or run.trainer.num_nodes > 1:
        raise UserError(
            "check is for one machine, and starts its processes itself: run it without a launcher, with "
            "trainer.num_nodes=1",
            code="bad-combination",
        )
    check_device(run.trainer.accelerator)


def shown(result: CheckResult) -> CheckResult:
    """Prints a result, and returns it."""
    print(f"{result.name:12} {WORDS[result.passed]:7} {result.line}", flush=True)
    return result


def planned_figures(run: Run, device: torch.device, measured: dict[str, Any]) -> dict[str, Any]:
    """Returns what the plan says for the frames that were measured: bytes of a rank, and seconds if the GPU is known.

    For a CPU there is no plan.
    """
    if device.type == "cpu":
        return {}
    lm, facts = empty_lm(run), device_facts(device)
    gpu = gpu_of(facts["name"], facts["memory_bytes"])
    frames = measured["frames_per_second"] * measured["seconds"] / run.data.batch
    seconds = step_time(run, lm, gpu, max(1.0, frames)).total if gpu else None
    return {"gpu": gpu.name if gpu else None, "peak_memory_bytes": rank_memory(run, lm).total, "seconds": seconds}


def comparison(run: Run, measured: dict[str, Any], planned: dict[str, Any]) -> Iterator[str]:
    """Yields a table of measured figures beside planned ones."""
    seconds, plan_seconds = measured["seconds"], planned.get("seconds")
    plan_memory = planned.get("peak_memory_bytes")
    hours = run.steps / 3600
    yield from table(
        [
            ["", "measured", "planned"],
            [
                "peak memory, GB",
                gigabytes(measured["peak_memory_bytes"]),
                gigabytes(plan_memory) if plan_memory else "",
            ],
            ["seconds a step", f"{seconds:.3g}", f"{plan_seconds:.3g}" if plan_seconds else ""],
            [
                f"hours for {run.steps:,} steps",
                f"{seconds * hours:,.2f}",
                f"{plan_seconds * hours:,.2f}" if plan_seconds else "",
            ],
            ["frames/s", f"{measured['frames_per_second']:,.0f}", ""],
            ["loader wait", f"{measured['loader_wait_share']:.1%}", "under 2 %"],
            ["MFU", f"{measured['mfu']:.0%}" if measured["mfu"] is not None else "", ""],
        ]
    )
    if plan_memory:
        yield "  planned memory is that of the longest sequences, without what lies outside of tensors"
    elif not planned:
        yield "  memory and time are not planned for a CPU; memory is that of a whole process"


def check_memory(device: torch.device, measured: dict[str, Any], planned: dict[str, Any]) -> CheckResult:
    """Compares the peak of the steps with the plan, which is for the longest sequences, and so may not be exceeded."""
    if device.type == "cpu":
        return CheckResult(name="memory", passed=None, line="not planned for a CPU")
    peak, plan = measured["peak_memory_bytes"], planned["peak_memory_bytes"]
    figures = {"measured_bytes": peak, "planned_bytes": plan}
    if peak > 1.05 * plan + OUTSIDE:
        line = f"{gigabytes(peak)} GB were taken, {gigabytes(plan)} GB are planned: please report it"
        return CheckResult(name="memory", passed=False, line=line, figures=figures)
    return CheckResult(name="memory", passed=True, line="within what is planned", figures=figures)
