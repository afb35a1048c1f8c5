"""The ring of keys and values that a conversation keeps: a frame then costs one position, not its whole history."""

# Shapes: L layers, B batch, R some rows of the batch, T frames, S slots, H heads, C context (ring size), d head width

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """What one new frame of every row writes to and reads from the ring, the same in all layers.

    slots_N: where its keys and values go, N = 2 * B * H. keys, values: per layer [B * H, S, d].
    mask: which slots a row may see, [B, 1, 1, S], 0 or -inf; None: all of them.
    """

    slots_N: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    mask: Tensor | None


class KVCache:
    """Keys and values of the last `context` frames of every row, preallocated.

    kv: [L, 2, B, H, C, d]; the frame at position p of a row lies in slot p % C. A ring of exactly `context` slots is
    enough: one frame at a time it holds context + 1 - 1 keys, and `append` hands out the old keys beside the new ones.
    offset_B: frames seen by each row (int64, on the device). positions: the same numbers, known to the host.
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
    ) -> None:
        self.context = context
        self.kv = torch.zeros(layers, 2, batch, heads, context, head_dim, device=device, dtype=dtype)
        self.offset_B = torch.zeros(batch, device=device, dtype=torch.long)
        self.positions = [0] * batch
        self._flat = self.kv.view(layers, -1, head_dim).unbind(0)
        self._ring_starts_2BH = torch.arange(2 * batch * heads, device=device).view(2, batch, heads) * context
        self._slots_C = torch.arange(context, device=device)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forgets everything, or only some rows: they start again at position 0."""
        for row in range(len(self.positions)) if rows is None else rows:
            self.positions[row] = 0
            self.offset_B[row] = 0

    def live(self, rows: Sequence[int]) -> int:
        """Slots that the rows have filled once each has written one more frame."""
        return min(max((self.positions[row] for row in rows), default=0) + 1, self.context)

    def all_visible(self, rows: Sequence[int]) -> bool:
        """Whether each of the rows may see all of its `live(rows)` slots, so that no mask is needed."""
        return min((self.positions[row] for row in rows), default=0) + 1 >= self.live(rows)

    def window(self, live: int, *, masked: bool) -> Window:
        """The first `live` slots, for the frame at position offset_B of each row.

        A row that does not advance may write too: its slot holds a key too old for its next frame to see.
        """
        slots_N = (self._ring_starts_2BH + (self.offset_B % self.context)[:, None]).flatten()
        keys, values = self.kv.flatten(2, 3)[..., :live, :].unbind(1)
        mask = None
        if masked:
            hidden_BS = self._slots_C[:live] > self.offset_B[:, None]  # a full ring has no slot beyond its offset
            mask = torch.zeros(hidden_BS.shape, device=self.kv.device, dtype=self.kv.dtype)
            mask = mask.masked_fill_(hidden_BS, float("-inf"))[:, None, None]
        return Window(slots_N, keys.unbind(0), values.unbind(0), mask)

    def write(self, layer: int, window: Window, kv_B2Hd: Tensor) -> None:
        """Puts one frame of every row into the ring."""
        rows_Nd = kv_B2Hd.transpose(0, 1).reshape(-1, kv_B2Hd.shape[-1])
        self._flat[layer].index_copy_(0, window.slots_N, rows_Nd)

    def append(self, layer: int, kv_2RHTd: Tensor, rows_R: Tensor, live: int) -> Tensor:
        """Adds T frames to some rows and returns what they may attend to, [2, R, H, live + T, d].

        That is the ring as it was, then the new frames, because the first of them still needs keys that the last ones
        push out.
        """
        ring = self.kv[layer]
        visible = torch.cat((ring[:, rows_R, :, :live], kv_2RHTd), 3) if live else kv_2RHTd
        num_frames = kv_2RHTd.shape[3]
        kept = min(num_frames, self.context)
        steps_T = torch.arange(num_frames - kept, num_frames, device=rows_R.device)
        slots_RT = (self.offset_B[rows_R][:, None] + steps_T) % self.context
        ring[:, rows_R[:, None], :, slots_RT] = kv_2RHTd[:, :, :, num_frames - kept :].permute(1, 3, 0, 2, 4)
        return visible

    def append_mask(self, num_frames: int, rows_R: Tensor, live: int) -> Tensor | None:
        """Which of the keys returned by `append` each new frame may see, [R, 1, T, live + T] bool; None: causal."""
        if not live and num_frames <= self.context:
            return None
        last_R1 = self.offset_B[rows_R][:, None] - 1  # newest position that the ring holds
        ring_RS = last_R1 - (last_R1 - self._slots_C[:live]) % self.context
        query_RT = last_R1 + 1 + torch.arange(num_frames, device=rows_R.device)
        position_RS = torch.cat((ring_RS, query_RT), dim=1)
        age_RTS = query_RT[:, :, None] - position_RS[:, None, :]
        # a negative position marks a slot that this row has not filled since its start
        return ((age_RTS >= 0) & (age_RTS < self.context) & (position_RS >= 0)[:, None])[:, None]
