"""The patch decoder: causal ConvNeXt blocks at 100 Hz, whose steps end as short spectra that overlap.

Where the mirrored SEANet spends its time on long signals of few channels, this one multiplies matrices; and since it
says magnitudes by their logarithm, quiet frequencies are as easy to learn as loud ones.
Source: Vocos (arXiv 2306.00814), here with windows that reach back no further than one step.
"""

# Shapes: B batch, C channels (frequencies at the end), T frames (steps of a layer's own rate), S samples (of a step)
# Shapes: D width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.mimi.config import MimiConfig, PatchConfig
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d, ConvState

MOST_LOG_MAGNITUDE = 6.0
"""A full-scale sine has e^4.8 under a window of 480 samples."""


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


class SpectrumHead(nn.Module):
    """A spectrum a step, whose inverse transform is windowed and added to its own samples and the next's."""

    def __init__(self, width: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.out = nn.Linear(width, 2 * (hop + 1))

    def forward(self, x_BTC: Tensor, state: ConvState | None = None) -> Tensor:
        """[B, T, C] -> [B, 1, T * hop]; with a state, it adds what the last call carried over."""
        magnitude_BTC, phase_BTC = self.out(x_BTC).chunk(2, dim=-1)
        spectrum_BTC = torch.polar(magnitude_BTC.clamp(max=MOST_LOG_MAGNITUDE).exp(), phase_BTC)
        window_S = torch.hann_window(2 * self.hop, device=x_BTC.device)
        pieces = torch.fft.irfft(spectrum_BTC, 2 * self.hop) * window_S
        own_BTS, next_BTS = pieces.split(self.hop, dim=2)
        carried_B1S = None if state is None else state.kept.get(self)
        if carried_B1S is None:
            carried_B1S = next_BTS.new_zeros(len(x_BTC), 1, self.hop)
        if state is not None:
            state.keep(self, next_BTS[:, -1:])
        return (own_BTS + torch.cat([carried_B1S, next_BTS[:, :-1]], dim=1)).flatten(1)[:, None]


class PatchDecoder(nn.Module):
    """[B, D, T] -> [B, 1, samples] at the rates of the SEANet decoder."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        assert config.patch is not None
        patch = config.patch
        self.upsample = CausalConvTranspose1d(config.seanet.dimension, patch.width, config.patches_a_step)
        self.blocks = nn.ModuleList([PatchBlock(patch) for _ in range(patch.layers)])
        self.norm = nn.LayerNorm(patch.width)
        self.spectrum = SpectrumHead(patch.width, patch.hop)

    def forward(self, latent_BDT: Tensor, state: ConvState | None = None) -> Tensor:
        """The decoded audio, [B, 1, samples]."""
        x_BCT = self.upsample(latent_BDT, state)
        for block in self.blocks:
            x_BCT = block(x_BCT, state)
        return self.spectrum(self.norm(x_BCT.transpose(1, 2)), state)
