"""Building blocks shared by the temporal and the depth transformer.

Weights that differ per depth step (or per codebook) are stacked in one parameter, so that all steps run as one
batched matmul instead of sixteen small ones.
"""

# Shapes: Q codebooks (depth steps), N rows, B batch, V vocabulary, D width, I input width, O output width
# Shapes: X joined axes (Q x O)

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

    Shapes: [.., D] -> [.., D].
    Source: the public checkpoints' `rms_norm_f32`: parameter `alpha` [1, 1, D], eps 1e-8 inside the root.
    """

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Sets the scale to one."""
        nn.init.ones_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """The normed values, [.., D]."""
        # Only linear maps follow a norm, so that inside autocast its result has their type at once.
        return rms_norm(x, self.alpha, compute_dtype(x))


class Linear(nn.Module):
    """y = W x, without bias: [.., I] -> [.., O]."""

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
        """Draws the weight from a normal distribution of standard deviation 1 / sqrt(I)."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    def terms(self, x_NI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (input [1, N, I], weight [1, O, I]) whose products add up to the output, for `head_loss`."""
        return [(x_NI[None], self.weight[None])]

    def forward(self, x: Tensor) -> Tensor:
        """The output, [.., O]."""
        return linear(x, self.weight)


class StepLinear(nn.Module):
    """One linear map per depth step, stacked: weight [Q, O, I]. Inputs may hold the first few steps only."""

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
        """Draws the weight from a normal distribution of standard deviation 1 / sqrt(I)."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    def terms(self, x_QNI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (input [Q, N, I], weight [Q, O, I]) whose products add up to the output, for `head_loss`."""
        return [(x_QNI, self.weight[: x_QNI.shape[0]])]

    def step(self, k: int, x_BI: Tensor) -> Tensor:
        """The map of step k alone, [B, I] -> [B, O]."""
        return F.linear(x_BI, self.weight[k])

    def shared(self, x_NI: Tensor, steps: int) -> Tensor:
        """The first `steps` maps of one input, [N, I] -> [steps, N, O], as a single matmul."""
        return shared_matmul(x_NI, self.weight[:steps])

    def forward(self, x_QNI: Tensor) -> Tensor:
        """The maps of the first steps, each of its own input: [Q, N, I] -> [Q, N, O]."""
        return step_linear(x_QNI, self.weight)


def shared_matmul(x_NI: Tensor, weight_QOI: Tensor) -> Tensor:
    """x W_k^T for every k -> [Q, N, O]. One wide matmul, whose gradient never holds a [Q, N, I] copy of x."""
    y_NX = linear(x_NI, weight_QOI.flatten(0, 1))
    return y_NX.unflatten(1, weight_QOI.shape[:2]).transpose(0, 1)


class Gating(Block):
    """linear_out(silu(a) * b) with [a, b] = linear_in(x), where both maps are Linear or StepLinear."""

    def __init__(self, linear_in: nn.Module, linear_out: nn.Module) -> None:
        super().__init__()
        self.linear_in: Any = linear_in
        self.linear_out: Any = linear_out

    def forward(self, x: Tensor) -> Tensor:
        """[.., N, I] -> [.., N, O]."""
        with self.recomputed(gated, self.linear_in(x)) as y:
            return self.linear_out(y)


class Embedding(nn.Module):
    """A table [V, D] where ZERO_ID gives a zero vector: ids [..] -> [.., D]."""

    def __init__(
        self, card: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(card, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table from a normal distribution of standard deviation 1 / sqrt(D)."""
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table, [.., D]."""
        return embed_or_zero(ids, self.weight)


class StackedEmbedding(nn.Module):
    """One table per codebook, stacked: weight [Q, V, D]; ZERO_ID gives a zero vector.

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
        """Draws the tables from a normal distribution of standard deviation 1 / sqrt(D)."""
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)

    def rows(self, ids_QN: Tensor) -> Tensor:
        """Ids [Q, N] of the first Q codebooks as rows of the flattened table; ZERO_ID stays ZERO_ID."""
        codebooks, card, _ = self.weight.shape
        first_Q1 = torch.arange(ids_QN.shape[0], device=ids_QN.device)[:, None] * card
        # An id beyond its own table must fail, not read the next codebook's table.
        rows_QN = torch.where((ids_QN >= 0) & (ids_QN < card), ids_QN + first_Q1, codebooks * card)
        return torch.where(ids_QN == ZERO_ID, ZERO_ID, rows_QN)

    def forward(self, ids_QN: Tensor) -> Tensor:
        """Ids [Q, N] of the first Q codebooks -> [Q, N, D]."""
        return embed_or_zero(self.rows(ids_QN), self.weight.flatten(0, 1))

    def summed(self, ids_QN: Tensor) -> Tensor:
        """Sum over the codebooks, ids [Q, N] -> [N, D], without a [Q, N, D] copy."""
        rows_NQ = self.rows(ids_QN).T.contiguous()
        has_row_NQ = rows_NQ != ZERO_ID
        table = self.weight.flatten(0, 1)
        return F.embedding_bag(
            torch.where(has_row_NQ, rows_NQ, 0), table, mode="sum", per_sample_weights=has_row_NQ.to(table.dtype)
        )


def embed_or_zero(ids: Tensor, table_VD: Tensor) -> Tensor:
    """Rows of a table, [..] -> [.., D]; ZERO_ID gives a zero vector, other negative ids fail."""
    is_zero = ids == ZERO_ID
    return F.embedding(torch.where(is_zero, 0, ids), table_VD) * (~is_zero)[..., None].to(table_VD.dtype)
