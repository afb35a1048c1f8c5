"""Training of the split quantiser: straight-through gradients, moving-average codebooks, restart of dead entries.

Shapes: B batch, T frames, N = B * T vectors, D codec width, Q quantiser width, V entries of a codebook.
Source: moving averages and restarts as in the EnCodec and Moshi papers (arXiv 2210.13438, 2410.00037).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.mimi.quantizer import Codebook, ResidualQuantizer, SplitQuantizer

DECAY = 0.99  # of the moving averages: they remember about 100 steps
DEAD_SHARE = 0.05  # an entry used less than this share of an even use is restarted
KMEANS_ROUNDS = 12


def quantize_with_gradient(quantizer: SplitQuantizer, latent_BDT: Tensor, acoustic: int) -> tuple[Tensor, Tensor]:
    """Quantised latent [B, D, T] whose gradient passes straight through, and the commitment loss.

    Also moves the codebooks towards what they were given. `acoustic`: how many acoustic codebooks to use (quantiser
    dropout picks fewer than all of them).
    """
    first_BDT, first_loss = _residual(quantizer.rvq_first, latent_BDT, 1)
    rest_BDT, rest_loss = _residual(quantizer.rvq_rest, latent_BDT, acoustic)
    return first_BDT + rest_BDT, first_loss + rest_loss


def pass_unquantized(quantizer: SplitQuantizer, latent_BDT: Tensor) -> Tensor:
    """The same projections without codebooks: for the first steps, before there is anything worth clustering."""
    halves = (quantizer.rvq_first, quantizer.rvq_rest)
    first_BDT, rest_BDT = (half.project_out(half.project_in(latent_BDT)) for half in halves)
    return first_BDT + rest_BDT


@torch.no_grad()
def init_codebooks(quantizer: SplitQuantizer, latent_BDT: Tensor) -> None:
    """K-means of each codebook in turn on what the ones before it leave. Give several vectors an entry."""
    for half in (quantizer.rvq_first, quantizer.rvq_rest):
        residual_NQ = half.project_in(latent_BDT).flatten(0, 1)
        for codebook in half.codebooks:
            _kmeans(codebook, residual_NQ)
            residual_NQ = residual_NQ - codebook.lookup(codebook.nearest(residual_NQ))


def _residual(half: ResidualQuantizer, latent_BDT: Tensor, count: int) -> tuple[Tensor, Tensor]:
    x_BTQ = half.project_in(latent_BDT)
    residual_BTQ, total_BTQ = x_BTQ, torch.zeros_like(x_BTQ)
    losses = []
    for codebook in half.codebooks[:count]:
        codes_BT = codebook.nearest(residual_BTQ.detach())
        chosen_BTQ = codebook.lookup(codes_BT)
        losses.append(F.mse_loss(residual_BTQ, chosen_BTQ))
        _follow(codebook, residual_BTQ.detach().flatten(0, 1), codes_BT.flatten())
        residual_BTQ, total_BTQ = residual_BTQ - chosen_BTQ, total_BTQ + chosen_BTQ
    straight_BTQ = x_BTQ + (total_BTQ - x_BTQ).detach()
    return half.project_out(straight_BTQ), torch.stack(losses).mean()


@torch.no_grad()
def _follow(codebook: Codebook, x_NQ: Tensor, codes_N: Tensor) -> None:
    """One step of the moving averages; entries that nothing uses restart at a vector of this batch."""
    usage_V = torch.bincount(codes_N, minlength=len(codebook.cluster_usage)).to(x_NQ.dtype)
    sums_VQ = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes_N, x_NQ)
    codebook.cluster_usage.lerp_(usage_V, 1 - DECAY)
    codebook.embedding_sum.lerp_(sums_VQ, 1 - DECAY)
    even = codebook.cluster_usage.mean()
    dead = (codebook.cluster_usage < DEAD_SHARE * even).nonzero()[:, 0]
    if len(dead):
        # At half of an even use: enough to live for some 200 steps without a hit.
        donors = torch.randint(len(x_NQ), (len(dead),), device=x_NQ.device)
        codebook.cluster_usage[dead] = even / 2
        codebook.embedding_sum[dead] = x_NQ[donors] * even / 2
    codebook.refresh()


def _kmeans(codebook: Codebook, x_NQ: Tensor) -> None:
    entries = len(codebook.cluster_usage)
    codebook.embedding_sum.copy_(x_NQ[torch.randint(len(x_NQ), (entries,), device=x_NQ.device)])
    codebook.cluster_usage.fill_(1)
    codebook.refresh()
    for _ in range(KMEANS_ROUNDS):
        codes_N = codebook.nearest(x_NQ)
        usage_V = torch.bincount(codes_N, minlength=entries).to(x_NQ.dtype)
        sums_VQ = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes_N, x_NQ)
        empty = usage_V == 0
        sums_VQ[empty] = x_NQ[torch.randint(len(x_NQ), (int(empty.sum()),), device=x_NQ.device)]
        codebook.cluster_usage.copy_(usage_V.clamp(min=1))
        codebook.embedding_sum.copy_(sums_VQ)
        codebook.refresh()
    codebook.cluster_usage.mul_(1 / codebook.cluster_usage.mean())
    codebook.embedding_sum.copy_(codebook.centroids_VQ * codebook.cluster_usage[:, None])
