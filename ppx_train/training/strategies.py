"""Which ranks hold what: the strategy of a run, chosen, checked and made."""

import os
from dataclasses import replace
from typing import Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from model.errors import UserError
from ppx_train.config.load import Job
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP, ZERO
from ppx_train.training import zero
from ppx_train.training.build import empty_lm
from ppx_train.training.memory import OUTSIDE, rank_memory
from ppx_train.training.ranks import is_launcher
from ppx_train.training.sharded import ShardedStrategy


def checked_strategy(run: Run) -> Run:
    """Returns the run with `auto` resolved, after a line that says why.

    Raises: UserError if processes were not started as the settings say, or the strategy cannot run here.
    """
    check_processes(run.processes)
    if run.trainer.strategy == "auto":
        strategy, why = chosen(run)
        if is_launcher():
            print(f"trainer.strategy=auto: {strategy}, because {why}")
        run = replace(run, trainer=replace(run.trainer, strategy=strategy))
    if run.trainer.strategy in ZERO:
        zero.ZeroStrategy.check_device(run.trainer.accelerator)
    return run


def check_processes(expected: int) -> None:
    """Raises UserError if a launcher started another number of processes than devices x nodes."""
    for launcher, name in (("the launcher", "WORLD_SIZE"), ("srun", "SLURM_NTASKS")):
        # Inside salloc or a notebook there is a number of tasks, but nobody has started them.
        started = os.environ.get(name) if name in os.environ and _is_one_of_many(name) else None
        if started and int(started) != expected:
            raise UserError(
                f"{launcher} started {started} processes ({name}), but trainer.devices x trainer.num_nodes is "
                f"{expected}: make them equal",
                code="bad-combination",
            )


def _is_one_of_many(name: str) -> bool:
    return "SLURM_STEP_ID" in os.environ if name.startswith("SLURM") else "RANK" in os.environ


def chosen(run: Run) -> tuple[Literal["ddp", "fsdp2"], str]:
    """Returns ddp or fsdp2 for `run`, and the reason in words."""
    if run.processes == 1:
        return "ddp", "one process needs no exchange"
    if run.model.lora.base != "full":
        return "ddp", f"model.lora.base={run.model.lora.base} cannot be sharded"
    needed, there = copy_bytes(run), memory_bytes(run)
    shown = f"ddp takes {needed / 1e9:.1f} GB of {there / 1e9:.1f} GB for each process"
    return ("ddp", shown) if needed <= there else ("fsdp2", shown)


def copy_bytes(run: Run) -> float:
    """Returns the bytes that each process takes when it holds a whole copy, see `rank_memory`."""
    whole = replace(run, trainer=replace(run.trainer, strategy="ddp"))
    return rank_memory(whole, empty_lm(whole)).total + (0.0 if run.trainer.accelerator == "cpu" else OUTSIDE)


def memory_bytes(run: Run) -> float:
    """Returns the memory of a GPU, or this process's share of the machine's."""
    if run.trainer.accelerator != "cpu" and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / run.trainer.devices


def make_strategy(run: Job) -> Strategy | str:
    """Returns Lightning's strategy for `run`; a single rank without sharding needs none."""
    settings = run.trainer
    backend = "gloo" if settings.accelerator == "cpu" else None
    if settings.strategy in FSDP:
        return ShardedStrategy(run.processes // settings.shards, settings.shards, backend)
    if settings.strategy in ZERO:
        return zero.ZeroStrategy(int(settings.strategy[-1]), settings.offload, run.optim.clip_norm, backend)
    return DDPStrategy(process_group_backend=backend) if run.processes > 1 else "auto"
