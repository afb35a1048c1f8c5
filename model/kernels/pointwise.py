"""Operations that are bound by memory: norm, gate and rotation, with gradients that pass over it as little as possible.

On a CPU, where PyTorch has no fused kernels for them, they go by groups of rows that stay in the cache. Everything is
computed in fp32. While compiling, Inductor fuses the plain formulas instead.
"""

# Shapes: N rows, n rows of a group, D width, H half of it

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.kernels.attention import on_cpu

NORM_EPS = 1e-8
CACHED_VALUES = 2**18  # on a CPU: 1 MB of fp32 values stay in the cache between passes over them


def rms_norm(x: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """x * alpha / sqrt(eps + mean(x^2)) over the last axis, as `dtype`. alpha: any shape with D values."""
    if on_cpu(x):
        return _RMSNorm.apply(x, alpha, dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], alpha.flatten().to(x.dtype), NORM_EPS).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """For the CPU. Only x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
        x_ND, y_ND = x.reshape(-1, x.shape[-1]), torch.empty(x.shape, dtype=dtype)
        alpha_D = alpha.float().flatten()
        inverse_N1 = torch.empty(len(x_ND), 1)
        for x_nD, y_nD, inverse_n1 in _groups(x_ND, y_ND.view_as(x_ND), inverse_N1):
            x_nD = x_nD.float()
            norm_n1 = torch.linalg.vector_norm(x_nD, dim=-1, keepdim=True)
            torch.rsqrt(norm_n1.square_().div_(x_nD.shape[-1]).add_(NORM_EPS), out=inverse_n1)
            torch.mul(x_nD * inverse_n1, alpha_D, out=y_nD)
        ctx.save_for_backward(x, alpha, inverse_N1)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, alpha, inverse_N1 = ctx.saved_tensors
        x_ND, grad_ND = (tensor.reshape(-1, x.shape[-1]) for tensor in (x, grad))
        alpha_D = alpha.float().flatten()
        grad_x, grad_alpha_D = torch.empty_like(x_ND), torch.zeros_like(alpha_D)
        for x_nD, grad_nD, inverse_n1, out_nD in _groups(x_ND, grad_ND, inverse_N1, grad_x):
            x_nD, grad_nD = x_nD.float(), grad_nD.float()
            product_nD = grad_nD * x_nD
            grad_alpha_D.addmv_(product_nD.t(), inverse_n1[:, 0])
            along_n1 = torch.mv(product_nD, alpha_D)[:, None] * inverse_n1**3 / -len(alpha_D)
            out_nD.copy_((grad_nD * alpha_D).mul_(inverse_n1).addcmul_(x_nD, along_n1))
        grad_alpha = grad_alpha_D.view_as(alpha).to(alpha.dtype) if ctx.needs_input_grad[1] else None
        return grad_x.view(x.shape), grad_alpha, None


def gated(x: Tensor) -> Tensor:
    """silu(a) * b of the two halves a, b of the last axis."""
    if on_cpu(x) and x.requires_grad:
        return _Gated.apply(x)
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


class _Gated(torch.autograd.Function):
    """For the CPU: keeps x alone, and writes both halves of its gradient in place instead of joining them."""

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
        for x_nX, grad_nH, out_nX in _groups(*rows):
            (a_nH, b_nH), (grad_a_nH, grad_b_nH) = x_nX.chunk(2, dim=-1), out_nX.chunk(2, dim=-1)
            torch.mul(F.silu(a_nH), grad_nH, out=grad_b_nH)
            torch.ops.aten.silu_backward.grad_input(grad_nH * b_nH, a_nH, grad_input=grad_a_nH)
        return grad_x


def rotary_frequencies(head_dim: int, max_period: float, device: torch.device) -> Tensor:
    """Radians per frame of each pair of values, fp32 [head_dim / 2]."""
    pairs = torch.arange(head_dim // 2, device=device, dtype=torch.float32)
    return max_period ** (-2 * pairs / head_dim)


def rotary_angles(positions_N: Tensor, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary positions, fp32, each [N, head_dim / 2]."""
    angles = positions_N[:, None].float() * rotary_frequencies(head_dim, max_period, positions_N.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the interleaved pairs (x0, x1), (x2, x3), ... of the last axis, in fp32. x: [.., N, head_dim]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if on_cpu(x):  # one vectorised pass instead of four strided ones
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        real, imaginary = pairs.unbind(-1)
        turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _groups(*tensors_ND: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = max(1, CACHED_VALUES // tensors_ND[0].shape[-1])
    return zip(*(tensor.split(rows) for tensor in tensors_ND), strict=True)
