"""The temporal transformer: one position per 80 ms frame, causal attention over the last `context` frames."""

# Shapes: B batch, T frames, S keys, D width, H heads, C context (ring size), L layers

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.config import LMConfig
from model.layers import Gating, Linear, RMSNorm, rotary_angles, rotate


@dataclass
class KVCache:
    """Keys and values of the last `context` frames of every row.

    keys, values: [L, B, H, C, head_dim]; the frame at position p of a row lies in slot p % C.
    offset_B: frames seen by each row (int64). `seen` is the largest of them, known to the host so that only
    live slots are read; `aligned` is true while all rows are at the same position, when no mask is needed.
    """

    keys: Tensor
    values: Tensor
    offset_B: Tensor
    seen: int = 0
    aligned: bool = True

    @property
    def context(self) -> int:
        return self.keys.shape[3]

    def reset(self, rows_B: Tensor | None = None) -> None:
        """Forgets everything, or only the rows where rows_B (bool) is true: they start again at position 0."""
        if rows_B is None or bool(rows_B.all()):
            self.offset_B.zero_()
            self.seen, self.aligned = 0, True
        elif bool(rows_B.any()):
            self.offset_B.masked_fill_(rows_B, 0)
            self.aligned = False

    def advance(self, num_frames: int) -> None:
        self.offset_B += num_frames
        self.seen += num_frames

    def append(self, layer: int, key_BHTd: Tensor, value_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T frames and returns all keys and values that they may attend to, [B, H, S, head_dim].

        One frame: the live slots of the ring, the new frame included. More: the ring as it was, then the new
        frames, because the first of them still needs keys that the last ones push out.
        """
        keys, values = self.keys[layer], self.values[layer]
        num_frames, live = key_BHTd.shape[2], min(self.seen, self.context)
        if num_frames > 1:
            visible = key_BHTd, value_BHTd
            if live:
                visible = torch.cat((keys[:, :, :live], key_BHTd), 2), torch.cat((values[:, :, :live], value_BHTd), 2)
        kept = min(num_frames, self.context)
        self._write(keys, key_BHTd[:, :, num_frames - kept :].detach(), num_frames - kept)
        self._write(values, value_BHTd[:, :, num_frames - kept :].detach(), num_frames - kept)
        if num_frames > 1:
            return visible
        live = min(self.seen + 1, self.context)
        return keys[:, :, :live], values[:, :, :live]

    def _write(self, ring_BHCd: Tensor, new_BHTd: Tensor, skipped: int) -> None:
        count = new_BHTd.shape[2]
        if self.aligned:
            first = (self.seen + skipped) % self.context
            head = min(count, self.context - first)
            ring_BHCd[:, :, first : first + head] = new_BHTd[:, :, :head]
            ring_BHCd[:, :, : count - head] = new_BHTd[:, :, head:]
            return
        rows_B1 = torch.arange(len(self.offset_B), device=self.offset_B.device)[:, None]
        slots_BT = (self.offset_B[:, None] + skipped + torch.arange(count, device=rows_B1.device)) % self.context
        ring_BHCd[rows_B1, :, slots_BT] = new_BHTd.transpose(1, 2).to(ring_BHCd.dtype)

    def mask(self, num_frames: int) -> Tensor | None:
        """Which of the keys returned by `append` each new frame may see, [B, 1, T, S] bool; None: all of them."""
        if num_frames == 1 and self.aligned:
            return None
        # one frame is in the ring already when it is attended to, more frames come after it
        ahead = 1 if num_frames == 1 else 0
        slots_S = torch.arange(min(self.seen + ahead, self.context), device=self.offset_B.device)
        last_B1 = self.offset_B[:, None] + ahead - 1  # newest position that the ring holds
        position_BS = last_B1 - (last_B1 - slots_S) % self.context
        frames_T = torch.arange(num_frames, device=slots_S.device)
        query_BT = self.offset_B[:, None] + frames_T
        if num_frames > 1:
            position_BS = torch.cat((position_BS, query_BT), dim=1)
        age_BTS = query_BT[:, :, None] - position_BS[:, None, :]
        # a negative position marks a slot that this row has not filled since its start
        return ((age_BTS >= 0) & (age_BTS < self.context) & (position_BS >= 0)[:, None])[:, None]


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

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        qkv = self.in_proj(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[:2], *rotation).unbind(0)
        value = qkv[2]
        if cache is None:
            y = windowed_attention(query, key, value, self.context)
        elif cache.seen == 0 and x_BTD.shape[1] > 1:
            cache.append(layer, key, value)
            y = windowed_attention(query, key, value, self.context)
        else:
            keys, values = cache.append(layer, key.to(cache.keys.dtype), value.to(cache.values.dtype))
            y = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


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

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rotation, cache, layer, mask)
        return x_BTD + self.gating(self.norm2(x_BTD))


class TemporalTransformer(nn.Module):
    """The stack of temporal blocks, without the final norm. `remat`: recompute each block in the backward pass."""

    def __init__(
        self, config: LMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.remat = False
        self.layers = nn.ModuleList(TemporalBlock(config, device=device, dtype=dtype) for _ in range(config.num_layers))

    def init_cache(self, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Empty cache for `batch` rows. The only state of streaming: hand it to `forward` with every chunk."""
        config = self.config
        shape = (config.num_layers, batch, config.num_heads, config.context, config.dim // config.num_heads)
        return KVCache(
            keys=torch.zeros(shape, device=device, dtype=dtype),
            values=torch.zeros(shape, device=device, dtype=dtype),
            offset_B=torch.zeros(batch, device=device, dtype=torch.long),
        )

    def forward(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """All positions of a sequence, or the next T >= 1 frames of a cached one: both give the same values."""
        num_frames, device = x_BTD.shape[1], x_BTD.device
        positions_BT = torch.arange(num_frames, device=device)[None]
        mask = None
        if cache is not None:
            positions_BT = positions_BT + cache.offset_B[:, None]
            mask = cache.mask(num_frames)
        rotation = rotary_angles(positions_BT, self.config.dim // self.config.num_heads, self.config.max_period)
        for i, block in enumerate(self.layers):
            if self.remat and cache is None and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rotation, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotation, cache, i, mask)
        if cache is not None:
            cache.advance(num_frames)
        return x_BTD
