"""A soft refresh: the prompt and the newest frames are fed anew, so that a call outlasts the window with its role.

It happens beside the conversation, in parts, and takes the old row's place between two frames. Half of what does not
belong to the prompt is forgotten at once, instead of the prompt being forgotten for ever. When this is depends on the
tokens alone, so that a call can be repeated.
"""

# Shapes: K streams, P prompt frames, T frames

import torch
from torch import Tensor

from model.streaming.state import StreamState
from model.streaming.stream import DuplexStream

AHEAD_FRAMES = 50
"""How long before the prompt would leave the window a refresh begins, 4 s; half of that it has for feeding."""
QUIET_FRAMES = 3
"""Frames without text after which it is a pause of the agent."""


def can_refresh(context: int, prompt_frames: int) -> bool:
    """Whether a window is long enough: the prompt may take half of it, and a refresh must leave room for the next."""
    return prompt_frames <= context // 2 and context - prompt_frames > 4 * AHEAD_FRAMES


def is_time(context: int, position: int) -> bool:
    """Whether a refresh of a row that stands at `position` has to begin."""
    return position >= context - AHEAD_FRAMES


class History:
    """The newest frames of a conversation, [17] each, as a refresh needs them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.frames: list[Tensor] = []
        self.quiet = 0
        """Frames since the agent's last text."""

    def add(self, frame_K: Tensor, *, is_text: bool) -> None:
        """Adds a frame, and forgets the oldest."""
        self.frames.append(frame_K)
        del self.frames[: -self.most]
        self.quiet = 0 if is_text else self.quiet + 1


class Refresh:
    """One refresh of one row, fed part by part. `frames`: how many the conversation has had since it began."""

    def __init__(self, stream: DuplexStream, prompt_KP: Tensor, history: History) -> None:
        context = stream.config.context
        kept = (context - prompt_KP.shape[1]) // 2
        self._stream = stream
        self.frames = 0
        self._state: StreamState = stream.init_state(1, for_steps=False)
        self._waiting_KT = torch.cat([prompt_KP.cpu(), *(f[:, None] for f in history.frames[-kept:])], dim=1)

    @property
    def waiting(self) -> int:
        """Frames that are still to be fed."""
        return self._waiting_KT.shape[1]

    def add(self, frame_K: Tensor) -> None:
        """A frame that the conversation has had since."""
        self._waiting_KT = torch.cat([self._waiting_KT, frame_K[:, None]], dim=1)
        self.frames += 1

    def is_due(self, history: History) -> bool:
        """Whether it takes place now: in a pause of the agent, or when there is no more time."""
        return self.frames >= AHEAD_FRAMES or (self.frames >= AHEAD_FRAMES // 2 and history.quiet >= QUIET_FRAMES)

    def feed(self, budget: int) -> int:
        """Feeds up to `budget` frames and returns how many."""
        part_KT, self._waiting_KT = self._waiting_KT[:, :budget], self._waiting_KT[:, budget:]
        if part_KT.shape[1]:
            self._stream.prefill(self._state, part_KT[None], ends=False)
        return part_KT.shape[1]

    def take_place(self, state: StreamState, row: int) -> None:
        """Puts it behind a row, with what is still waiting."""
        self.feed(self.waiting)
        self._stream.replace(state, row, self._stream.save(self._state, 0))
