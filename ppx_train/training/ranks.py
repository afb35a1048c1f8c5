"""The collective operations that training needs; each works without a process group too."""

import os
from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_launcher() -> bool:
    """Returns whether this is the process that a person started, or rank 0 of a launcher; needs no process group."""
    if "RANK" in os.environ:  # torchrun, whose rank 0 need not be on the first node of a Slurm job
        return int(os.environ["RANK"]) == 0
    places = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, "0")) == 0 for name in places)


def rank() -> int:
    """Returns the number of this process among all; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def leave_together() -> None:
    """Waits until all ranks have finished their last exchange.

    With gloo, a rank that exits at once may withdraw bytes that another rank has not read yet.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.monitored_barrier()


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all ranks, in their order; they are small and plain."""
    found: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found
