"""The ring of keys and values that a conversation keeps, so that a frame costs one position, not its whole history."""

# Shapes: L layers, B batch, M some rows (of the batch), T frames, H heads, E head width, J rows x heads
# Shapes: W window (slots of the ring), P prompt frames (those that may be pinned)
# Shapes: X joined axes (keys and values of all rows and heads; old keys and new ones)

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import LMConfig
from model.errors import UserError


class RingWindow(NamedTuple):
    """What one new frame of every row writes to and reads from the ring, the same in all layers."""

    slots_X: Tensor
    """Where its keys and values go: a slot of the flat ring for each key or value, row and head."""
    keys: Sequence[Tensor]
    """Keys to read, a [J, W, E] for each layer."""
    values: Sequence[Tensor]
    """Values to read, a [J, W, E] for each layer."""
    mask_B11W: Tensor | None
    """0 for slots that a row may see, else -inf; None if it may see all of them."""


class PinnedView(NamedTuple):
    """What a frame needs to find pinned keys in their place, the same in all layers."""

    change_B1E: Tensor
    """What turns a query back to where it was when the ring was full, less 1, as complex numbers.

    The score of a pinned key changes by its product with the changed query: to turn the keys would cost far more.
    """
    is_pinned_BP: Tensor
    """Which of the first slots of each row are pinned."""


class KVCache:
    """Keys and values of the last `context` frames of every row, preallocated.

    kv: [L, 2, B, H, context, E]; the frame at position p of a row lies in slot p % context. A ring of exactly `context`
    slots is enough: with one frame at a time it holds context + 1 - 1 keys, and `append` returns the old keys beside
    the new ones. offset_B: frames seen by each row, int64, on the device. positions: the same numbers on the host.

    The first frames of a row may be pinned: they are never overwritten, and beyond the window they stay where they were
    when it was full, just before the newest frames, instead of falling behind ever further. pinned_B: how many.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        heads: int,
        context: int,
        head_dim: int,
        device: torch.device | str,
        dtype: torch.dtype,
        most_pinned: int = 0,
    ) -> None:
        """most_pinned: how many frames of a row may be pinned."""
        self.context, self.most_pinned = context, most_pinned
        self.kv = torch.zeros(layers, 2, batch, heads, context, head_dim, device=device, dtype=dtype)
        self.offset_B = torch.zeros(batch, device=device, dtype=torch.long)
        self.positions = [0] * batch
        self.pinned_B = torch.zeros(batch, device=device, dtype=torch.long)
        self.pinned = [0] * batch
        """pinned_B on the host."""
        self._flat = self.kv.view(layers, -1, head_dim).unbind(0)
        self._ring_starts_2BH = torch.arange(2 * batch * heads, device=device).view(2, batch, heads) * context
        self._slots = torch.arange(context, device=device)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Lets all rows, or only some, start again at position 0."""
        for row in range(len(self.positions)) if rows is None else rows:
            self.positions[row] = self.pinned[row] = 0
            self.offset_B[row] = self.pinned_B[row] = 0

    def pin(self, row: int) -> None:
        """Pins all frames that a row has seen so far.

        Raises: UserError if they are more than `most_pinned`, or leave no room for others.
        """
        frames = self.positions[row]
        if frames > min(self.most_pinned, self.context - 1):
            raise UserError(
                f"{frames} frames to pin, of a window of {self.context}: at most "
                f"{min(self.most_pinned, self.context - 1)} can be",
                code="bad-value",
            )
        self.pinned[row] = frames
        self.pinned_B[row] = frames

    def take_pins(self, other: "KVCache") -> None:
        """Pins what another cache of the same shape has pinned, whose keys and values have been copied here."""
        self.pinned_B.copy_(other.pinned_B)
        self.pinned = list(other.pinned)

    def view_of_pinned(self, frequencies_E: Tensor, window: RingWindow) -> PinnedView | None:
        """How the next frame of every row sees the keys that may be pinned.

        None if no key can be pinned, or no row has filled its ring: until then all keys are where they belong.
        """
        if not self.most_pinned or window.keys[0].shape[1] < self.context:
            return None
        beyond_B = (self.offset_B - (self.context - 1)).clamp(min=0)
        angles = beyond_B[:, None, None] * -frequencies_E
        is_pinned_BP = self._slots[: self.most_pinned] < self.pinned_B[:, None]
        return PinnedView(torch.polar(torch.ones_like(angles), angles) - 1, is_pinned_BP)

    def pretend_full(self) -> None:
        """Puts all rows where their windows are full, to measure a step; `reset` them afterwards."""
        self.positions = [self.context] * len(self.positions)
        self.offset_B.fill_(self.context)

    def live(self, rows: Sequence[int]) -> int:
        """Number of slots that the rows have filled once each has written one more frame."""
        return min(max((self.positions[row] for row in rows), default=0) + 1, self.context)

    def all_visible(self, rows: Sequence[int]) -> bool:
        """Whether each of the rows may see all of its `live(rows)` slots, so that no mask is needed."""
        return min((self.positions[row] for row in rows), default=0) + 1 >= self.live(rows)

    def window(self, live: int, *, masked: bool) -> RingWindow:
        """The first `live` slots, for the frame at position offset_B of each row; `masked` says whether to mask some.

        A row that does not advance may write too, because its slot holds a key too old for its next frame to see.
        """
        # Frames beyond the pinned ones take turns in the rest of the ring.
        first_B = torch.minimum(self.offset_B, self.pinned_B)
        slots_B = first_B + (self.offset_B - first_B) % (self.context - first_B)
        slots_X = (self._ring_starts_2BH + slots_B[:, None]).flatten()
        keys, values = self.kv.flatten(2, 3)[..., :live, :].unbind(1)
        mask_B11W = None
        if masked:
            hidden_BW = self._slots[:live] > self.offset_B[:, None]  # A full ring has no slot beyond its offset.
            mask_BW = torch.zeros(hidden_BW.shape, device=self.kv.device, dtype=self.kv.dtype)
            mask_B11W = mask_BW.masked_fill_(hidden_BW, float("-inf"))[:, None, None]
        return RingWindow(slots_X, keys.unbind(0), values.unbind(0), mask_B11W)

    def write(self, layer: int, window: RingWindow, kv_B2HE: Tensor) -> None:
        """Puts the keys and values of one frame of every row into the ring."""
        rows_XE = kv_B2HE.transpose(0, 1).reshape(-1, kv_B2HE.shape[-1])
        self._flat[layer].index_copy_(0, window.slots_X, rows_XE)

    def append(self, layer: int, kv_2MHTE: Tensor, rows_M: Tensor, live: int) -> Tensor:
        """Adds T frames to some rows and returns what these may attend to, [2, M, H, live + T, E].

        That is the ring as it was, and then the new frames: the first of them still needs keys that the last ones push
        out of the ring.
        """
        ring = self.kv[layer]
        visible = torch.cat((ring[:, rows_M, :, :live], kv_2MHTE), 3) if live else kv_2MHTE
        num_frames = kv_2MHTE.shape[3]
        kept = min(num_frames, self.context)
        steps_T = torch.arange(num_frames - kept, num_frames, device=rows_M.device)
        slots_MT = (self.offset_B[rows_M][:, None] + steps_T) % self.context
        ring[:, rows_M[:, None], :, slots_MT] = kv_2MHTE[:, :, :, num_frames - kept :].permute(1, 3, 0, 2, 4)
        return visible

    def append_mask(self, num_frames: int, rows_M: Tensor, live: int) -> Tensor | None:
        """Which keys of `append` each new frame may see, bool [M, 1, T, live + T]; None: those up to its own."""
        if not live and num_frames <= self.context:
            return None
        last_M1 = self.offset_B[rows_M][:, None] - 1  # The newest position that the ring holds.
        ring_MW = last_M1 - (last_M1 - self._slots[:live]) % self.context
        query_MT = last_M1 + 1 + torch.arange(num_frames, device=rows_M.device)
        position_MX = torch.cat((ring_MW, query_MT), dim=1)
        age_MTX = query_MT[:, :, None] - position_MX[:, None, :]
        # A negative position marks a slot that this row has not filled since its start.
        return ((age_MTX >= 0) & (age_MTX < self.context) & (position_MX >= 0)[:, None])[:, None]


def slot_bytes(config: LMConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one row with a full window."""
    return config.num_layers * 2 * config.dim * config.context * dtype.itemsize
