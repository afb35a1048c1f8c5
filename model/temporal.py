"""The temporal transformer: one position per 80 ms frame, causal attention over the last `context` frames.

Sequences of different lengths lie one after another on one axis ("packed"), so that no position of it is padding.
"""

# Shapes: N rows (positions of all sequences), D width, H heads, E head width

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.config import LMConfig
from model.kernels.attention import packed_attention
from model.kernels.pointwise import rotary_angles, rotate
from model.kernels.recompute import Block
from model.layers import Gating, Linear, RMSNorm


class TemporalAttention(nn.Module):
    """Multi-head attention over packed sequences, with rotary positions and a sliding window."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.context = config.context
        self.in_proj = Linear(config.dim, 3 * config.dim, device=device, dtype=dtype)
        self.out_proj = Linear(config.dim, config.dim, device=device, dtype=dtype)

    def forward(self, x_ND: Tensor, rotation: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        """[N, D] -> [N, D]; rotation: cosine and sine of every position; `lengths` add up to N."""
        qkv_3HNE = self.in_proj(x_ND).unflatten(-1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        # One split, whose gradient is joined in one pass.
        turned_2HNE, value_1HNE = qkv_3HNE.split((2, 1))
        query, key = rotate(turned_2HNE, *rotation).unbind(0)
        y_HNE = packed_attention(query, key, value_1HNE[0], lengths, self.context)
        return self.out_proj(y_HNE.transpose(0, 1).flatten(1))


class TemporalBlock(Block):
    """x + attention(norm1(x)), then x + gating(norm2(x))."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feedforward_hidden
        self.norm1 = RMSNorm(dim, device=device, dtype=dtype)
        self.attention = TemporalAttention(config, device=device, dtype=dtype)
        self.norm2 = RMSNorm(dim, device=device, dtype=dtype)
        self.gating = Gating(
            Linear(dim, 2 * hidden, device=device, dtype=dtype), Linear(hidden, dim, device=device, dtype=dtype)
        )

    def forward(self, x_ND: Tensor, rotation: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        """[N, D] -> [N, D], as the attention."""
        with self.recomputed(self.norm1, x_ND) as normed_ND:
            x_ND = x_ND + self.attention(normed_ND, rotation, lengths)
        with self.recomputed(self.norm2, x_ND) as normed_ND:
            return x_ND + self.gating(normed_ND)


class TemporalTransformer(nn.Module):
    """The stack of temporal blocks, without the final norm."""

    def __init__(
        self, config: LMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.layers: Any = nn.ModuleList(
            TemporalBlock(config, device=device, dtype=dtype) for _ in range(config.num_layers)
        )

    def forward(self, x_ND: Tensor, lengths: Sequence[int]) -> Tensor:
        """All positions of packed sequences at once, [N, D] -> [N, D]; `lengths` add up to N."""
        positions_N = torch.cat([torch.arange(length, device=x_ND.device) for length in lengths])
        rotation = rotary_angles(positions_N, self.config.dim // self.config.num_heads, self.config.max_period)
        for block in self.layers:
            x_ND = block.run(x_ND, rotation, lengths)
        return x_ND
