"""The user's side of a conversation, frame by frame: a recording, or turns that wait for what the agent does."""

# Shapes: S samples (at 24 kHz), T frames

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from model.config import FRAME_SAMPLES
from model.errors import UserError
from ppx_train.inference.session import Audio
from ppx_train.inference.speaking import JOIN_FRAMES, frames_of, seconds, speaking

PATIENCE_SECONDS = 6.0
"""How long a user waits for an agent that is silent, before the next turn begins all the same."""
LISTEN_SECONDS = 30.0
"""How long a user waits for an agent that goes on and on."""

When = Literal["after", "at", "barge_in"]
SILENCE_S = np.zeros(FRAME_SAMPLES, np.float32)


class UserSide(Protocol):
    """Whoever speaks to the agent."""

    def next(self, agent_S: Audio | None) -> Audio | None:
        """Returns the user's next frame, [1920] float32; None at the end of the conversation.

        agent_S: the agent's frame before, [1920]; None at the beginning.
        """

    @property
    def said(self) -> Sequence["SaidTurn"]:
        """What the user has said so far, where that is known as text."""

    @property
    def length(self) -> int | None:
        """Frames of the whole conversation; None if that depends on the agent."""


@dataclass(frozen=True, kw_only=True)
class UserTurn:
    """What the user says, and when.

    when: "after" `seconds` of silence of both sides, which the agent has broken since the user's last turn; "at` this
    second of the conversation; or as a "barge_in" once the agent has spoken this long.
    Shapes: audio_S mono at 24 kHz.
    """

    text: str
    audio_S: Audio
    when: When = "after"
    seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SaidTurn:
    """A turn that the user has begun. in_vain: whether the user stopped waiting for what the turn was to follow."""

    text: str
    start: float
    end: float
    in_vain: bool = False


class RecordedUser:
    """A user who says what is on a recording, whatever the agent does.

    Raises: UserError for an empty one.
    """

    def __init__(self, audio_S: Audio) -> None:
        if not len(audio_S):
            raise UserError("the user's audio is empty: give a recording", code="bad-audio")
        self._frames_TS = _whole_frames(audio_S)
        self._next = 0
        self.said: list[SaidTurn] = []

    @property
    def length(self) -> int:
        """Frames of the recording; the last is filled with zeros."""
        return len(self._frames_TS)

    def next(self, agent_S: Audio | None) -> Audio | None:
        """Returns the next frame; see UserSide."""
        self._next += 1
        return self._frames_TS[self._next - 1] if self._next <= self.length else None


class ScriptedUser:
    """A user whose turns wait for the agent, and who listens for `tail` seconds after the last one.

    A turn that waits in vain begins after PATIENCE_SECONDS of silence of both sides, or LISTEN_SECONDS after the turn
    before, so that every conversation ends. A turn whose second has passed begins after the turn before.
    """

    def __init__(self, turns: Sequence[UserTurn], tail: float) -> None:
        self._turns = list(turns)
        self._tail = frames_of(tail)
        self._rest: list[Audio] = []
        """Frames of the turn that is being said."""
        self._frame = -1
        self._quiet = 0
        """Frames since the end of the last turn."""
        self._agent_quiet = 0
        self._agent_run = 0
        """Frames of the stretch that the agent speaks, without those before the end of the last turn."""
        self._agent_spoke = True
        """Whether the agent has spoken since the last turn; nobody is waited for before the first."""
        self.said: list[SaidTurn] = []

    @property
    def length(self) -> None:
        """The length depends on the agent."""

    def next(self, agent_S: Audio | None) -> Audio | None:
        """Returns the next frame; see UserSide."""
        self._frame += 1
        if agent_S is not None:
            self._hear(bool(speaking(agent_S)[0]))
        if not self._rest:
            if self._turns:
                self._begin_if_due(self._turns[0])
            elif self._quiet >= self._tail:
                return None
        if not self._rest:
            self._quiet += 1
            return SILENCE_S
        self._quiet = self._agent_run = 0
        self._agent_spoke = False
        return self._rest.pop(0)

    def _hear(self, agent_speaks: bool) -> None:
        if agent_speaks:
            self._agent_quiet = 0
            if self._quiet or not self.said:  # Else this frame was heard while the user said the turn's last one.
                self._agent_spoke = True
                self._agent_run += 1
        else:
            self._agent_quiet += 1
            if self._agent_quiet > JOIN_FRAMES:
                self._agent_run = 0

    def _begin_if_due(self, turn: UserTurn) -> None:
        wait, quiet = frames_of(turn.seconds), min(self._quiet, self._agent_quiet)
        if turn.when == "at":
            due, in_vain = self._frame >= wait, False
        else:
            met = quiet >= wait and self._agent_spoke if turn.when == "after" else self._agent_run >= max(wait, 1)
            patience = max(frames_of(PATIENCE_SECONDS), wait)
            in_vain = not met and (quiet >= patience or self._quiet >= frames_of(LISTEN_SECONDS))
            due = met or in_vain
        if due:
            del self._turns[0]
            self._rest = list(_whole_frames(turn.audio_S))
            start, end = seconds(self._frame), seconds(self._frame + len(self._rest))
            self.said.append(SaidTurn(text=turn.text, start=start, end=end, in_vain=in_vain))


def _whole_frames(audio_S: Audio) -> Audio:
    """[T, 1920]: the audio in frames, the last one filled with zeros."""
    return np.pad(audio_S.astype(np.float32), (0, -len(audio_S) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
