"""Sharding on one rank of a CPU: the same outputs, fp32 masters, and blocks that are sharded by themselves."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from model.config import LMConfig
from model.duplex import DuplexLM
from ppx_train.training.parallel import shard, shard_axis

LM = LMConfig(
    dim=32, num_heads=2, num_layers=2, depformer_dim=16, depformer_num_heads=2, depformer_num_layers=1,
    text_card=40, card=16,
)  # fmt: skip


def losses(lm: DuplexLM) -> torch.Tensor:
    codes_BKT = torch.randint(4, 16, (2, 17, 9), generator=torch.Generator().manual_seed(1))
    loss: torch.Tensor = lm(codes_BKT, torch.ones(codes_BKT.shape)).loss_K
    return loss


def on_one_rank(_: int, folder: str, precision: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    torch.manual_seed(0)
    lm = DuplexLM(LM)
    plain = losses(lm).detach()
    shard(lm, init_device_mesh("cpu", (1,)), precision)
    assert all(isinstance(value, DTensor) and value.dtype == torch.float32 for value in lm.parameters())
    ours = losses(lm)
    assert all(isinstance(block, FSDPModule) for block in (lm, *lm.temporal.layers, *lm.depth.layers))
    exact = precision == "32-true"
    torch.testing.assert_close(ours.detach(), plain, rtol=1e-6 if exact else 0.05, atol=0)
    assert exact or not torch.equal(ours.detach(), plain)  # It was computed in bf16.
    ours.sum().backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in lm.parameters())
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_sharded_model_computes_the_same_with_fp32_masters(tmp_path: Path, precision: str) -> None:
    mp.spawn(on_one_rank, (str(tmp_path), precision), nprocs=1)


@pytest.mark.parametrize(
    ("shape", "ranks", "axis"),
    [
        ((16, 3072, 1024), 8, None),  # Two steps a rank.
        ((16, 3072, 1024), 12, 1),
        ((16, 3072, 1024), 64, 1),
        ((16, 1024, 4100), 10, 2),
        ((32001, 4096), 64, None),  # A long axis is padded by next to nothing.
        ((1, 1, 4096), 8, 2),
        ((3, 5), 2, None),  # No axis divides.
    ],
)
def test_a_parameter_is_cut_where_ranks_divide_it(shape: tuple[int, ...], ranks: int, axis: int | None) -> None:
    cut = shard_axis(torch.nn.Parameter(torch.empty(shape, device="meta")), ranks)
    assert (cut and cut.dim) == axis
