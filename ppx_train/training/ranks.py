"""The few collective operations that training needs; each works without a process group too."""

import os

import torch.distributed as dist
from torch import Tensor


def is_launcher() -> bool:
    """True in the process a person started (or rank 0 of torchrun), before any process group exists."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(values: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def leave_together() -> None:
    """Waits until all processes are through with their last exchange.

    With gloo a process that ends at once may take back bytes of it that another has not read yet.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.monitored_barrier()
