"""The temporal transformer on a cache: one frame of every row, or a prompt of some rows in one pass."""

# Shapes: B batch, R some rows of the batch, T frames, D width, H heads, d head width, S keys

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.pointwise import gated, rotary_frequencies
from model.layers import RMSNorm
from model.streaming.kv_cache import KVCache, Window
from model.streaming.step_maps import BlockMaps, linear_map, norm_map
from model.temporal import TemporalTransformer

PIECE_FRAMES = 1024  # of a prompt in one pass: bounds the attention mask, whatever the prompt's length


class TemporalStream:
    """A temporal transformer and the norm behind it, for inference. It holds no state: that is the `KVCache`."""

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
        # For one query a CPU is faster with plain products than with the fused kernel, which is made for many.
        self.plain_attention = device.type == "cpu" and out_norm.alpha.dtype == torch.float32

    def init_cache(self, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Empty cache for `batch` rows."""
        return KVCache(
            layers=len(self.blocks),
            batch=batch,
            heads=self.num_heads,
            context=self.config.context,
            head_dim=self.head_dim,
            device=device,
            dtype=dtype,
        )

    @torch.no_grad()
    def step(self, x_BD: Tensor, cache: KVCache, window: Window) -> Tensor:
        """Output [B, D] for the next frame of every row. Writes the ring; advancing the rows is up to the caller."""
        turn_B1p = self._turn(cache.offset_B)
        for i, block in enumerate(self.blocks):
            qkv_B3Hd = self._qkv(block, x_BD, turn_B1p)
            cache.write(i, window, qkv_B3Hd[:, 1:])
            y = self._attend(qkv_B3Hd[:, 0], window.keys[i], window.values[i], window.mask)
            x_BD = _rest(block, x_BD, y.reshape(x_BD.shape))
        return self.out_norm(x_BD)

    def _attend(self, query_BHd: Tensor, keys_NSd: Tensor, values_NSd: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one frame, N = B * H, in any shape."""
        batch = len(query_BHd)
        if not self.plain_attention:
            keys, values = (x.view(batch, self.num_heads, -1, self.head_dim) for x in (keys_NSd, values_NSd))
            return F.scaled_dot_product_attention(query_BHd[:, :, None], keys, values, attn_mask=mask)
        query_N1d = query_BHd.reshape(-1, 1, self.head_dim)
        keys_NdS = keys_NSd.transpose(1, 2)
        if mask is None:
            scores_N1S = torch.baddbmm(self.zero, query_N1d, keys_NdS, beta=0, alpha=self.scale)
        else:
            mask_N1S = mask.expand(-1, self.num_heads, -1, -1).reshape(len(keys_NSd), 1, -1)
            scores_N1S = torch.baddbmm(mask_N1S, query_N1d, keys_NdS, alpha=self.scale)
        return torch.bmm(scores_N1S.softmax(-1), values_NSd)

    @torch.no_grad()
    def extend(self, x_RTD: Tensor, cache: KVCache, rows: list[int]) -> Tensor:
        """Outputs [R, T, D] for the next T frames of some rows, which advance; the others stay as they are."""
        rows_R = torch.tensor(rows, device=x_RTD.device)
        return torch.cat([self._extend(piece, cache, rows, rows_R) for piece in x_RTD.split(PIECE_FRAMES, 1)], 1)

    def _extend(self, x_RTD: Tensor, cache: KVCache, rows: list[int], rows_R: Tensor) -> Tensor:
        num_frames = x_RTD.shape[1]
        live = min(max(cache.positions[row] for row in rows), cache.context)
        mask = cache.append_mask(num_frames, rows_R, live)
        positions_RT = cache.offset_B[rows_R][:, None] + torch.arange(num_frames, device=x_RTD.device)
        turn_RT1p = self._turn(positions_RT)
        for i, block in enumerate(self.blocks):
            qkv_3RHTd = self._qkv(block, x_RTD, turn_RT1p).permute(2, 0, 3, 1, 4)
            keys, values = cache.append(i, qkv_3RHTd[1:], rows_R, live)
            y = F.scaled_dot_product_attention(qkv_3RHTd[0], keys, values, attn_mask=mask, is_causal=mask is None)
            x_RTD = _rest(block, x_RTD, y.transpose(1, 2).reshape(x_RTD.shape))
        cache.offset_B.index_add_(0, rows_R, torch.full_like(rows_R, num_frames))
        for row in rows:
            cache.positions[row] += num_frames
        return self.out_norm(x_RTD)

    def _turn(self, positions: Tensor) -> Tensor:
        """Rotary angles as complex numbers of length 1, [.., 1, d / 2]."""
        return torch.polar(self.one, positions[..., None, None] * self.frequencies)

    def _qkv(self, block: BlockMaps, x: Tensor, turn: Tensor) -> Tensor:
        """Query, key and value of [.., D] inputs, the first two turned, as [.., 3, H, d]."""
        qkv = block.in_proj(block.norm1(x))
        # interleaved pairs are complex numbers: one multiplication in place turns queries and keys of all heads
        wide = qkv.float()
        pairs = torch.view_as_complex(wide.view(*x.shape[:-1], 3 * self.num_heads, -1, 2))
        pairs[..., : 2 * self.num_heads, :].mul_(turn)
        return wide.to(qkv.dtype).view(*x.shape[:-1], 3, self.num_heads, self.head_dim)


def _rest(block: BlockMaps, x: Tensor, attended: Tensor) -> Tensor:
    """The block after its attention."""
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
