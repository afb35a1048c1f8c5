"""The depth transformer: within one frame, predicts agent codebooks 0..7, then (16 steps) user codebooks 0..7.

Step k has its own weights. It sees the temporal output through its own input matrix, and the previous token of the
frame (step 0 sees the text token). The stack has no positions and no final norm.
"""

# Shapes: Q codebooks (depth steps), N rows (frames with loss), D width, I input width (the temporal one)

from typing import Any

import torch
from torch import Tensor, nn

from model.config import LMConfig
from model.kernels.attention import step_attention
from model.kernels.matmul import residual_dtype
from model.kernels.recompute import Block
from model.layers import Embedding, Gating, RMSNorm, StackedEmbedding, StepLinear


class DepthAttention(nn.Module):
    """Causal attention over the steps of one frame."""

    def __init__(self, config: LMConfig, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        dim = config.depformer_dim
        self.num_heads = config.depformer_num_heads
        self.in_proj = StepLinear(config.dep_q, dim, 3 * dim, device=device, dtype=dtype)
        self.out_proj = StepLinear(config.dep_q, dim, dim, device=device, dtype=dtype)

    def forward(self, x_QND: Tensor) -> Tensor:
        """[Q, N, D] -> [Q, N, D]."""
        return self.out_proj(step_attention(self.in_proj(x_QND), self.num_heads))


class DepthBlock(Block):
    """x + attention(norm1(x)), then x + gating(norm2(x)); all steps share the norms."""

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

    def forward(self, x_QND: Tensor) -> Tensor:
        """[Q, N, D] -> [Q, N, D]."""
        with self.recomputed(self.norm1, x_QND) as normed_QND:
            x_QND = x_QND + self.attention(normed_QND)
        with self.recomputed(self.norm2, x_QND) as normed_QND:
            return x_QND + self.gating(normed_QND)


class DepthTransformer(nn.Module):
    """Input maps, token tables, blocks and heads of the depth steps."""

    def __init__(
        self, config: LMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dim, steps = config.depformer_dim, config.dep_q
        self.config = config
        self.inputs = StepLinear(steps, config.dim, dim, device=device, dtype=dtype)
        self.text_emb = Embedding(config.text_card + 1, dim, device=device, dtype=dtype)
        # The last codebook is never an input.
        self.audio_emb = StackedEmbedding(steps - 1, config.card + 1, dim, device=device, dtype=dtype)
        self.layers: Any = nn.ModuleList(
            DepthBlock(config, device=device, dtype=dtype) for _ in range(config.depformer_num_layers)
        )
        self.heads = StepLinear(steps, dim, config.card, device=device, dtype=dtype)

    def forward(self, hidden_NI: Tensor, tokens_QN: Tensor) -> Tensor:
        """Teacher-forced pass over the first Q steps, up to the heads -> [Q, N, D].

        Shapes: hidden_NI: the temporal output; tokens_QN: the token that each step sees, which is the frame's text id
        in row 0 and its audio codebook k - 1 in row k.
        """
        embedded_QND = torch.cat((self.text_emb(tokens_QN[:1]), self.audio_emb(tokens_QN[1:])))
        embedded_QND = embedded_QND.to(residual_dtype(embedded_QND))
        x_QND = (self.inputs.shared(hidden_NI, len(tokens_QN)) + embedded_QND).contiguous()
        for block in self.layers:
            x_QND = block.run(x_QND)
        return x_QND
