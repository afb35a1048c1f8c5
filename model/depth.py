"""The depth transformer: within one frame, predicts agent codebooks 0..7, then (16 steps) user codebooks 0..7.

Step k has its own weights. It sees the temporal output through its own input matrix, plus the previous token of the
frame (step 0: the text token). No positions, no final norm.
"""

# Shapes: K depth steps, N rows (frames with loss), B batch, D temporal width, d depth width, H heads, V vocabulary

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import LMConfig
from model.layers import Embedding, Gating, RMSNorm, StackedEmbedding, StepLinear


@dataclass
class DepthCache:
    """Keys and values of the steps taken in the current frame, [layers, B, H, K, head_dim] each."""

    keys: Tensor
    values: Tensor


class DepthAttention(nn.Module):
    """Causal attention over the steps of one frame."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        dim = config.depformer_dim
        self.num_heads = config.depformer_num_heads
        self.scale = (dim // self.num_heads) ** -0.5
        self.in_proj = StepLinear(config.dep_q, dim, 3 * dim, device=device, dtype=dtype)
        self.out_proj = StepLinear(config.dep_q, dim, dim, device=device, dtype=dtype)

    def forward(self, x_KNd: Tensor) -> Tensor:
        num_steps, num_rows, _ = x_KNd.shape
        qkv = self.in_proj(x_KNd).unflatten(-1, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
        query, key, value = qkv.flatten(1, 2).unbind(0)  # each [N * H, K, head_dim]
        # Plain matmuls: fused attention kernels are slow on sequences of 16 (a quarter of a bf16 step on a CPU).
        future_KK = torch.full((num_steps, num_steps), float("-inf"), device=x_KNd.device, dtype=query.dtype).triu(1)
        scores = torch.baddbmm(future_KK[None], query, key.transpose(1, 2), alpha=self.scale)
        y = torch.bmm(scores.softmax(-1).to(value.dtype), value)
        return self.out_proj(y.unflatten(0, (num_rows, -1)).permute(2, 0, 1, 3).flatten(2))

    def step(self, k: int, x_Bd: Tensor, keys_BHKd: Tensor, values_BHKd: Tensor) -> Tensor:
        query, key, value = self.in_proj.step(k, x_Bd).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        keys_BHKd[:, :, k] = key
        values_BHKd[:, :, k] = value
        scores = torch.matmul(query[:, :, None] * self.scale, keys_BHKd[:, :, : k + 1].transpose(2, 3))
        y = torch.matmul(scores.softmax(-1).to(values_BHKd.dtype), values_BHKd[:, :, : k + 1])
        return self.out_proj.step(k, y.flatten(1))


class DepthBlock(nn.Module):
    """x + attention(norm1(x)), then x + gating(norm2(x)); the norms are shared by all steps."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        dim, hidden, steps = config.depformer_dim, config.depformer_hidden, config.dep_q
        self.norm1 = RMSNorm(dim, device=device, dtype=dtype)
        self.attention = DepthAttention(config, device=device, dtype=dtype)
        self.norm2 = RMSNorm(dim, device=device, dtype=dtype)
        self.gating = Gating(
            StepLinear(steps, dim, 2 * hidden, device=device, dtype=dtype),
            StepLinear(steps, hidden, dim, device=device, dtype=dtype),
        )

    def forward(self, x_KNd: Tensor) -> Tensor:
        x_KNd = x_KNd + self.attention(self.norm1(x_KNd))
        return x_KNd + self.gating(self.norm2(x_KNd))

    def step(self, k: int, x_Bd: Tensor, keys_BHKd: Tensor, values_BHKd: Tensor) -> Tensor:
        x_Bd = x_Bd + self.attention.step(k, self.norm1(x_Bd), keys_BHKd, values_BHKd)
        return x_Bd + self.gating.step(k, self.norm2(x_Bd))


class DepthTransformer(nn.Module):
    """Input maps, token tables, blocks and heads of the depth steps. `remat`: recompute blocks in the backward pass."""

    def __init__(
        self, config: LMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dim, steps = config.depformer_dim, config.dep_q
        self.config = config
        self.remat = False
        self.inputs = StepLinear(steps, config.dim, dim, device=device, dtype=dtype)
        self.text_emb = Embedding(config.text_card + 1, dim, device=device, dtype=dtype)
        # the last codebook is never an input
        self.audio_emb = StackedEmbedding(steps - 1, config.card + 1, dim, device=device, dtype=dtype)
        self.layers: Any = nn.ModuleList(
            DepthBlock(config, device=device, dtype=dtype) for _ in range(config.depformer_num_layers)
        )
        self.heads = StepLinear(steps, dim, config.card, device=device, dtype=dtype)

    def forward(self, hidden_ND: Tensor, tokens_KN: Tensor) -> Tensor:
        """Teacher-forced pass over the first K steps, up to the heads -> [K, N, d].

        tokens_KN: the token each step sees: row 0 the frame's text id, row k the frame's audio codebook k - 1.
        """
        embedded_KNd = torch.cat((self.text_emb(tokens_KN[:1]), self.audio_emb(tokens_KN[1:])))
        x_KNd = self.inputs.shared(hidden_ND, len(tokens_KN)) + embedded_KNd
        for block in self.layers:
            if self.remat and torch.is_grad_enabled():
                x_KNd = checkpoint(block, x_KNd, use_reentrant=False)
            else:
                x_KNd = block(x_KNd)
        return x_KNd

    def init_cache(self, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> DepthCache:
        """Cache of one frame. It may be reused for the next: step 0 starts over, no clearing needed."""
        config = self.config
        head_dim = config.depformer_dim // config.depformer_num_heads
        shape = (config.depformer_num_layers, batch, config.depformer_num_heads, config.dep_q, head_dim)
        return DepthCache(
            keys=torch.zeros(shape, device=device, dtype=dtype), values=torch.zeros(shape, device=device, dtype=dtype)
        )

    def step(self, k: int, hidden_BD: Tensor, token_B: Tensor, cache: DepthCache) -> Tensor:
        """Logits [B, V] of codebook k, given the frame's temporal output and previous token. Call k = 0, 1, ..."""
        token_Bd = self.text_emb(token_B) if k == 0 else self.audio_emb.step(k - 1, token_B)
        x_Bd = self.inputs.step(k, hidden_BD) + token_Bd
        for i, block in enumerate(self.layers):
            x_Bd = block.step(k, x_Bd, cache.keys[i], cache.values[i])
        return self.heads.step(k, x_Bd)

    def generate(
        self,
        hidden_BD: Tensor,
        text_B: Tensor,
        choose: Callable[[int, Tensor], Tensor],
        num_steps: int,
        cache: DepthCache | None = None,
    ) -> Tensor:
        """Runs steps 0..num_steps-1 of one frame -> the chosen tokens [B, num_steps].

        choose(k, logits_BV) returns the token of codebook k for every row: sampled, greedy, or forced.
        """
        if cache is None:
            cache = self.init_cache(hidden_BD.shape[0], device=hidden_BD.device, dtype=hidden_BD.dtype)
        tokens, token_B = [], text_B
        for k in range(num_steps):
            token_B = choose(k, self.step(k, hidden_BD, token_B, cache))
            tokens.append(token_B)
        return torch.stack(tokens, dim=1)
