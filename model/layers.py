"""Building blocks shared by the temporal and the depth transformer.

Weights that differ per depth step (or per codebook) are stacked in one parameter, so that all steps run as one
batched matmul instead of sixteen small ones.
"""

# Shapes: K steps or codebooks, N rows, B batch, T frames, H heads, I input width, O output width, R rank

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.attention import on_cpu
from model.config import ZERO_ID
from model.matmul import compute_dtype, linear, step_linear
from model.recompute import Block

NORM_EPS = 1e-8
CACHED_VALUES = 2**18  # on a CPU: 1 MB of fp32 values stay in the cache between passes over them


class RMSNorm(nn.Module):
    """Root-mean-square norm computed in fp32; the result has the type of its input, or autocast's.

    Source: the public checkpoints' `rms_norm_f32`: parameter `alpha` [1, 1, D], eps 1e-8 inside the root.
    """

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        # only linear maps follow a norm: inside autocast it gives them their type at once
        dtype = compute_dtype(x)
        if on_cpu(x):
            return _RMSNorm.apply(x, self.alpha, dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, x.shape[-1:], self.alpha.flatten().to(x.dtype), NORM_EPS).to(dtype)


class _RMSNorm(torch.autograd.Function):
    """For the CPU, where PyTorch has no fused kernel: groups of rows that fit the cache, and only x is kept."""

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


def _groups(*tensors_ND: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = max(1, CACHED_VALUES // tensors_ND[0].shape[-1])
    return zip(*(tensor.split(rows) for tensor in tensors_ND), strict=True)


class Linear(nn.Module):
    """y = W x, without bias."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    def terms(self, x_NI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (input [1, N, I], weight [1, O, I]) whose products add up to the output, for `head_loss`."""
        return [(x_NI[None], self.weight[None])]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class StepLinear(nn.Module):
    """One linear map per step, stacked: weight [K, O, I]. Inputs may hold the first few steps only."""

    def __init__(
        self,
        steps: int,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(steps, out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    def terms(self, x_KNI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (input [K, N, I], weight [K, O, I]) whose products add up to the output, for `head_loss`."""
        return [(x_KNI, self.weight[: x_KNI.shape[0]])]

    def step(self, k: int, x_BI: Tensor) -> Tensor:
        """Step k alone: [B, I] -> [B, O]."""
        return F.linear(x_BI, self.weight[k])

    def shared(self, x_NI: Tensor, steps: int) -> Tensor:
        """The first `steps` maps of one input: [N, I] -> [steps, N, O], as a single matmul."""
        return shared_matmul(x_NI, self.weight[:steps])

    def forward(self, x_KNI: Tensor) -> Tensor:
        return step_linear(x_KNI, self.weight)


def shared_matmul(x_NI: Tensor, weight_KOI: Tensor) -> Tensor:
    """x W_k^T for every k -> [K, N, O]. One wide matmul: its gradient never holds a [K, N, I] copy of x."""
    y_NX = linear(x_NI, weight_KOI.flatten(0, 1))
    return y_NX.unflatten(1, weight_KOI.shape[:2]).transpose(0, 1)


class Gating(Block):
    """linear_out(silu(a) * b) with [a, b] = linear_in(x); the two maps are Linear or StepLinear."""

    def __init__(self, linear_in: nn.Module, linear_out: nn.Module) -> None:
        super().__init__()
        self.linear_in: Any = linear_in
        self.linear_out: Any = linear_out

    def forward(self, x: Tensor) -> Tensor:
        with self.recomputed(gated, self.linear_in(x)) as y:
            return self.linear_out(y)


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


class Embedding(nn.Module):
    """A table [V, D] where ZERO_ID gives a zero vector."""

    def __init__(
        self, card: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(card, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return embed_or_zero(ids, self.weight)


class StackedEmbedding(nn.Module):
    """One table per codebook, stacked: weight [K, V, D]; ZERO_ID gives a zero vector.

    Raises: IndexError (a device-side assertion on a GPU) if an id is outside its own codebook's table.
    """

    def __init__(
        self,
        codebooks: int,
        card: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebooks, card, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)

    def rows(self, ids_KN: Tensor) -> Tensor:
        """Rows of the flattened table: [K, N] ids, of the first K codebooks, as one index. ZERO_ID stays."""
        codebooks, card, _ = self.weight.shape
        first_K1 = torch.arange(ids_KN.shape[0], device=ids_KN.device)[:, None] * card
        # an id beyond its table must fail, not read the next codebook's table
        rows_KN = torch.where((ids_KN >= 0) & (ids_KN < card), ids_KN + first_K1, codebooks * card)
        return torch.where(ids_KN == ZERO_ID, ZERO_ID, rows_KN)

    def forward(self, ids_KN: Tensor) -> Tensor:
        """[K, N] ids of the first K codebooks -> [K, N, D]."""
        return embed_or_zero(self.rows(ids_KN), self.weight.flatten(0, 1))

    def summed(self, ids_KN: Tensor) -> Tensor:
        """Sum over the codebooks: [K, N] -> [N, D], without a [K, N, D] copy."""
        rows_NK = self.rows(ids_KN).T.contiguous()
        has_row_NK = rows_NK != ZERO_ID
        table = self.weight.flatten(0, 1)
        return F.embedding_bag(
            torch.where(has_row_NK, rows_NK, 0), table, mode="sum", per_sample_weights=has_row_NK.to(table.dtype)
        )


def embed_or_zero(ids: Tensor, table_VD: Tensor) -> Tensor:
    """Looks ids up in a table; ZERO_ID gives a zero vector. Other negative ids fail."""
    is_zero = ids == ZERO_ID
    return F.embedding(torch.where(is_zero, 0, ids), table_VD) * (~is_zero)[..., None].to(table_VD.dtype)


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
