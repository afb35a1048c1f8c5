"""Training of the split quantiser: straight-through gradients, moving-average codebooks, restart of dead entries.

Source: moving averages and restarts as in the EnCodec and Moshi papers (arXiv 2210.13438, 2410.00037).
"""

# Shapes: B batch, T frames, N rows (B x T vectors), D width (of the codec), Z quantiser width
# Shapes: V vocabulary (entries of a codebook)

import torch
from torch import Tensor
from torch.nn import functional as F

from model.mimi.quantizer import Codebook, ResidualQuantizer, SplitQuantizer

DECAY = 0.99
"""Decay of the moving averages, which remember about 100 steps."""
DEAD_SHARE = 0.05
"""Share of an even use below which an entry is restarted."""
KMEANS_ROUNDS = 12


def quantize_with_gradient(
    quantizer: SplitQuantizer, latent_BDT: Tensor, acoustic: int, *, follow: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """What the semantic and what the acoustic codebooks say of a latent, [B, D, T] each, and the commitment loss.

    Their sum is the quantised latent; gradients pass straight through. The codebooks move towards the vectors that
    they quantise, unless `follow` is false. acoustic: how many acoustic codebooks to use, fewer than all of them under
    quantiser dropout.
    """
    first_BDT, first_loss = _residual(quantizer.rvq_first, latent_BDT, 1, follow)
    rest_BDT, rest_loss = _residual(quantizer.rvq_rest, latent_BDT, acoustic, follow)
    return first_BDT, rest_BDT, first_loss + rest_loss


def pass_unquantized(quantizer: SplitQuantizer, latent_BDT: Tensor) -> tuple[Tensor, Tensor]:
    """The same projections without codebooks, for the first steps, whose vectors are not worth clustering yet."""
    first, rest = quantizer.rvq_first, quantizer.rvq_rest
    return first.project_out(first.project_in(latent_BDT)), rest.project_out(rest.project_in(latent_BDT))


@torch.no_grad()
def init_codebooks(quantizer: SplitQuantizer, latent_BDT: Tensor) -> None:
    """Fills each codebook in turn by k-means of what the ones before it leave; give several vectors an entry."""
    for half in (quantizer.rvq_first, quantizer.rvq_rest):
        residual_NZ = half.project_in(latent_BDT).flatten(0, 1)
        for codebook in half.codebooks:
            _kmeans(codebook, residual_NZ)
            residual_NZ = residual_NZ - codebook.lookup(codebook.nearest(residual_NZ))


def _residual(half: ResidualQuantizer, latent_BDT: Tensor, count: int, follow: bool) -> tuple[Tensor, Tensor]:
    x_BTZ = half.project_in(latent_BDT)
    residual_BTZ, total_BTZ = x_BTZ, torch.zeros_like(x_BTZ)
    losses = []
    for codebook in half.codebooks[:count]:
        codes_BT = codebook.nearest(residual_BTZ.detach())
        chosen_BTZ = codebook.lookup(codes_BT)
        losses.append(F.mse_loss(residual_BTZ, chosen_BTZ))
        if follow:
            _follow(codebook, residual_BTZ.detach().flatten(0, 1), codes_BT.flatten())
        residual_BTZ, total_BTZ = residual_BTZ - chosen_BTZ, total_BTZ + chosen_BTZ
    straight_BTZ = x_BTZ + (total_BTZ - x_BTZ).detach()
    return half.project_out(straight_BTZ), torch.stack(losses).mean()


@torch.no_grad()
def _follow(codebook: Codebook, x_NZ: Tensor, codes_N: Tensor) -> None:
    """Moves the averages by one step; entries that no vector uses restart at a vector of this batch."""
    usage_V = torch.bincount(codes_N, minlength=len(codebook.cluster_usage)).to(x_NZ.dtype)
    sums_VZ = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes_N, x_NZ)
    codebook.cluster_usage.lerp_(usage_V, 1 - DECAY)
    codebook.embedding_sum.lerp_(sums_VZ, 1 - DECAY)
    even = codebook.cluster_usage.mean()
    dead = (codebook.cluster_usage < DEAD_SHARE * even).nonzero()[:, 0]
    if len(dead):
        # They restart at half of an even use, with which they live for some 200 steps without a hit.
        donors = torch.randint(len(x_NZ), (len(dead),), device=x_NZ.device)
        codebook.cluster_usage[dead] = even / 2
        codebook.embedding_sum[dead] = x_NZ[donors] * even / 2
    codebook.refresh()


def _kmeans(codebook: Codebook, x_NZ: Tensor) -> None:
    entries = len(codebook.cluster_usage)
    codebook.embedding_sum.copy_(x_NZ[torch.randint(len(x_NZ), (entries,), device=x_NZ.device)])
    codebook.cluster_usage.fill_(1)
    codebook.refresh()
    for _ in range(KMEANS_ROUNDS):
        codes_N = codebook.nearest(x_NZ)
        usage_V = torch.bincount(codes_N, minlength=entries).to(x_NZ.dtype)
        sums_VZ = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes_N, x_NZ)
        empty = usage_V == 0
        sums_VZ[empty] = x_NZ[torch.randint(len(x_NZ), (int(empty.sum()),), device=x_NZ.device)]
        codebook.cluster_usage.copy_(usage_V.clamp(min=1))
        codebook.embedding_sum.copy_(sums_VZ)
        codebook.refresh()
    codebook.cluster_usage.mul_(1 / codebook.cluster_usage.mean())
    codebook.embedding_sum.copy_(codebook.centroids_VZ * codebook.cluster_usage[:, None])
