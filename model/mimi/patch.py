"""The patch decoder: causal ConvNeXt blocks at 100 Hz, and one linear layer from each step to its samples.

Where the mirrored SEANet spends its time on long signals of few channels, this one multiplies matrices.
Source: Vocos (arXiv 2306.00814) for the blocks, WaveNeXt (Okamoto et al., ASRU 2023) for the linear end.
"""

# Shapes: B batch, C channels, T frames (steps of a layer's own rate), S samples, D width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.mimi.config import MimiConfig, PatchConfig
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d, ConvState


class PatchBlock(nn.Module):
    """x + scale * linear(gelu(linear(norm(filter(x))))), the filter being one a channel."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        width = config.width
        self.filter = CausalConv1d(width, width, config.kernel_size, depthwise=True)
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, width)
        self.scale = nn.Parameter(torch.full((width,), 1 / config.layers))

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        seen_BTC = self.norm(self.filter(x_BCT, state).transpose(1, 2))
        update_BTC = self.scale * self.linear2(F.gelu(self.linear1(seen_BTC)))
        return x_BCT + update_BTC.transpose(1, 2)


class PatchDecoder(nn.Module):
    """[B, D, T] -> [B, 1, S] at the rates of the SEANet decoder.

    Each step of `hop` samples also adds to the next one, so that no edges are heard between them.
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        assert config.patch is not None
        patch = config.patch
        self.upsample = CausalConvTranspose1d(config.seanet.dimension, patch.width, config.patches_a_step)
        self.blocks = nn.ModuleList([PatchBlock(patch) for _ in range(patch.layers)])
        self.norm = nn.LayerNorm(patch.width)
        self.samples = CausalConvTranspose1d(patch.width, 1, patch.hop)

    def forward(self, latent_BDT: Tensor, state: ConvState | None = None) -> Tensor:
        """The decoded audio, [B, 1, S]."""
        x_BCT = self.upsample(latent_BDT, state)
        for block in self.blocks:
            x_BCT = block(x_BCT, state)
        x_BCT = self.norm(x_BCT.transpose(1, 2)).transpose(1, 2)
        # The samples themselves need full precision: bf16 would round them to 8 bits.
        with torch.autocast(x_BCT.device.type, enabled=False):
            return self.samples(x_BCT.float(), state)
