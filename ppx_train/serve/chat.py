"""The wire of `/api/chat`: binary messages, as the public Moshi and PersonaPlex servers send them."""

# Shapes: S samples

import asyncio
from concurrent.futures import Executor
from typing import Any

from model.config import SAMPLE_RATE
from model.errors import UserError
from ppx_train.inference.session import AgentFrame
from ppx_train.serve.ends import ENDS, End
from ppx_train.serve.opus import reader_of, writer_of
from ppx_train.serve.outbox import Data
from ppx_train.serve.protocol import (
    HANDSHAKE,
    SUBPROTOCOL,
    EventType,
    Kind,
    audio_message,
    error_message,
    event_message,
    read_message,
    text_message,
)
from ppx_train.serve.query import CallRequest
from ppx_train.serve.wire import Line


class ChatWire:
    """The messages of one call. encoders: where sound is encoded. queue_seconds: how long its client may wait."""

    subprotocol = SUBPROTOCOL

    def __init__(self, wanted: CallRequest, encoders: Executor, queue_seconds: float) -> None:
        self.wanted, self.queue_seconds = wanted, queue_seconds
        self.about = {"proto": wanted.proto, "codec": wanted.codec}
        self._encoders = encoders
        self._reader, self._writer = reader_of(wanted.codec), writer_of(wanted.codec)
        self._state = ""

    def greet(self, connection: Line) -> None:
        """Nothing: the handshake comes when the prompt is through."""

    def take(self, connection: Line, data: Data) -> End | None:
        """Takes one message; only sound has an effect."""
        if isinstance(data, str):  # Other servers ignore such messages.
            return ENDS["wrong-type"] if self.wanted.proto == 2 else None
        message = read_message(data)
        if message is None or message.kind != Kind.AUDIO:
            return None
        try:
            for wav_S in self._reader.read(message.payload):
                if not connection.spend(len(wav_S) / SAMPLE_RATE):
                    return ENDS["too-fast"]
                connection.hear(wav_S)
        except UserError:
            return ENDS["undecodable"]
        return None

    def ready(self) -> list[Data]:
        """The handshake."""
        return [HANDSHAKE]

    def event(self, type_: EventType, since: float, **fields: Any) -> bytes | None:
        """An event, for a client that asked for them."""
        if self.wanted.proto != 2:
            return None
        if type_ == "ready":
            wanted = self.wanted
            fields |= {"sampling": vars(wanted.sampling), "ignored": wanted.ignored, "codec": wanted.codec}
        return event_message(type_, since, **fields)

    async def frame(self, frame: AgentFrame, since: float) -> list[Data]:
        """Sound, text and the state of the text stream."""
        loop = asyncio.get_running_loop()
        sound = await loop.run_in_executor(self._encoders, self._writer.write, frame.agent_S)
        messages: list[Data | None] = [audio_message(sound) if sound else None]
        at = round(frame.seconds, 2)
        if frame.text:
            messages += [text_message(frame.text), self.event("text", since, at=at, text=frame.text)]
        if self.wanted.pads and frame.kind != self._state:
            self._state = frame.kind
            messages.append(self.event("state", since, at=at, state=frame.kind))
        return [message for message in messages if message is not None]

    def goodbye(self, end: End, since: float) -> list[Data]:
        """The event that says why, and the sentence."""
        bye = self.event("bye", since, reason=end.reason, code=int(end.code), sentence=end.sentence)
        return [*([bye] if bye is not None else []), error_message(end.sentence)]
