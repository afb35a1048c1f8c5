"""The depth transformer one step at a time: the tokens of one frame."""

# Shapes: Q codebooks (depth steps), L layers, B batch, D width, I input width (the temporal one), V vocabulary
# Shapes: H heads, E head width, J rows x heads

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.depth import DepthTransformer
from model.kernels.pointwise import gated
from model.streaming.step_maps import BlockMaps, norm_map, shared_map, step_maps


class DepthCache:
    """Queries, keys and values of the steps taken in the current frame, qkv: [L, Q, 3, B, H, E].

    The next frame may reuse it without clearing, because step 0 starts over. The views that the steps write to and
    read from are made once: lists over the steps, then over the layers.
    """

    def __init__(self, qkv: Tensor) -> None:
        layers, steps, _, batch, heads, width = qkv.shape
        self.written_B3D = [[qkv[i, k].flatten(2).transpose(0, 1) for i in range(layers)] for k in range(steps)]
        flat = qkv.view(layers, steps, 3, batch * heads, width)
        self.query_J1E = [[flat[i, k, 0, :, None] for i in range(layers)] for k in range(steps)]
        self.keys_JEQ = [[flat[i, : k + 1, 1].permute(1, 2, 0) for i in range(layers)] for k in range(steps)]
        self.values_JQE = [[flat[i, : k + 1, 2].transpose(0, 1) for i in range(layers)] for k in range(steps)]


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
        """Empty working space of one frame of `batch` rows."""
        shape = (self.num_layers, self.num_steps, 3, batch, self.num_heads, self.head_dim)
        return DepthCache(torch.zeros(shape, device=device, dtype=dtype))

    @torch.no_grad()
    def generate(
        self,
        hidden_BI: Tensor,
        text_B: Tensor,
        choose: Callable[[int, Tensor], Tensor],
        cache: DepthCache,
        num_steps: int | None = None,
    ) -> list[Tensor]:
        """Runs the first steps of one frame and returns the tokens chosen, [B] each.

        Shapes: hidden_BI: the temporal output; text_B: the frame's text ids.
        choose(k, logits_BV) returns the token of codebook k for every row: sampled, greedy, or forced.
        num_steps: None runs all steps of the stream.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        inputs_QBD = self.inputs(hidden_BI)
        tokens, token_B = [], text_B
        for k in range(num_steps):
            x_BD = inputs_QBD[k] + F.embedding(token_B, self.tables[k])
            for i, block in enumerate(self.blocks[k]):
                x_BD = self._block(k, i, block, x_BD, cache)
            token_B = choose(k, self.heads[k](x_BD))
            tokens.append(token_B)
        return tokens

    def _block(self, k: int, i: int, block: BlockMaps, x_BD: Tensor, cache: DepthCache) -> Tensor:
        qkv_B3D = block.in_proj(block.norm1(x_BD)).view(len(x_BD), 3, -1)
        cache.written_B3D[k][i].copy_(qkv_B3D)
        if k == 0:  # With one key, attention returns the value of that key.
            y_BD = qkv_B3D[:, 2]
        else:
            # On a handful of keys plain matmuls are faster than the fused attention kernels.
            query_J1E, keys_JEQ = cache.query_J1E[k][i], cache.keys_JEQ[k][i]
            scores_J1Q = torch.baddbmm(self.no_bias, query_J1E, keys_JEQ, beta=0, alpha=self.scale)
            y_BD = torch.bmm(scores_J1Q.softmax(-1), cache.values_JQE[k][i]).view(x_BD.shape)
        x_BD = x_BD + block.out_proj(y_BD)
        return x_BD + block.linear_out(gated(block.linear_in(block.norm2(x_BD))))
