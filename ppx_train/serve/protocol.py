"""Messages of `/api/chat`: binary WebSocket messages whose first byte is their kind.

Source: the public Moshi and PersonaPlex servers and pages. What goes beyond them is sent only to clients that ask for
it with `proto=2`: messages of kind METADATA, each one JSON object with a `type` and `t`, seconds since the connection.
"""

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from model.errors import UserError

PATH = "/api/chat"
PORT = 8998
MOST_MESSAGE_BYTES = 64 * 1024
"""The longest message that the server accepts."""
SUBPROTOCOL = "ppx"
"""The WebSocket subprotocol that is agreed on with a client that offers it, as browsers must to send a token."""
TOKEN_SUBPROTOCOLS = ("ppx-token.", "openai-insecure-api-key.")
"""Subprotocols of these beginnings carry the token; the second is that of OpenAI's package for browsers."""

EventType = Literal[
    "queued", "loading_voice", "prompting", "ready", "text", "state", "stats", "backlog_dropped", "limit", "bye"
]
"""The types of events of `proto=2`."""


class Kind(IntEnum):
    """The first byte of a message. A receiver drops kinds that it does not know."""

    HANDSHAKE = 0
    """From the server, once, when the prompt is through; what follows the byte has no meaning."""
    AUDIO = 1
    """A piece of one continuous stream in each direction: Ogg-Opus, or PCM16 for clients that asked for it."""
    TEXT = 2
    """From the server: a piece of what the agent says, UTF-8."""
    CONTROL = 3
    METADATA = 4
    """JSON; from this server an event of `proto=2`."""
    ERROR = 5
    """From the server, before it closes: a sentence, UTF-8."""
    PING = 6


class Close(IntEnum):
    """Close codes of a call."""

    NORMAL = 1000
    """Also when a limit of the call is reached."""
    WRONG_TYPE = 1003
    UNDECODABLE = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    DRAINING = 1012
    TRY_LATER = 1013


HANDSHAKE = bytes([Kind.HANDSHAKE])
"""The whole message of a server in Python. Rust servers add 8 bytes, the page's encoder 2."""


@dataclass(frozen=True)
class Message:
    """A message taken apart. kind: a `Kind` or the number of an unknown one."""

    kind: int
    payload: bytes

    @property
    def text(self) -> str:
        """The payload of a TEXT or ERROR message."""
        return self.payload.decode("utf-8", "replace")

    @property
    def event(self) -> dict[str, Any]:
        """The content of a METADATA message. Raises: UserError if it is not a JSON object."""
        try:
            content = json.loads(self.payload)
        except (ValueError, RecursionError) as why:
            raise UserError(f"metadata of the server is not JSON ({why})", code="bad-answer") from why
        if not isinstance(content, dict):
            raise UserError(f"metadata of the server is no JSON object: {content!r}", code="bad-answer")
        return content


def read_message(data: bytes) -> Message | None:
    """Takes a binary WebSocket message apart; an empty one is None."""
    return Message(data[0], data[1:]) if data else None


def audio_message(data: bytes) -> bytes:
    """A message with a piece of the sound stream."""
    return bytes([Kind.AUDIO]) + data


def text_message(text: str) -> bytes:
    """A message with a piece of text, spaces as spaces."""
    return bytes([Kind.TEXT]) + text.encode()


def error_message(sentence: str) -> bytes:
    """A message that says in words why the call ends."""
    return bytes([Kind.ERROR]) + sentence.encode()


def event_message(type_: EventType, since: float, /, **fields: Any) -> bytes:
    """An event of `proto=2`. since: seconds since the connection."""
    content = {"type": type_, "t": round(since, 3), **fields}
    return bytes([Kind.METADATA]) + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
