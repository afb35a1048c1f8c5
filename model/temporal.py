"""The temporal transformer: one position per 80 ms frame, causal attention over the last `context` frames."""

# Shapes: B batch, T frames, S keys, D width, H heads

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import windowed_attention
from model.config import LMConfig
from model.layers import Gating, Linear, RMSNorm, rotary_angles, rotate


class Attention(nn.Module):
    """Multi-head attention with rotary positions and a sliding window."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.context = config.context
        self.in_proj = Linear(config.dim, 3 * config.dim, device=device, dtype=dtype)
        self.out_proj = Linear(config.dim, config.dim, device=device, dtype=dtype)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        qkv = self.in_proj(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], *rotation).unbind(0)
        y_BHTd = windowed_attention(query, key, qkv[2], self.context)
        return self.out_proj(y_BHTd.transpose(1, 2).flatten(2))


class TemporalBlock(nn.Module):
    """x + attention(norm1(x)), then x + gating(norm2(x))."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feedforward_hidden
        self.norm1 = RMSNorm(dim, device=device, dtype=dtype)
        self.attention = Attention(config, device=device, dtype=dtype)
        self.norm2 = RMSNorm(dim, device=device, dtype=dtype)
        self.gating = Gating(
            Linear(dim, 2 * hidden, device=device, dtype=dtype), Linear(hidden, dim, device=device, dtype=dtype)
        )

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rotation)
        return x_BTD + self.gating(self.norm2(x_BTD))


class TemporalTransformer(nn.Module):
    """The stack of temporal blocks, without the final norm. `remat`: recompute each block in the backward pass."""

    def __init__(
        self, config: LMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.remat = False
        self.layers: Any = nn.ModuleList(
            TemporalBlock(config, device=device, dtype=dtype) for _ in range(config.num_layers)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """All positions of a sequence."""
        positions_1T = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        rotation = rotary_angles(positions_1T, self.config.dim // self.config.num_heads, self.config.max_period)
        for block in self.layers:
            if self.remat and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rotation, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotation)
        return x_BTD
