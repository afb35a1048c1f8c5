"""Fully sharded data parallelism (FSDP2): every block is sharded by itself, then the root, even on one rank.

On one rank sharding costs nothing and keeps one type of parameter, so that tests on a CPU see what many GPUs see.
"""

from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from model.duplex import DuplexLM

LONG = 1024
"""Entries of an axis from which padding it to a multiple of the ranks does not matter."""


def shard(lm: DuplexLM, mesh: DeviceMesh, precision: str) -> None:
    """Shards weights, gradients and optimiser state over `mesh`, in place.

    Master weights, moments and the gradient exchange stay fp32, because at a learning rate of 2e-6 a bf16 update
    rounds away; with bf16-mixed the gathered weights and the computation are bf16. Inputs are not cast,
    so loss weights stay fp32.
    """
    compute = torch.bfloat16 if precision == "bf16-mixed" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    placement = partial(shard_axis, ranks=mesh.shape[-1])
    for block in (*lm.temporal.layers, *lm.depth.layers):
        fully_shard(block, mesh=mesh, mp_policy=policy, shard_placement_fn=placement)
    fully_shard(lm, mesh=mesh, mp_policy=policy, shard_placement_fn=placement)


def shard_axis(parameter: nn.Parameter, ranks: int) -> Shard | None:
    """Returns along which axis a parameter is cut; None cuts the first and pads it to a multiple of the ranks.

    The first axis costs no copy. But 16 depth steps over 12 or 64 ranks would be mostly padding, so that a short first
    axis that does not divide gives way to the first one that does.
    """
    if parameter.shape[0] >= LONG or parameter.shape[0] % ranks == 0:
        return None
    return next((Shard(axis) for axis, size in enumerate(parameter.shape) if size % ranks == 0), None)
