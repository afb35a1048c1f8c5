"""Matrix products with weights, by the fastest kernel of the device.

On a CPU, fp32 products go to oneDNN. PyTorch would send them to MKL, which on AMD processors reaches less than half of
the core's speed (105 against 230 GFLOP/s measured on an EPYC with AVX512); bf16 goes to oneDNN without help.
Gradients of weights are made in the weights' own layout, which saves PyTorch's copy of them.
"""

# Shapes: Q codebooks (depth steps), N rows, I input width, O output width

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.kernels.fast_paths import PRODUCTS, is_on

FEW_ROWS = 4
"""Rows up to which a product without gradient is left to PyTorch: calling oneDNN would take longer than multiplying."""


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x W^T, [.., I] -> [.., O]. Inside autocast both are cast to its type."""
    x, weight_OI = autocast_to_one_type(x, weight_OI)
    if not uses_onednn(x):
        return F.linear(x, weight_OI)
    if torch.is_grad_enabled() and (x.requires_grad or weight_OI.requires_grad):
        return _Linear.apply(x, weight_OI)
    if x.numel() <= FEW_ROWS * x.shape[-1]:
        return F.linear(x, weight_OI)
    return onednn_linear(x, weight_OI)


def step_linear(x_QNI: Tensor, stacked: Tensor) -> Tensor:
    """x_k W_k^T for the first Q of the stacked weights -> [Q, N, O]. Inside autocast both are cast to its type.

    Shapes: stacked [Q or more, O, I].
    """
    x_QNI, stacked = autocast_to_one_type(x_QNI, stacked)
    if not is_on(PRODUCTS):
        return torch.bmm(x_QNI, stacked[: len(x_QNI)].transpose(1, 2))
    return _StepLinear.apply(x_QNI, stacked)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which products of x are computed: autocast's inside autocast, else its own."""
    return torch.get_autocast_dtype(x.device.type) if _autocasts(x) else x.dtype


def residual_dtype(x: Tensor) -> torch.dtype:
    """The type in which blocks add to x: on a GPU that of products, so that autocast means what FSDP2's policy means.

    On a CPU autocast leaves the residual stream as it is.
    """
    return x.dtype if x.device.type == "cpu" else compute_dtype(x)


def autocast_to_one_type(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in autocast's type; outside autocast they stay as they are."""
    return (x.to(compute_dtype(x)), weight.to(compute_dtype(x))) if _autocasts(x) else (x, weight)


def _autocasts(x: Tensor) -> bool:
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def uses_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes products of x: fp32 on a CPU, but not while compiling, when Inductor chooses."""
    is_fp32_on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    may_be = is_fp32_on_cpu and torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling()
    return may_be and is_on(PRODUCTS)


def onednn_linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x W^T of fp32 tensors on a CPU, [.., I] -> [.., O], by the operator that Inductor uses, without autograd."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight_OI, None, "none", [], "")


def product(a_NI: Tensor, b_OI: Tensor, out: Tensor | None = None) -> Tensor:
    """a b^T of two matrices of any strides, without autograd."""
    if not uses_onednn(a_NI):
        return torch.mm(a_NI, b_OI.t(), out=out)
    result_NO = onednn_linear(a_NI, b_OI)
    return result_NO if out is None else out.copy_(result_NO)


def products(a_QNI: Tensor, b_QOI: Tensor) -> Tensor:
    """a_k b_k^T for every k, without autograd -> [Q, N, O]."""
    if not uses_onednn(a_QNI):
        return torch.bmm(a_QNI, b_QOI.transpose(1, 2))
    result_QNO = a_QNI.new_empty(a_QNI.shape[0], a_QNI.shape[1], b_QOI.shape[1])
    for a_NI, b_OI, out_NO in zip(a_QNI, b_QOI, result_QNO, strict=True):
        product(a_NI, b_OI, out_NO)
    return result_QNO


def weight_gradient(grad_NO: Tensor, x_NI: Tensor, out: Tensor | None = None) -> Tensor:
    """grad^T x -> [O, I], without autograd."""
    # oneDNN copies its transposed first factor, so that the narrower of the two is put there.
    if uses_onednn(x_NI) and x_NI.shape[1] < grad_NO.shape[1]:
        result_OI = product(x_NI.t(), grad_NO.t()).t()
        return result_OI.contiguous() if out is None else out.copy_(result_OI)
    return product(grad_NO.t(), x_NI.t(), out)


def step_weight_gradient(grad_QNO: Tensor, x_QNI: Tensor) -> Tensor:
    """grad_k^T x_k for every k -> [Q, O, I], without autograd."""
    if not uses_onednn(x_QNI):
        return torch.bmm(grad_QNO.transpose(1, 2), x_QNI)
    result_QOI = x_QNI.new_empty(len(x_QNI), grad_QNO.shape[2], x_QNI.shape[2])
    for grad_NO, x_NI, out_OI in zip(grad_QNO, x_QNI, result_QOI, strict=True):
        weight_gradient(grad_NO, x_NI, out_OI)
    return result_QOI


def _needed(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What the backward pass has to keep: a frozen weight needs no x, and an x without gradient no weight."""
    needs_x, needs_weight = ctx.needs_input_grad
    return (x if needs_weight else None), (weight if needs_x else None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(*_needed(ctx, x, weight_OI))
        return product(x.flatten(0, -2), weight_OI).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight_OI = ctx.saved_tensors
        grad_NO = grad.flatten(0, -2)
        grad_x = product(grad_NO, weight_OI.t()).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        return grad_x, weight_gradient(grad_NO, x.flatten(0, -2))


class _StepLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_QNI: Tensor, stacked: Tensor) -> Tensor:
        ctx.save_for_backward(*_needed(ctx, x_QNI, stacked))
        ctx.num_stacked = len(stacked)
        return products(x_QNI, stacked[: x_QNI.shape[0]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_QNO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_QNI, stacked = ctx.saved_tensors
        steps = grad_QNO.shape[0]
        grad_x = products(grad_QNO, stacked[:steps].transpose(1, 2)) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        grad_weight = step_weight_gradient(grad_QNO, x_QNI)
        if steps < ctx.num_stacked:
            grad_weight = F.pad(grad_weight, (0, 0, 0, 0, 0, ctx.num_stacked - steps))
        return grad_x, grad_weight
