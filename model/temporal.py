"""The temporal transformer: one position per 80 ms frame, causal attention over the last `context` frames."""

# Shapes: B batch, T frames, S keys, D width, H heads, C context (ring size), L layers

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.config import LMConfig
from model.kv_cache import KVCache
from model.layers import Gating, Linear, RMSNorm, rotary_angles, rotate


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
    """Causal attention where a frame sees itself and the context - 1 frames before it. [B, H, T, head_dim]."""
    num_frames = query.shape[2]
    if num_frames <= context:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # blocks of `context` queries: each needs only the keys of its own block and of the one before
    blocks = []
    for start in range(0, num_frames, context):
        first, stop = max(0, start - context + 1), min(start + context, num_frames)
        frames = torch.arange(first, stop, device=query.device)
        age_TS = frames[start - first :, None] - frames
        mask_TS = (age_TS >= 0) & (age_TS < context)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        blocks.append(F.scaled_dot_product_attention(query[:, :, start:stop], keys, values, attn_mask=mask_TS))
    return torch.cat(blocks, dim=2)


class Attention(nn.Module):
    """Multi-head attention with rotary positions and a sliding window."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.context = config.context
        self.in_proj = Linear(config.dim, 3 * config.dim, device=device, dtype=dtype)
        self.out_proj = Linear(config.dim, config.dim, device=device, dtype=dtype)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self._project(x_BTD, rotation)
        return self._merge(windowed_attention(query, key, value, self.context))

    def stream(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, layer: int, mask: Tensor | None
    ) -> Tensor:
        """The next T frames of a cached sequence."""
        query, key, value = self._project(x_BTD, rotation)
        if cache.seen == 0 and x_BTD.shape[1] > 1:
            cache.append(layer, key, value)
            return self._merge(windowed_attention(query, key, value, self.context))
        keys, values = cache.append(layer, key.to(cache.keys.dtype), value.to(cache.values.dtype))
        return self._merge(F.scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=mask))

    def _project(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, [B, H, T, head_dim] each."""
        qkv = self.in_proj(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], *rotation).unbind(0)
        return query, key, qkv[2]

    def _merge(self, y_BHTd: Tensor) -> Tensor:
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

    def stream(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, layer: int, mask: Tensor | None
    ) -> Tensor:
        """The next T frames of a cached sequence."""
        x_BTD = x_BTD + self.attention.stream(self.norm1(x_BTD), rotation, cache, layer, mask)
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

    def init_cache(self, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Empty cache for `batch` rows. The only state of streaming: hand it to `forward` with every chunk."""
        config = self.config
        shape = (config.num_layers, batch, config.num_heads, config.context, config.dim // config.num_heads)
        return KVCache(
            keys=torch.zeros(shape, device=device, dtype=dtype),
            values=torch.zeros(shape, device=device, dtype=dtype),
            offset_B=torch.zeros(batch, device=device, dtype=torch.long),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """All positions of a sequence."""
        positions_1T = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        rotation = self._rotation(positions_1T)
        for block in self.layers:
            if self.remat and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rotation, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotation)
        return x_BTD

    def stream(self, x_BTD: Tensor, cache: KVCache) -> Tensor:
        """The next T >= 1 frames of a cached sequence: the same values as `forward` over all of it."""
        num_frames = x_BTD.shape[1]
        positions_BT = cache.offset_B[:, None] + torch.arange(num_frames, device=x_BTD.device)
        rotation, mask = self._rotation(positions_BT), cache.mask(num_frames)
        for i, block in enumerate(self.layers):
            x_BTD = block.stream(x_BTD, rotation, cache, i, mask)
        cache.advance(num_frames)
        return x_BTD

    def _rotation(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_angles(positions_BT, self.config.dim // self.config.num_heads, self.config.max_period)
