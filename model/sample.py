"""Choosing tokens: greedy or top-k sampling, with one random stream per batch row.

A row draws the same numbers alone and in a batch, and on every device: the noise comes from a CPU generator of its
own, one block a frame. Shapes: B batch, V vocabulary, N noise values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from model.errors import UserError


@dataclass(kw_only=True, frozen=True)
class Sampling:
    """How tokens are chosen; the defaults are those of the published runtimes. top_k 0 means the whole vocabulary."""

    greedy: bool = False
    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)}: must be positive; for no randomness choose greedy")
        for name in ("text_top_k", "audio_top_k"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 (whole vocabulary) or more")


def row_generators(batch: int, seeds: Sequence[int] | None) -> list[Generator]:
    """One CPU generator per row; without seeds each gets a fresh random one. Raises UserError on a wrong count."""
    if seeds is not None and len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for a batch of {batch}: give one per row")
    generators = [Generator() for _ in range(batch)]
    for row, generator in enumerate(generators):
        if seeds is None:
            generator.seed()
        else:
            generator.manual_seed(seeds[row])
    return generators


def draw_noise(generators: Sequence[Generator], noise_BN: Tensor, rows: Sequence[int]) -> None:
    """Fills some rows of a CPU buffer with fp32 values of the exponential distribution, row b from generator b."""
    for row in rows:
        uniform_N = torch.rand(noise_BN.shape[1], generator=generators[row], out=noise_BN[row])
        # 1 - u lies in (0, 1]: the logarithm stays finite; the floor keeps a division by it finite too
        uniform_N.neg_().log1p_().neg_().clamp_min_(1e-20)


def choose_greedy(logits_BV: Tensor) -> Tensor:
    """Most likely token of each row, [B]."""
    return logits_BV.float().argmax(dim=-1)


def choose_top_k(logits_BV: Tensor, temperature: float, noise_BN: Tensor) -> Tensor:
    """Samples one token [B] among the N most likely ones, N = noise_BN.shape[1], with exponential noise.

    p_i / e_i with e_i exponential is largest at i with probability p_i / sum(p): no multinomial, no synchronisation.
    """
    top_BN, ids_BN = logits_BV.float().topk(noise_BN.shape[1], dim=-1)
    winner_B1 = (torch.softmax(top_BN / temperature, dim=-1) / noise_BN).argmax(dim=-1, keepdim=True)
    return ids_BN.gather(-1, winner_B1)[:, 0]
