"""The ring of keys and values that a conversation keeps: a frame then costs one position, not its whole history."""

# Shapes: L layers, B batch, T frames, S keys, H heads, C context (ring size)

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Keys and values of the last `context` frames of every row.

    keys, values: [L, B, H, C, head_dim]; the frame at position p of a row lies in slot p % C.
    offset_B: frames seen by each row (int64). `seen` is the largest of them, known to the host so that only
    live slots are read; `aligned` is true while all rows are at the same position, when no mask is needed.
    """

    keys: Tensor
    values: Tensor
    offset_B: Tensor
    seen: int = 0
    aligned: bool = True

    @property
    def context(self) -> int:
        return self.keys.shape[3]

    def reset(self, rows_B: Tensor | None = None) -> None:
        """Forgets everything, or only the rows where rows_B (bool) is true: they start again at position 0."""
        if rows_B is None or bool(rows_B.all()):
            self.offset_B.zero_()
            self.seen, self.aligned = 0, True
        elif bool(rows_B.any()):
            self.offset_B.masked_fill_(rows_B, 0)
            self.aligned = False

    def advance(self, num_frames: int) -> None:
        self.offset_B += num_frames
        self.seen += num_frames

    def append(self, layer: int, key_BHTd: Tensor, value_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T frames and returns all keys and values that they may attend to, [B, H, S, head_dim].

        One frame: the live slots of the ring, the new frame included. More: the ring as it was, then the new
        frames, because the first of them still needs keys that the last ones push out.
        """
        keys, values = self.keys[layer], self.values[layer]
        num_frames, live = key_BHTd.shape[2], min(self.seen, self.context)
        if num_frames > 1:
            visible = key_BHTd, value_BHTd
            if live:
                visible = torch.cat((keys[:, :, :live], key_BHTd), 2), torch.cat((values[:, :, :live], value_BHTd), 2)
        kept = min(num_frames, self.context)
        self._write(keys, key_BHTd[:, :, num_frames - kept :].detach(), num_frames - kept)
        self._write(values, value_BHTd[:, :, num_frames - kept :].detach(), num_frames - kept)
        if num_frames > 1:
            return visible
        live = min(self.seen + 1, self.context)
        return keys[:, :, :live], values[:, :, :live]

    def _write(self, ring_BHCd: Tensor, new_BHTd: Tensor, skipped: int) -> None:
        count = new_BHTd.shape[2]
        if self.aligned:
            first = (self.seen + skipped) % self.context
            head = min(count, self.context - first)
            ring_BHCd[:, :, first : first + head] = new_BHTd[:, :, :head]
            ring_BHCd[:, :, : count - head] = new_BHTd[:, :, head:]
            return
        rows_B1 = torch.arange(len(self.offset_B), device=self.offset_B.device)[:, None]
        slots_BT = (self.offset_B[:, None] + skipped + torch.arange(count, device=rows_B1.device)) % self.context
        ring_BHCd[rows_B1, :, slots_BT] = new_BHTd.transpose(1, 2).to(ring_BHCd.dtype)

    def mask(self, num_frames: int) -> Tensor | None:
        """Which of the keys returned by `append` each new frame may see, [B, 1, T, S] bool; None: all of them."""
        if num_frames == 1 and self.aligned:
            return None
        # one frame is in the ring already when it is attended to, more frames come after it
        ahead = 1 if num_frames == 1 else 0
        slots_S = torch.arange(min(self.seen + ahead, self.context), device=self.offset_B.device)
        last_B1 = self.offset_B[:, None] + ahead - 1  # newest position that the ring holds
        position_BS = last_B1 - (last_B1 - slots_S) % self.context
        frames_T = torch.arange(num_frames, device=slots_S.device)
        query_BT = self.offset_B[:, None] + frames_T
        if num_frames > 1:
            position_BS = torch.cat((position_BS, query_BT), dim=1)
        age_BTS = query_BT[:, :, None] - position_BS[:, None, :]
        # a negative position marks a slot that this row has not filled since its start
        return ((age_BTS >= 0) & (age_BTS < self.context) & (position_BS >= 0)[:, None])[:, None]
