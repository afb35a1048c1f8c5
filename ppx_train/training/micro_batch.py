"""A micro-batch as the loader makes it: everything that a forward pass would otherwise ask a GPU for is found here."""

# Shapes: B batch, K streams, M some, T frames

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.config import ZERO_ID, LMConfig
from model.duplex import LossRows, loss_rows
from ppx_train.config.parts import Loss
from ppx_train.training.loss import target_weights
from ppx_train.training.sequences import TrainingSequence


@dataclass
class MicroBatch:
    """Sequences padded to the longest, with all that a forward pass would otherwise ask a GPU for.

    codes_BKT int64 (ZERO_ID on padding); weights_BKT fp32, the loss weight of each target; lengths in frames; rows:
    which positions carry loss.
    """

    codes_BKT: Tensor
    weights_BKT: Tensor
    lengths: tuple[int, ...]
    rows: LossRows
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    dropped: tuple[tuple[str, ...], ...]
    """The parts of its prompt that each sequence goes without, see TrainingSequence."""

    @property
    def frames(self) -> int:
        """Frames that are not padding."""
        return sum(self.lengths)

    def to(self, device: torch.device, **_: Any) -> "MicroBatch":
        """Returns a copy on `device`; Lightning calls it with more arguments, which change nothing."""

        def there(part: Tensor) -> Tensor:
            # Only a copy from pinned memory lets the host run ahead of the GPU.
            return (part.pin_memory() if device.type == "cuda" else part).to(device, non_blocking=True)

        text_M, audio_M, num_steps = self.rows
        return replace(
            self,
            codes_BKT=there(self.codes_BKT),
            weights_BKT=there(self.weights_BKT),
            rows=LossRows(there(text_M), there(audio_M), num_steps),
        )

    def without_loss(self) -> "MicroBatch":
        """Returns the same sequences with no loss on any of them."""
        nothing = self.codes_BKT.new_zeros(1)
        return replace(
            self, weights_BKT=torch.zeros_like(self.weights_BKT), rows=LossRows(nothing, nothing, num_steps=1)
        )


def collate(sequences: Sequence[TrainingSequence], loss: Loss, lm: LMConfig) -> MicroBatch:
    """Pads sequences to one length and weighs their targets; padding adds no embedding and no loss."""
    lengths = tuple(sequence.codes_KT.shape[1] for sequence in sequences)
    streams = sequences[0].codes_KT.shape[0]
    codes_BKT = torch.full((len(sequences), streams, max(lengths)), ZERO_ID, dtype=torch.int64)
    has_loss_BT = torch.zeros(len(sequences), max(lengths), dtype=torch.bool)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        codes_BKT[row, :, :length] = sequence.codes_KT
        has_loss_BT[row, :length] = sequence.has_loss_T
    weights_BKT = target_weights(codes_BKT, has_loss_BT, torch.tensor(lengths), loss, lm)
    return MicroBatch(
        codes_BKT=codes_BKT,
        weights_BKT=weights_BKT,
        lengths=lengths,
        rows=loss_rows(lm, codes_BKT, weights_BKT, lengths),
        ids=tuple(sequence.id for sequence in sequences),
        sources=tuple(sequence.source for sequence in sequences),
        dropped=tuple(sequence.dropped for sequence in sequences),
    )
