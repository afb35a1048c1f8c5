"""Choosing tokens: greedy or top-k sampling, with one random stream per batch row.

A row draws the same numbers alone and in a batch, and on every device: the noise comes from a CPU generator of its
own, one number for each token of a frame. Shapes: B batch, V vocabulary, N tokens of a frame or of the top k.
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


def draw_uniform(generators: Sequence[Generator], uniform_BN: Tensor, rows: Sequence[int]) -> None:
    """Fills some rows of a CPU buffer with fp32 values of [0, 1), row b from generator b."""
    for row in rows:
        torch.rand(uniform_BN.shape[1], generator=generators[row], out=uniform_BN[row])


def choose_greedy(logits_BV: Tensor) -> Tensor:
    """Most likely token of each row, [B]."""
    return logits_BV.float().argmax(dim=-1)


def choose_top_k(logits_BV: Tensor, temperature: float, top_k: int, uniform_B1: Tensor) -> Tensor:
    """Samples one token [B] among the top_k most likely ones, with one uniform number in [0, 1) a row.

    The number picks a place on the cumulative probabilities in the order of the ids. Logits that differ by rounding,
    as in batches of other sizes, then give the same token, where noise that goes by rank would change hands.
    """
    logits_BN, ids_BN = logits_BV.float(), None
    if top_k < logits_BV.shape[-1]:
        logits_BN, ids_BN = logits_BN.topk(top_k, dim=-1, sorted=False)
        ids_BN, order_BN = ids_BN.sort(dim=-1)
        logits_BN = logits_BN.gather(-1, order_BN)
    sum_BN = torch.softmax(logits_BN / temperature, dim=-1).cumsum(-1)
    # kept below the whole sum, which rounding could reach: no token lies beyond it
    place_B1 = uniform_B1 * (sum_BN[:, -1:] * (1 - 2**-20))
    index_B1 = torch.searchsorted(sum_BN, place_B1, right=True)
    return (index_B1 if ids_BN is None else ids_BN.gather(-1, index_B1))[:, 0]
