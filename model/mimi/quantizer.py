"""Split residual vector quantiser: one semantic codebook beside a residual stack of acoustic ones."""

# Shapes: B batch, T frames, D width (of the codec), Z quantiser width, Q codebooks, V vocabulary (of a codebook)

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.kernels.matmul import linear
from model.mimi.config import QuantizerConfig

USAGE_FLOOR = 1e-5
"""The least count that a centroid's sum is divided by: an entry that was never used has less."""


class Codebook(nn.Module):
    """V centroids [V, Z], stored as moving sums and counts (embedding_sum / cluster_usage)."""

    _initialized: Tensor
    cluster_usage: Tensor
    embedding_sum: Tensor
    centroids_VZ: Tensor
    half_norms_V: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.register_buffer("_initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(config.bins))
        self.register_buffer("embedding_sum", torch.randn(config.bins, config.dimension))
        self.register_buffer("centroids_VZ", torch.empty(config.bins, config.dimension), persistent=False)
        self.register_buffer("half_norms_V", torch.empty(config.bins), persistent=False)
        self.refresh()

    def refresh(self) -> None:
        """Recomputes the centroids; call it after changing the sums or the counts."""
        self.centroids_VZ = self.embedding_sum / self.cluster_usage.clamp(min=USAGE_FLOOR)[:, None]
        self.half_norms_V = self.centroids_VZ.square().sum(dim=1) / 2

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.refresh()

    def nearest(self, x_BTZ: Tensor) -> Tensor:
        """Index [B, T] of the nearest centroid."""
        # The scores are -|x - c|^2 / 2 without |x|^2, which is the same for every centroid.
        scores_BTV = x_BTZ @ self.centroids_VZ.t() - self.half_norms_V
        return scores_BTV.argmax(dim=-1)

    def lookup(self, codes_BT: Tensor) -> Tensor:
        """The centroids [B, T, Z] of some codes."""
        return F.embedding(codes_BT, self.centroids_VZ)


class Layer(nn.Module):
    """Holds a codebook: the public names say vq.layers.{i}._codebook."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self._codebook = Codebook(config)


class Stack(nn.Module):
    """Holds the layers: the public names say vq.layers."""

    def __init__(self, count: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(count)])


class ResidualQuantizer(nn.Module):
    """A stack of codebooks, each of which quantises what the ones before it left over."""

    def __init__(self, count: int, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv1d(width, config.dimension, 1, bias=False)
        self.output_proj = nn.Conv1d(config.dimension, width, 1, bias=False)
        self.vq = Stack(count, config)

    @property
    def codebooks(self) -> list[Codebook]:
        """The codebooks in order."""
        return [layer._codebook for layer in self.vq.layers if isinstance(layer, Layer)]

    def project_in(self, latent_BDT: Tensor) -> Tensor:
        """Latents at the quantiser's width, [B, D, T] -> [B, T, Z]."""
        return linear(latent_BDT.transpose(1, 2), self.input_proj.weight[..., 0])

    def project_out(self, quantized_BTZ: Tensor) -> Tensor:
        """Quantised vectors at the codec's width, [B, T, Z] -> [B, D, T]."""
        return linear(quantized_BTZ, self.output_proj.weight[..., 0]).transpose(1, 2)

    def encode(self, latent_BDT: Tensor, count: int) -> list[Tensor]:
        """Codes of the first `count` codebooks, [B, T] each."""
        residual_BTZ, codes = self.project_in(latent_BDT), []
        for codebook in self.codebooks[:count]:
            codes.append(codebook.nearest(residual_BTZ))
            residual_BTZ = residual_BTZ - codebook.lookup(codes[-1])
        return codes

    def decode(self, codes_BQT: Tensor) -> Tensor:
        """The sum of the centroids at the codec's width, [B, Q, T] -> [B, D, T]."""
        columns = zip(self.codebooks, codes_BQT.unbind(1), strict=False)
        return self.project_out(torch.stack([codebook.lookup(codes) for codebook, codes in columns]).sum(0))


class SplitQuantizer(nn.Module):
    """Codebook 0 (semantic) and the acoustic stack quantise the same latent; their outputs are added."""

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.rvq_first = ResidualQuantizer(1, config, width)
        self.rvq_rest = ResidualQuantizer(config.n_q - 1, config, width)

    def encode(self, latent_BDT: Tensor, count: int) -> Tensor:
        """Codes of the first `count` codebooks, [B, count, T], int64."""
        codes = self.rvq_first.encode(latent_BDT, 1) + self.rvq_rest.encode(latent_BDT, count - 1)
        return torch.stack(codes, dim=1)

    def decode(self, codes_BQT: Tensor) -> Tensor:
        """The latent [B, D, T] of codes of 1 to n_q codebooks."""
        latent_BDT = self.rvq_first.decode(codes_BQT[:, :1])
        if codes_BQT.shape[1] > 1:
            latent_BDT = latent_BDT + self.rvq_rest.decode(codes_BQT[:, 1:])
        return latent_BDT
