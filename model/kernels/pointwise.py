"""Operations that are bound by memory (norm, gate, rotation), with gradients that pass over it as little as possible.

On a CPU, where PyTorch has no fused kernels for them, they work on groups of rows that stay in the cache. Norm and
rotation are computed in fp32. While compiling, Inductor fuses the plain formulas instead.
"""

# Shapes: N rows, M some rows (a group), D width, X joined axes (both halves of a gate's input)

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.kernels.attention import on_cpu, wide
from model.kernels.fast_paths import POINTWISE, is_on

NORM_EPS = 1e-8
"""Added to the mean square, inside the root, as in the public runtimes."""
CACHED_VALUES = 2**18
"""Values of one group on a CPU: 1 MB of fp32, which stays in the cache between the passes over it."""


def rms_norm(x: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """x * alpha / sqrt(eps + mean(x^2)) over the last axis, in type `dtype`.

    Shapes: x and the result [.., D]; alpha: any shape with D values.
    """
    if on_cpu(x) and is_on(POINTWISE):
        return _RMSNorm.apply(x, alpha, dtype)
    with torch.autocast(x.device.type, enabled=False):
        if not torch.compiler.is_compiling() and not is_on(POINTWISE):
            square = wide(x).square().mean(-1, keepdim=True)
            return (wide(x) * torch.rsqrt(square + NORM_EPS) * alpha.flatten().to(square.dtype)).to(dtype)
        return F.rms_norm(x, x.shape[-1:], alpha.flatten().to(x.dtype), NORM_EPS).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """The norm on a CPU; it keeps only x for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
        x_ND, y_ND = x.reshape(-1, x.shape[-1]), torch.empty(x.shape, dtype=dtype)
        alpha_D = alpha.float().flatten()
        inverse_N1 = torch.empty(len(x_ND), 1)
        for x_MD, y_MD, inverse_M1 in _groups(x_ND, y_ND.view_as(x_ND), inverse_N1):
            x_MD = x_MD.float()
            norm_M1 = torch.linalg.vector_norm(x_MD, dim=-1, keepdim=True)
            torch.rsqrt(norm_M1.square_().div_(x_MD.shape[-1]).add_(NORM_EPS), out=inverse_M1)
            torch.mul(x_MD * inverse_M1, alpha_D, out=y_MD)
        ctx.save_for_backward(x, alpha, inverse_N1)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, alpha, inverse_N1 = ctx.saved_tensors
        x_ND, grad_ND = (tensor.reshape(-1, x.shape[-1]) for tensor in (x, grad))
        alpha_D = alpha.float().flatten()
        grad_x, grad_alpha_D = torch.empty_like(x_ND), torch.zeros_like(alpha_D)
        for x_MD, grad_MD, inverse_M1, out_MD in _groups(x_ND, grad_ND, inverse_N1, grad_x):
            x_MD, grad_MD = x_MD.float(), grad_MD.float()
            product_MD = grad_MD * x_MD
            grad_alpha_D.addmv_(product_MD.t(), inverse_M1[:, 0])
            along_M1 = torch.mv(product_MD, alpha_D)[:, None] * inverse_M1**3 / -len(alpha_D)
            out_MD.copy_((grad_MD * alpha_D).mul_(inverse_M1).addcmul_(x_MD, along_M1))
        grad_alpha = grad_alpha_D.view_as(alpha).to(alpha.dtype) if ctx.needs_input_grad[1] else None
        return grad_x.view(x.shape), grad_alpha, None


def gated(x: Tensor) -> Tensor:
    """silu(a) * b of the two halves a, b of the last axis, as a tensor of half the width."""
    if x.requires_grad and not torch.compiler.is_compiling() and is_on(POINTWISE):
        return _Gated.apply(x)
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


class _Gated(torch.autograd.Function):
    """The gate keeps x alone, not silu(a), and writes both halves of its gradient in place instead of joining them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a, b = x.chunk(2, dim=-1)
        return F.silu(a).mul_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        rows = (tensor.flatten(0, -2) for tensor in (x, grad, grad_x))
        for x_MX, grad_MD, out_MX in _groups(*rows):
            (a_MD, b_MD), (grad_a_MD, grad_b_MD) = x_MX.chunk(2, dim=-1), out_MX.chunk(2, dim=-1)
            torch.mul(F.silu(a_MD), grad_MD, out=grad_b_MD)
            torch.ops.aten.silu_backward.grad_input(grad_MD * b_MD, a_MD, grad_input=grad_a_MD)
        return grad_x


def rotary_frequencies(head_dim: int, max_period: float, device: torch.device) -> Tensor:
    """Radians a frame by which each pair of values turns, fp32 [E / 2], E = head_dim."""
    pairs = torch.arange(head_dim // 2, device=device, dtype=torch.float32)
    return max_period ** (-2 * pairs / head_dim)


def rotary_angles(positions_N: Tensor, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary positions, fp32, each [N, E / 2], E = head_dim."""
    angles = positions_N[:, None].float() * rotary_frequencies(head_dim, max_period, positions_N.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the interleaved pairs (x0, x1), (x2, x3), ... of the last axis, in fp32.

    Shapes: x and the result [.., N, E]; cos and sin [N, E / 2] as `rotary_angles` returns them.
    """
    pairs = wide(x).unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling() and is_on(POINTWISE):
        # The complex product is one pass instead of four strided ones.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        real, imaginary = pairs.unbind(-1)
        turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _groups(*tensors_ND: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """On a CPU cuts the tensors into the same groups of rows, sized by the width of the first tensor."""
    if tensors_ND[0].device.type != "cpu":
        return iter([tensors_ND])
    rows = max(1, CACHED_VALUES // tensors_ND[0].shape[-1])
    return zip(*(tensor.split(rows) for tensor in tensors_ND), strict=True)
