"""One live call: the sound of its user that waits, and what the engine reports about it.

Transports add sound from any thread and hear of events; the engine takes a frame at a time.
"""

# Shapes: S samples (at 24 kHz)

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.config import FRAME_SAMPLES
from ppx_train.inference.session import AgentFrame, Audio, Session, SessionSettings

MOST_BACKLOG_FRAMES = 5
"""Frames of a user's sound that may wait, 400 ms; beyond them the oldest is dropped, a silent one first."""
CATCH_UP_TICKS = 4
"""A call with a frame too many advances twice in at most one of this many ticks: output never comes in bursts."""
PHASE_SAMPLES = 480
"""How long before a tick a frame of sound is to be complete, 20 ms: less waits less, more bears more jitter."""
SILENCE_PEAK = 0.003
"""A frame that is softer than -50 dBFS may be dropped unheard."""

Reason = Literal["left", "limit", "draining", "internal", "backlog"]
"""Why a call ended: the client or the server asked for it, its time was up, the engine stops, or something failed."""


@dataclass(frozen=True, kw_only=True)
class CallEvent:
    """Something that happened to a call; `frame` comes with kind "frame", `position` with "queued"."""

    kind: Literal["queued", "prompting", "ready", "frame", "dropped", "ended"]
    frame: AgentFrame | None = None
    position: int = 0
    reason: Reason = "left"


class Call:
    """A live call. Its methods may be called from any thread; `tell` is called from the engine's."""

    def __init__(self, settings: SessionSettings, tell: Callable[[CallEvent], None], most_frames: int | None) -> None:
        self.settings, self.tell, self.most_frames = settings, tell, most_frames
        self.session: Session | None = None
        self.leaves: Reason | None = None
        self.dropped = 0
        """Frames of the user's sound that were dropped."""
        self.late = 0
        """Ticks in which the call had no sound to go on with."""
        self.doubled_at = -CATCH_UP_TICKS
        self.is_cut = False
        self.cut_samples = 0
        """Samples that were cut from the beginning."""
        self._lock = threading.Lock()
        self._waiting: deque[Audio] = deque()
        self._samples = 0

    def hear(self, user_S: Audio) -> None:
        """Adds any number of the user's samples, float32 in [-1, 1] at 24 kHz."""
        if len(user_S):
            with self._lock:
                self._waiting.append(user_S)
                self._samples += len(user_S)

    def leave(self, reason: Reason = "left") -> None:
        """Ends the call within one tick."""
        self.leaves = self.leaves or reason

    @property
    def backlog(self) -> float:
        """Frames of sound that wait."""
        return self._samples / FRAME_SAMPLES

    def cut_to_tick(self) -> None:
        """Drops less than a frame of the first sound, so that from now on frames are whole shortly before ticks.

        It waits for that sound: most clients send none before they know that they may.
        """
        with self._lock:
            if self._samples:
                self.cut_samples = max(0, self._samples - PHASE_SAMPLES) % FRAME_SAMPLES
                self._take(self.cut_samples)
                self.is_cut = True

    def next_frame(self) -> Audio | None:
        """The oldest frame of sound, [1920], or None if there is no whole one; drops what is beyond the backlog."""
        with self._lock:
            while self._samples >= (MOST_BACKLOG_FRAMES + 1) * FRAME_SAMPLES:
                self._drop_frame()
                self.dropped += 1
            return self._take(FRAME_SAMPLES) if self._samples >= FRAME_SAMPLES else None

    def _drop_frame(self) -> None:
        """Drops the first silent frame of those that wait, or the oldest."""
        whole_S = np.concatenate(self._waiting)
        frames = whole_S[: len(whole_S) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        silent = np.flatnonzero(np.abs(frames).max(axis=1) < SILENCE_PEAK)
        at = int(silent[0]) * FRAME_SAMPLES if len(silent) else 0
        self._waiting = deque([whole_S[:at], whole_S[at + FRAME_SAMPLES :]])
        self._samples -= FRAME_SAMPLES

    def _take(self, count: int) -> Audio:
        pieces = []
        while count:
            piece_S = self._waiting.popleft()
            if len(piece_S) > count:
                self._waiting.appendleft(piece_S[count:])
                piece_S = piece_S[:count]
            pieces.append(piece_S)
            count -= len(piece_S)
            self._samples -= len(piece_S)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
