"""The layers of a model as plain functions of one frame, without module calls or indexing of stacked weights.

The functions hold the weights as they are now: build them anew after loading or moving a model.
"""

# Shapes: B batch, I input width, O output width, D width

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.matmul import onednn_linear, uses_onednn
from model.kernels.pointwise import NORM_EPS
from model.layers import Linear, RMSNorm, StepLinear

Map = Callable[[Tensor], Tensor]
"""A function [.., I] -> [.., O]."""
SMALL = 2**24
"""A matrix with fewer weights is kept a second time, transposed."""
ONEDNN = 2**16
"""Weights from which oneDNN is worth the 10 microseconds that its call costs."""


class BlockMaps(NamedTuple):
    """The maps of one block of the temporal transformer, or of a depth block at one step."""

    norm1: Map
    in_proj: Map
    out_proj: Map
    norm2: Map
    linear_in: Map
    linear_out: Map


def linear_map(module: Any) -> Map:
    """The map of a Linear, or of a module that stands for one (an adapter, a quantised layer)."""
    return weight_map(module.weight.detach()) if type(module) is Linear else module


def step_maps(module: Any, steps: int) -> list[Map]:
    """The first `steps` maps of a StepLinear, or of a module that stands for one."""
    if type(module) is StepLinear:
        return [weight_map(weight_OI) for weight_OI in module.weight.detach()[:steps].unbind(0)]
    return [partial(module.step, k) for k in range(steps)]


def shared_map(module: Any, steps: int) -> Callable[[Tensor], Sequence[Tensor]]:
    """The first `steps` maps of a StepLinear, or of a stand-in, on one input: [B, I] -> `steps` times [B, O]."""
    if type(module) is StepLinear:
        wide = weight_map(module.weight.detach()[:steps].flatten(0, 1))
        return lambda x_BI: wide(x_BI).unflatten(1, (steps, -1)).unbind(1)
    return lambda x_BI: module.shared(x_BI, steps).unbind(0)


def weight_map(weight_OI: Tensor) -> Map:
    """The map x W^T; on a CPU in fp32 by the fastest kernel for the size, since reading the weights takes most time.

    For one row MKL reads a transposed copy at up to twice the speed (20 to 28 GB/s on an EPYC, from memory). Only the
    smaller matrices get such a copy, a tenth of a model with 7B parameters. The others, and several rows, go to oneDNN.
    """
    if not uses_onednn(weight_OI):
        return partial(F.linear, weight=weight_OI)
    weight_IO = weight_OI.t().contiguous() if weight_OI.numel() < SMALL else None
    linear = onednn_linear if weight_OI.numel() >= ONEDNN else F.linear

    def multiply(x: Tensor) -> Tensor:
        if weight_IO is not None and len(x) == 1 and x.ndim == 2:
            return torch.mm(x, weight_IO)
        return linear(x, weight_OI)

    return multiply


def norm_map(module: RMSNorm) -> Map:
    """The map of an RMSNorm; on a CPU in fp32 with half the operators of PyTorch's, which has no fused kernel there."""
    alpha_D = module.alpha.detach().flatten()
    if not alpha_D.is_cpu:
        return partial(F.rms_norm, normalized_shape=alpha_D.shape, weight=alpha_D, eps=NORM_EPS)
    if alpha_D.dtype != torch.float32:
        return module
    share, eps_1 = 1 / len(alpha_D), torch.full((1,), NORM_EPS)

    def norm(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(eps_1, length, length, value=share).rsqrt_()).mul_(alpha_D)

    return norm
