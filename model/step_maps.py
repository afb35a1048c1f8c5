"""The layers of a model as plain functions of one frame: no module call, no indexing of stacked weights per frame.

The functions hold the weights as they are now: build them anew after loading or moving a model.
"""

# Shapes: B batch, I input width, O output width, D width

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from model.layers import NORM_EPS, Linear, RMSNorm, StepLinear

Map = Callable[[Tensor], Tensor]
"""[.., I] -> [.., O]"""


def linear_map(module: Any) -> Map:
    """y = W x of a Linear or of a module that stands for one (an adapter, a quantised layer)."""
    if type(module) is Linear:
        return partial(F.linear, weight=module.weight.detach())
    return module


def step_maps(module: Any, steps: int) -> list[Map]:
    """The first `steps` maps of a StepLinear or of a module that stands for one."""
    if type(module) is StepLinear:
        return [partial(F.linear, weight=weight) for weight in module.weight.detach()[:steps].unbind(0)]
    return [partial(module.step, k) for k in range(steps)]


def norm_map(module: RMSNorm) -> Map:
    """An RMSNorm without its casts where they change nothing."""
    alpha = module.alpha.detach()
    if alpha.dtype.itemsize == 4:
        alpha_D = alpha.flatten()
        return partial(F.rms_norm, normalized_shape=alpha_D.shape, weight=alpha_D, eps=NORM_EPS)
    return module


def gated(ab: Tensor) -> Tensor:
    """silu(a) * b of [a, b] side by side."""
    a, b = ab.chunk(2, dim=-1)
    return F.silu(a) * b
