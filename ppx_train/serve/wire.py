"""What tells the protocols of calls apart: their messages, and what of the client has which effect."""

# Shapes: S samples

from typing import Any, Protocol

from ppx_train.inference.call import Call
from ppx_train.inference.session import AgentFrame, Audio, SessionSettings
from ppx_train.serve.ends import End
from ppx_train.serve.outbox import Data
from ppx_train.serve.protocol import EventType


class Line(Protocol):
    """What a wire may do with its connection."""

    call: Call | None
    """The call of the engine, once it has begun."""

    def begin(self, settings: SessionSettings, most_frames: int) -> None:
        """Begins the call of the engine, once. Raises: Refusal if it takes no more calls."""

    def spend(self, seconds: float) -> bool:
        """Notes what a client costs, in seconds of sound; returns whether that is not too much."""

    def hear(self, wav_S: Audio) -> None:
        """Takes sound of the client."""

    def send(self, *messages: Data) -> None:
        """Sends messages in their turn; a client that lets too many wait is cut off."""


class Wire(Protocol):
    """What one protocol says on a connection. `since` is in seconds since the connection."""

    about: dict[str, Any]
    """What the log says about it."""
    subprotocol: str
    """The WebSocket subprotocol that is agreed on with clients that offer it."""
    queue_seconds: float
    """How long the client may wait for a slot."""

    def greet(self, connection: Line) -> None:
        """The WebSocket is open."""

    def take(self, connection: Line, data: Data) -> End | None:
        """Takes a message of the client; returns why the call must end, if it must."""

    def ready(self) -> list[Data]:
        """What the client hears when the prompt is through."""

    def event(self, type_: EventType, since: float, **fields: Any) -> Data | None:
        """What the client hears about an event; None if its protocol has none."""

    async def frame(self, frame: AgentFrame, since: float) -> list[Data]:
        """What the client hears of a frame."""

    def goodbye(self, end: End, since: float) -> list[Data]:
        """The last messages of a call whose end has a sentence."""
