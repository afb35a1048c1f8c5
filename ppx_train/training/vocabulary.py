"""Another text vocabulary than that of the start weights: the rows that its pieces begin with.

Three tables have a row for each piece. A piece that both tokenizers have keeps its rows. Any other begins with the mean
of the rows of the pieces into which the old tokenizer splits it, which is where the model has met that spelling, if
anywhere. Where the old tokenizer cannot spell it, it begins near the mean of all old pieces. The special ids 0 to 3 and
the initial id keep their rows and their meaning.

Source: the mean of the old pieces is common practice, such as in tokenizer transfer of language models (fast vocabulary
transfer, Gee et al. 2022). The mean of all with a little noise is Hewitt's (2021), and what J-Moshi's public code does
with every row but the special ones of the two embedding tables; its text head starts as it was.
"""

# Shapes: V vocabulary, D width

import functools

import torch
from torch import Tensor

from model.errors import UserError
from model.text import SPECIAL_NAMES, TextTokenizer
from model.weights.sources import tokenizer_path
from ppx_train.config.run import Run
from ppx_train.training.optim import TEXT_TABLES

NOISE = 1e-5
"""Variance of the noise of a row without a source, over that of the old rows in each column. Source: J-Moshi's code."""


class NewVocabulary:
    """For each id of a new tokenizer the ids of the old one whose rows it begins with."""

    def __init__(self, old: TextTokenizer, new: TextTokenizer, card: int) -> None:
        """card: rows of the model, without the initial id.

        Raises: UserError if the tokenizers are the same, or one has not as many pieces as the model.
        """
        for tokenizer in (old, new):
            if tokenizer.card != card:
                raise UserError(
                    f"{tokenizer.path}: {tokenizer.card} pieces, but the model has rows for {card} "
                    "(model.lm.text_card): train the tokenizer with as many",
                    code="bad-combination",
                )
        if old.pieces == new.pieces:
            raise UserError(
                f"model.init_tokenizer={old.path} has the same pieces as model.tokenizer={new.path}: leave it out",
                code="bad-combination",
            )
        special = len(SPECIAL_NAMES)
        numbers = {piece: i for i, piece in enumerate(old.pieces) if i >= special}
        self.sources: list[list[int]] = [[i] for i in range(special)]
        for i, piece in enumerate(new.pieces[special:], special):
            spelt = old.spell(piece) if new.is_text(i) else []
            self.sources.append([numbers[piece]] if piece in numbers else spelt)
        self.kept = sum(piece in numbers for piece in new.pieces[special:])
        self.unknown = sum(not ids for ids in self.sources)

    def describe(self) -> str:
        """Describes in one line where the rows come from."""
        ordinary = len(self.sources) - len(SPECIAL_NAMES)
        mixed = ordinary - self.kept - self.unknown
        return (
            f"text vocabulary: of {ordinary:,} pieces {self.kept:,} keep their rows, {mixed:,} begin as the mean of "
            f"old pieces, {self.unknown:,} near the mean of all"
        )

    def rows(self, name: str, table_VD: Tensor) -> Tensor:
        """Returns the start of one of TEXT_TABLES from its old values, in their type; other weights as they are."""
        if name not in TEXT_TABLES:
            return table_VD
        old_VD, special = table_VD.float(), len(SPECIAL_NAMES)
        new_VD = old_VD.clone()  # With the initial id behind the pieces, where a table has one.
        ordinary_VD = old_VD[special : len(self.sources)]
        spread_D = (NOISE * ordinary_VD.var(0, correction=0)).sqrt()
        noise = torch.Generator().manual_seed(TEXT_TABLES.index(name))
        for i, ids in enumerate(self.sources):
            if ids:
                new_VD[i] = old_VD[ids].mean(0)
            else:
                new_VD[i] = ordinary_VD.mean(0) + spread_D * torch.randn(len(spread_D), generator=noise)
        return new_VD.to(table_VD.dtype)


def new_vocabulary(run: Run) -> NewVocabulary | None:
    """Returns what becomes of the start's vocabulary; None if the run keeps it.

    Raises: UserError for a tokenizer that is missing or unfit.
    """
    if run.model.init_tokenizer is None:
        return None
    return _new_vocabulary(run.model.init_tokenizer, run.model.tokenizer, run.model.lm.text_card)


@functools.lru_cache(maxsize=1)
def _new_vocabulary(old: str, new: str, card: int) -> NewVocabulary:
    return NewVocabulary(TextTokenizer(tokenizer_path(old)), TextTokenizer(tokenizer_path(new)), card)
