"""What waits to be sent to one client: bounded, so that a client that reads slowly holds up nobody and no memory."""

# Shapes: S samples (of a frame)

import asyncio
from collections import deque

import numpy as np

from ppx_train.inference.call import SILENCE_PEAK
from ppx_train.inference.session import AgentFrame
from ppx_train.serve.ends import End

QUIET_FRAMES = 5
"""Frames that may wait before silent ones are left out, 400 ms."""
MOST_MESSAGES = 256
"""Messages that may wait: a client that provokes errors and does not read them costs no more memory."""
Data = bytes | str
"""A WebSocket message, binary or text."""
Item = Data | AgentFrame | End


class Outbox:
    """Messages and frames in the order of their sending."""

    def __init__(self, most_frames: int) -> None:
        self.most_frames = most_frames
        self.frames = 0
        """Frames that wait."""
        self.left_out = 0
        """Silent frames that were not sent."""
        self._waiting: deque[Item] = deque()
        self._has_some = asyncio.Event()

    def put(self, message: Data | End) -> bool:
        """Adds a message, or the end, which comes after all that waits; returns False if too many messages wait."""
        if len(self._waiting) - self.frames >= MOST_MESSAGES and not isinstance(message, End):
            return False
        self._waiting.append(message)
        self._has_some.set()
        return True

    def put_frame(self, frame: AgentFrame) -> bool:
        """Adds a frame, unless it is silent and others wait; returns False if too many wait."""
        if self.frames >= self.most_frames:
            return False
        if self.frames >= QUIET_FRAMES and not frame.text and np.abs(frame.agent_S).max() < SILENCE_PEAK:
            self.left_out += 1
            return True
        self.frames += 1
        self._waiting.append(frame)
        self._has_some.set()
        return True

    async def get(self) -> Item:
        """The next to send, once there is one."""
        while not self._waiting:
            self._has_some.clear()
            await self._has_some.wait()
        item = self._waiting.popleft()
        self.frames -= isinstance(item, AgentFrame)
        return item
