"""Fully sharded data parallelism (FSDP2): every block is sharded by itself, then the root, even on one rank.

On one rank sharding costs nothing and keeps one type of parameter, so that tests on a CPU see what many GPUs see.
"""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from model.duplex import DuplexLM


def shard(lm: DuplexLM, mesh: DeviceMesh, precision: str) -> None:
    """Shards weights, gradients and optimiser state over `mesh`, in place.

    Master weights, moments and the gradient exchange stay fp32, because at a learning rate of 2e-6 a bf16 update
    rounds away; with bf16-mixed the gathered weights and the computation are bf16. Inputs are not cast,
    so loss weights stay fp32.
    """
    compute = torch.bfloat16 if precision == "bf16-mixed" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in (*lm.temporal.layers, *lm.depth.layers):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
