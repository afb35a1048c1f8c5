"""Distances of spectra, and judges that learn to tell decoded speech from real by them."""

# Shapes: B batch, S samples, C channels (frequencies), T frames (of a spectrum)

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import SAMPLE_RATE

SCALES = ((256, 20, 6, 1.0), (512, 40, 3, 1.0), (1024, 64, 1, 1.0), (2048, 96, 1, 0.5))
"""STFT length, mel bands, frames averaged, weight. Short windows are averaged to about 16 ms: below that the loss would
punish pitch pulses and noise for not falling at the same sample, which no code of 900 bit/s can promise."""
FLOOR = 1e-4
"""Mel magnitudes below -80 dBFS count as silence."""
JUDGED = ((512, 128), (1024, 256), (2048, 512))
"""STFT length and hop of each judge."""
SLOPE = 0.2


class SpectralLoss(nn.Module):
    """Distance of mel envelopes over several window lengths."""

    def __init__(self) -> None:
        super().__init__()
        for number, (length, bands, _, _) in enumerate(SCALES):
            self.register_buffer(f"bank{number}", mel_bank(length, bands), persistent=False)

    def forward(self, made_BS: Tensor, wanted_BS: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
        """(mean absolute log difference, relative linear difference), each averaged over the scales.

        step: takes only every second scale, others at odd steps than at even ones, which halves the work of a step.
        """
        log, linear = made_BS.new_zeros(()), made_BS.new_zeros(())
        taken = [n for n in range(len(SCALES)) if step is None or n % 2 == step % 2]
        for number in taken:
            length, _, pool, weight = SCALES[number]
            bank = self.get_buffer(f"bank{number}")
            made, wanted = (envelope(x_BS, length, length // 4, bank, pool) for x_BS in (made_BS, wanted_BS))
            log = log + weight * ((made + FLOOR).log() - (wanted + FLOOR).log()).abs().mean()
            linear = linear + weight * (made - wanted).abs().mean() / (wanted.mean() + 0.003)
        total = sum(SCALES[number][3] for number in taken)
        return log / total, linear / total


def envelope(audio_BS: Tensor, length: int, hop: int, bank: Tensor, pool: int) -> Tensor:
    """Mel magnitudes [B, bands, frames]: root of the power, averaged over `pool` frames; a full-scale sine has 1."""
    window = torch.hann_window(length, device=audio_BS.device)
    bins = torch.view_as_real(torch.stft(audio_BS, length, hop, window=window, return_complex=True))
    power = torch.matmul(bank, bins.square().sum(-1)) * (2 / window.sum()) ** 2
    return (F.avg_pool1d(power, pool) + 1e-10).sqrt()


def mel_bank(length: int, bands: int) -> Tensor:
    """Triangular filters [bands, length / 2 + 1] on the mel scale from 0 to 12 kHz; each sums its bins."""
    hertz = torch.linspace(0, SAMPLE_RATE / 2, length // 2 + 1)
    mels = torch.linspace(0, 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    # Narrow low bands would fall between two bins, so they are widened to one bin.
    step = SAMPLE_RATE / length
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2]).clamp(min=step)[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1]).clamp(min=step)[:, None]
    return torch.minimum(rise, fall).clamp(min=0)


class Judge(nn.Module):
    """Looks at log magnitudes of one resolution, with all frequencies as channels; one verdict a frame."""

    def __init__(self, length: int, hop: int, width: int = 128) -> None:
        super().__init__()
        self.length, self.hop = length, hop
        sizes = (length // 2 + 1, width, width, width)
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(a, b, 5, padding=2)) for a, b in itertools.pairwise(sizes)
        )
        self.verdict = nn.utils.parametrizations.weight_norm(nn.Conv1d(width, 1, 3, padding=1))

    def forward(self, audio_BS: Tensor) -> list[Tensor]:
        """The layers' outputs, the verdict [B, 1, T] last; above 0 means real."""
        window = torch.hann_window(self.length, device=audio_BS.device)
        bins = torch.stft(audio_BS, self.length, self.hop, window=window, return_complex=True)
        power = torch.view_as_real(bins).square().sum(-1) * (2 / window.sum()) ** 2
        x_BCT = 0.2 * (power + FLOOR**2).log()
        seen = []
        for layer in self.layers:
            x_BCT = F.leaky_relu(layer(x_BCT), SLOPE)
            seen.append(x_BCT)
        return [*seen, self.verdict(x_BCT)]


class Adversary(nn.Module):
    """Judges of several resolutions, with the hinge losses of the EnCodec paper (arXiv 2210.13438)."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = nn.ModuleList(Judge(length, hop) for length, hop in JUDGED)

    def judge_loss(self, made_BS: Tensor, wanted_BS: Tensor) -> Tensor:
        """What the judges are trained by; `made_BS` gets no gradient."""
        losses = [
            F.relu(1 - judge(wanted_BS)[-1]).mean() + F.relu(1 + judge(made_BS.detach())[-1]).mean()
            for judge in self.judges
        ]
        return torch.stack(losses).mean()

    def codec_loss(self, made_BS: Tensor, wanted_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(how well the codec fools the judges, relative distance of what they see inside)."""
        fooled, inside = [], []
        for judge in self.judges:
            with torch.no_grad():
                real = judge(wanted_BS)
            made = judge(made_BS)
            fooled.append(F.relu(1 - made[-1]).mean())
            pairs = zip(made[:-1], real[:-1], strict=True)
            inside.append(torch.stack([(a - b).abs().mean() / b.abs().mean().clamp(min=1e-6) for a, b in pairs]).mean())
        return torch.stack(fooled).mean(), torch.stack(inside).mean()
