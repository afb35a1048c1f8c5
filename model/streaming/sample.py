"""Choosing tokens: greedy or top-k sampling, with one random stream per batch row.

A row draws the same numbers alone and in a batch, and on every device, because its noise comes from a CPU generator of
its own: one number for each token of a frame.
"""

# Shapes: B batch, A agent streams (9: the tokens of a frame), V vocabulary, M some tokens (the top k)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from model.errors import UserError


@dataclass(kw_only=True, frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are those of the published runtimes.

    Raises: UserError if a temperature is not positive, or a top_k negative.
    """

    greedy: bool = False
    """Take the most likely token always; the other fields then have no effect."""
    text_temperature: float = 0.7
    text_top_k: int = 25
    """Likeliest text tokens among which one is drawn; 0 means the whole vocabulary."""
    audio_temperature: float = 0.8
    audio_top_k: int = 250
    """Likeliest entries of a codebook among which one is drawn; 0 means all."""

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(
                    f"{name}={getattr(self, name)}: must be positive; for no randomness choose greedy", code="bad-value"
                )
        for name in ("text_top_k", "audio_top_k"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 (whole vocabulary) or more", code="bad-value")


class RowSampling:
    """The sampling of each row, as tensors [B, 1] that a captured step reads; `most` bounds every row's top k.

    A row that is greedy draws from one token.
    """

    def __init__(self, batch: int, most: Sampling, cards: tuple[int, int], device: torch.device) -> None:
        """cards: entries of the text vocabulary and of a codebook."""
        self.most, self.cards = most, cards
        self.text_temperature_B1, self.audio_temperature_B1 = torch.ones(2, batch, 1, device=device).unbind(0)
        self.text_k_B1, self.audio_k_B1 = torch.ones(2, batch, 1, device=device, dtype=torch.int64).unbind(0)
        self.set(range(batch), [most] * batch)

    def check(self, sampling: Sampling) -> tuple[int, int]:
        """Top k of text and audio of one row. Raises: UserError above those that the stream was made for."""
        found = []
        for name, card in zip(("text_top_k", "audio_top_k"), self.cards, strict=True):
            asked, allowed = (min(getattr(which, name) or card, card) for which in (sampling, self.most))
            if asked > allowed and not sampling.greedy:
                raise UserError(
                    f"{name}={getattr(sampling, name)}: this stream draws from {allowed} at most", code="bad-value"
                )
            found.append(1 if sampling.greedy else asked)
        return found[0], found[1]

    def set(self, rows: Sequence[int], samplings: Sequence[Sampling]) -> None:
        """Gives some rows their sampling. Raises: UserError above the bounds of the stream."""
        for row, sampling in zip(rows, samplings, strict=True):
            self.text_k_B1[row], self.audio_k_B1[row] = self.check(sampling)
            self.text_temperature_B1[row] = sampling.text_temperature
            self.audio_temperature_B1[row] = sampling.audio_temperature


def row_generators(batch: int, seeds: Sequence[int] | None) -> list[Generator]:
    """One CPU generator a row; without seeds each gets a fresh random one.

    Raises: UserError if there is not one seed a row.
    """
    if seeds is not None and len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for a batch of {batch}: give one per row", code="bad-combination")
    generators = [Generator() for _ in range(batch)]
    for row, generator in enumerate(generators):
        if seeds is None:
            generator.seed()
        else:
            generator.manual_seed(seeds[row])
    return generators


def draw_uniform(generators: Sequence[Generator], uniform_BA: Tensor, rows: Sequence[int]) -> None:
    """Fills some rows of a CPU buffer with fp32 values in [0, 1), row b from generator b."""
    for row in rows:
        torch.rand(uniform_BA.shape[1], generator=generators[row], out=uniform_BA[row])


def choose_greedy(logits_BV: Tensor) -> Tensor:
    """The most likely token of each row, [B]."""
    return logits_BV.float().argmax(dim=-1)


def choose_top_k(logits_BV: Tensor, temperature: float, top_k: int, uniform_B1: Tensor) -> Tensor:
    """Samples one token a row, [B], among the top_k most likely ones, with one uniform number in [0, 1).

    The number picks a place on the cumulative probabilities in the order of the ids. Logits that differ by rounding,
    as in batches of other sizes, then give the same token; noise given out in the order of probability would not.
    """
    logits_BM, ids_BM = logits_BV.float(), None
    if top_k < logits_BV.shape[-1]:
        logits_BM, ids_BM = logits_BM.topk(top_k, dim=-1, sorted=False)
        ids_BM, order_BM = ids_BM.sort(dim=-1)
        logits_BM = logits_BM.gather(-1, order_BM)
    sum_BM = torch.softmax(logits_BM / temperature, dim=-1).cumsum(-1)
    # The place stays below the whole sum, which rounding could reach, because no token lies beyond it.
    place_B1 = uniform_B1 * (sum_BM[:, -1:] * (1 - 2**-20))
    index_B1 = torch.searchsorted(sum_BM, place_B1, right=True)
    return (index_B1 if ids_BM is None else ids_BM.gather(-1, index_B1))[:, 0]


def choose_by_row(logits_BV: Tensor, temperature_B1: Tensor, top_k_B1: Tensor, most: int, uniform_B1: Tensor) -> Tensor:
    """As `choose_top_k`, with a temperature and a top k for each row; `most` is the largest k, and static.

    What a row gets does not depend on the other rows' settings.
    """
    logits_BM, ids_BM = logits_BV.float().topk(most, dim=-1, sorted=True)
    hidden_BM = torch.arange(most, device=logits_BV.device) >= top_k_B1
    logits_BM = (logits_BM / temperature_B1).masked_fill(hidden_BM, float("-inf"))
    ids_BM, order_BM = ids_BM.sort(dim=-1)
    sum_BM = torch.softmax(logits_BM.gather(-1, order_BM), dim=-1).cumsum(-1)
    place_B1 = uniform_B1 * (sum_BM[:, -1:] * (1 - 2**-20))
    # In a row without numbers (NaN) no place is found; it must not end the other rows' conversations.
    index_B1 = torch.searchsorted(sum_BM, place_B1, right=True).clamp_(max=most - 1)
    # Equal logits come in no particular order out of topk, while a greedy row takes the first, as `choose_greedy`.
    return torch.where(top_k_B1 == 1, choose_greedy(logits_BV)[:, None], ids_BM.gather(-1, index_B1))[:, 0]
