"""Building blocks shared by the temporal and the depth transformer.

Weights that differ per depth step (or per codebook) are stacked in one parameter, so that all steps run as one
batched matmul instead of sixteen small ones.
"""

# Shapes: K steps or codebooks, N rows, B batch, T frames, H heads, I input width, O output width, R rank

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ZERO_ID
from model.kernels.matmul import compute_dtype, linear, step_linear
from model.kernels.pointwise import gated, rms_norm
from model.kernels.recompute import Block


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
        return rms_norm(x, self.alpha, compute_dtype(x))


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
