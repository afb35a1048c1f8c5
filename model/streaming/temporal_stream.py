"""The temporal transformer on a cache: one frame of every row, or a prompt of some rows in one pass."""

# Shapes: B batch, M some rows (of the batch), T frames, D width, H heads, E head width, J rows x heads
# Shapes: W window (slots of the ring), P prompt frames (those that may be pinned)

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.attention import fused_attention
from model.kernels.pointwise import gated, rotary_frequencies
from model.layers import RMSNorm
from model.streaming.kv_cache import KVCache, PinnedView, RingWindow
from model.streaming.step_maps import BlockMaps, linear_map, norm_map
from model.temporal import TemporalTransformer

PIECE_FRAMES = 1024
"""Frames of a prompt in one pass, which bounds the attention mask whatever the prompt's length."""


class TemporalStream:
    """A temporal transformer and the norm behind it, for inference; all state is in the `KVCache`."""

    def __init__(self, temporal: TemporalTransformer, out_norm: RMSNorm) -> None:
        config = temporal.config
        self.config, self.num_heads = config, config.num_heads
        self.head_dim = config.dim // config.num_heads
        self.blocks = [_block(layer) for layer in temporal.layers]
        self.out_norm = norm_map(out_norm)
        device = out_norm.alpha.device
        self.frequencies = rotary_frequencies(self.head_dim, config.max_period, device)
        self.one, self.zero = torch.ones((), device=device), torch.zeros((), device=device)
        self.scale = self.head_dim**-0.5
        # For one query a CPU is faster with plain products than with the fused kernel, which is made for many queries.
        self.plain_attention = device.type == "cpu" and out_norm.alpha.dtype == torch.float32

    def init_cache(
        self, batch: int, *, device: torch.device | str, dtype: torch.dtype, most_pinned: int = 0
    ) -> KVCache:
        """Empty cache for `batch` rows, of which each may pin up to `most_pinned` frames."""
        return KVCache(
            layers=len(self.blocks),
            batch=batch,
            heads=self.num_heads,
            context=self.config.context,
            head_dim=self.head_dim,
            device=device,
            dtype=dtype,
            most_pinned=most_pinned,
        )

    @torch.no_grad()
    def step(self, x_BD: Tensor, cache: KVCache, window: RingWindow) -> Tensor:
        """Output [B, D] for the next frame of every row; it writes the ring, and the caller advances the rows."""
        turn = self._turn(cache.offset_B)
        pinned = cache.view_of_pinned(self.frequencies, window)
        for i, block in enumerate(self.blocks):
            qkv_B3HE = self._qkv(block, x_BD, turn)
            cache.write(i, window, qkv_B3HE[:, 1:])
            y = self._attend(qkv_B3HE[:, 0], window.keys[i], window.values[i], window.mask_B11W, pinned)
            x_BD = _rest(block, x_BD, y.reshape(x_BD.shape))
        return self.out_norm(x_BD)

    def _attend(
        self,
        query_BHE: Tensor,
        keys_JWE: Tensor,
        values_JWE: Tensor,
        mask_B11W: Tensor | None,
        pinned: PinnedView | None,
    ) -> Tensor:
        """Attention of one frame: B x H x E values, in any shape."""
        batch = len(query_BHE)
        bias = mask_B11W if pinned is None else self._bias_of_pinned(query_BHE, keys_JWE, mask_B11W, pinned)
        if not self.plain_attention:
            keys, values = (x.view(batch, self.num_heads, -1, self.head_dim) for x in (keys_JWE, values_JWE))
            return F.scaled_dot_product_attention(query_BHE[:, :, None], keys, values, attn_mask=bias)
        query_J1E = query_BHE.reshape(-1, 1, self.head_dim)
        keys_JEW = keys_JWE.transpose(1, 2)
        if bias is None:
            scores_J1W = torch.baddbmm(self.zero, query_J1E, keys_JEW, beta=0, alpha=self.scale)
        else:
            bias_J1W = bias.expand(-1, self.num_heads, -1, -1).reshape(len(keys_JWE), 1, -1)
            scores_J1W = torch.baddbmm(bias_J1W, query_J1E, keys_JEW, alpha=self.scale)
        return torch.bmm(scores_J1W.softmax(-1), values_JWE)

    def _bias_of_pinned(
        self, query_BHE: Tensor, keys_JWE: Tensor, mask_B11W: Tensor | None, pinned: PinnedView
    ) -> Tensor:
        """The mask, and for pinned keys what their place adds to their scores: [B, H, 1, W]."""
        pairs = torch.view_as_complex(query_BHE.float().unflatten(-1, (-1, 2)))
        change_J1E = torch.view_as_real(pairs * pinned.change_B1E).to(query_BHE.dtype).view(-1, 1, self.head_dim)
        num_pinned = pinned.is_pinned_BP.shape[1]
        change_J1P = torch.bmm(change_J1E, keys_JWE[:, :num_pinned].transpose(1, 2)) * self.scale
        change_BHP = change_J1P.view(*query_BHE.shape[:2], num_pinned)
        bias_BH1W = query_BHE.new_zeros(*query_BHE.shape[:2], 1, keys_JWE.shape[1])
        bias_BH1W[:, :, 0, :num_pinned] = change_BHP.masked_fill(~pinned.is_pinned_BP[:, None], 0)
        return bias_BH1W if mask_B11W is None else bias_BH1W + mask_B11W

    @torch.no_grad()
    def extend(self, x_MTD: Tensor, cache: KVCache, rows: list[int]) -> Tensor:
        """Outputs [M, T, D] for the next T frames of some rows, which advance; the others stay as they are."""
        rows_M = torch.tensor(rows, device=x_MTD.device)
        return torch.cat([self._extend(piece, cache, rows, rows_M) for piece in x_MTD.split(PIECE_FRAMES, 1)], 1)

    def _extend(self, x_MTD: Tensor, cache: KVCache, rows: list[int], rows_M: Tensor) -> Tensor:
        num_frames = x_MTD.shape[1]
        live = min(max(cache.positions[row] for row in rows), cache.context)
        mask = cache.append_mask(num_frames, rows_M, live)
        positions_MT = cache.offset_B[rows_M][:, None] + torch.arange(num_frames, device=x_MTD.device)
        turn = self._turn(positions_MT)
        for i, block in enumerate(self.blocks):
            qkv_3MHTE = self._qkv(block, x_MTD, turn).permute(2, 0, 3, 1, 4)
            keys, values = cache.append(i, qkv_3MHTE[1:], rows_M, live)
            y = fused_attention(qkv_3MHTE[0], keys, values, attn_mask=mask, is_causal=mask is None)
            x_MTD = _rest(block, x_MTD, y.transpose(1, 2).reshape(x_MTD.shape))
        cache.offset_B.index_add_(0, rows_M, torch.full_like(rows_M, num_frames))
        for row in rows:
            cache.positions[row] += num_frames
        return self.out_norm(x_MTD)

    def _turn(self, positions: Tensor) -> Tensor:
        """Rotary angles as complex numbers of length 1, [.., 1, E / 2]."""
        return torch.polar(self.one, positions[..., None, None] * self.frequencies)

    def _qkv(self, block: BlockMaps, x: Tensor, turn: Tensor) -> Tensor:
        """Query, key and value of [.., D] inputs as [.., 3, H, E], the first two turned by their positions."""
        qkv = block.in_proj(block.norm1(x))
        # Seen as complex numbers, the interleaved pairs of all queries and keys turn by one multiplication in place.
        wide = qkv.float()
        pairs = torch.view_as_complex(wide.view(*x.shape[:-1], 3 * self.num_heads, -1, 2))
        pairs[..., : 2 * self.num_heads, :].mul_(turn)
        return wide.to(qkv.dtype).view(*x.shape[:-1], 3, self.num_heads, self.head_dim)


def _rest(block: BlockMaps, x: Tensor, attended: Tensor) -> Tensor:
    """The part of a block that follows its attention."""
    x = x + block.out_proj(attended)
    return x + block.linear_out(gated(block.linear_in(block.norm2(x))))


def _block(layer: Any) -> BlockMaps:
    return BlockMaps(
        norm1=norm_map(layer.norm1),
        in_proj=linear_map(layer.attention.in_proj),
        out_proj=linear_map(layer.attention.out_proj),
        norm2=norm_map(layer.norm2),
        linear_in=linear_map(layer.gating.linear_in),
        linear_out=linear_map(layer.gating.linear_out),
    )
