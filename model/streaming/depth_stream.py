"""The depth transformer one step at a time: the tokens of one frame."""

# Shapes: K depth steps, L layers, B batch, D temporal width, d depth width, H heads, w head width, V vocabulary

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.depth import DepthTransformer
from model.kernels.pointwise import gated
from model.streaming.step_maps import BlockMaps, norm_map, shared_map, step_maps


class DepthCache:
    """Queries, keys and values of the steps taken in the current frame, qkv: [L, K, 3, B, H, w].

    It may be reused for the next frame: step 0 starts over, no clearing needed. The views that the steps write to and
    read from are made once, N = B * H.
    """

    def __init__(self, qkv: Tensor) -> None:
        layers, steps, _, batch, heads, width = qkv.shape
        self.written_B3d = [[qkv[i, k].flatten(2).transpose(0, 1) for i in range(layers)] for k in range(steps)]
        flat = qkv.view(layers, steps, 3, batch * heads, width)
        self.query_N1w = [[flat[i, k, 0, :, None] for i in range(layers)] for k in range(steps)]
        self.keys_NwK = [[flat[i, : k + 1, 1].permute(1, 2, 0) for i in range(layers)] for k in range(steps)]
        self.values_NKw = [[flat[i, : k + 1, 2].transpose(0, 1) for i in range(layers)] for k in range(steps)]


class DepthStream:
    """The first `num_steps` steps of a depth transformer, for inference."""

    def __init__(self, depth: DepthTransformer, num_steps: int) -> None:
        config = depth.config
        self.num_steps, self.num_heads = num_steps, config.depformer_num_heads
        self.num_layers, self.head_dim = config.depformer_num_layers, config.depformer_dim // self.num_heads
        self.scale = self.head_dim**-0.5
        self.inputs = shared_map(depth.inputs, num_steps)
        self.tables = [depth.text_emb.weight.detach(), *depth.audio_emb.weight.detach()[: num_steps - 1].unbind(0)]
        self.heads = step_maps(depth.heads, num_steps)
        blocks = [self._blocks(layer) for layer in depth.layers]
        self.blocks = [[steps[k] for steps in blocks] for k in range(num_steps)]
        self.no_bias = depth.text_emb.weight.new_zeros(())

    def _blocks(self, layer: Any) -> list[BlockMaps]:
        attention, gating = layer.attention, layer.gating
        maps = [step_maps(m, self.num_steps) for m in (attention.in_proj, attention.out_proj)]
        maps += [step_maps(m, self.num_steps) for m in (gating.linear_in, gating.linear_out)]
        norm1, norm2 = norm_map(layer.norm1), norm_map(layer.norm2)
        return [BlockMaps(norm1, a, b, norm2, c, d) for a, b, c, d in zip(*maps, strict=True)]

    def init_cache(self, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> DepthCache:
        """Working space of one frame."""
        shape = (self.num_layers, self.num_steps, 3, batch, self.num_heads, self.head_dim)
        return DepthCache(torch.zeros(shape, device=device, dtype=dtype))

    @torch.no_grad()
    def generate(
        self,
        hidden_BD: Tensor,
        text_B: Tensor,
        choose: Callable[[int, Tensor], Tensor],
        cache: DepthCache,
        num_steps: int | None = None,
    ) -> list[Tensor]:
        """Runs the first steps of one frame -> the chosen tokens, [B] each.

        text_B: the frame's text ids. choose(k, logits_BV) returns the token of codebook k for every row: sampled,
        greedy, or forced.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        inputs_KBd = self.inputs(hidden_BD)
        tokens, token_B = [], text_B
        for k in range(num_steps):
            x_Bd = inputs_KBd[k] + F.embedding(token_B, self.tables[k])
            for i, block in enumerate(self.blocks[k]):
                x_Bd = self._block(k, i, block, x_Bd, cache)
            token_B = choose(k, self.heads[k](x_Bd))
            tokens.append(token_B)
        return tokens

    def _block(self, k: int, i: int, block: BlockMaps, x_Bd: Tensor, cache: DepthCache) -> Tensor:
        qkv_B3d = block.in_proj(block.norm1(x_Bd)).view(len(x_Bd), 3, -1)
        cache.written_B3d[k][i].copy_(qkv_B3d)
        if k == 0:  # one key: its value is the answer
            y_Bd = qkv_B3d[:, 2]
        else:
            # plain matmuls: on a handful of keys they are faster than the fused attention kernels
            query_N1w, keys_NwK = cache.query_N1w[k][i], cache.keys_NwK[k][i]
            scores_N1K = torch.baddbmm(self.no_bias, query_N1w, keys_NwK, beta=0, alpha=self.scale)
            y_Bd = torch.bmm(scores_N1K.softmax(-1), cache.values_NKw[k][i]).view(x_Bd.shape)
        x_Bd = x_Bd + block.out_proj(y_Bd)
        return x_Bd + block.linear_out(gated(block.linear_in(block.norm2(x_Bd))))
