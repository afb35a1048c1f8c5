"""The wire of `/v1/realtime`: JSON events in text frames, sound as PCM16 in base64.

The session may be set until its first sound, which begins the call: a call's settings are fixed. All that the agent
says is one item of one response, without an end before the call's.
"""

# Shapes: S samples

import base64
import binascii
import json
import secrets
from typing import Any

from model.config import SAMPLE_RATE
from ppx_train.inference.session import AgentFrame
from ppx_train.serve.ends import ENDS, End
from ppx_train.serve.opus import Pcm16Reader, Pcm16Writer
from ppx_train.serve.outbox import Data
from ppx_train.serve.protocol import Close, EventType
from ppx_train.serve.query import Refusal, read_query
from ppx_train.serve.realtime_events import (
    QUERY_FIELDS,
    AppendSound,
    EventError,
    SessionFields,
    SessionUpdate,
    read_event,
)
from ppx_train.serve.service import Service
from ppx_train.serve.wire import Line

PATH = "/v1/realtime"
UPDATE_SECONDS = 0.05
"""What an update costs of the sound that may be sent: its role is turned into tokens."""
BINARY = End("wrong-type", Close.WRONG_TYPE, "Binary frames are no part of this protocol: send JSON in text frames.")
SERVER_ENDS = (Close.INTERNAL, Close.DRAINING, Close.TRY_LATER)
"""Ends for which the client can do nothing."""


class RealtimeWire:
    """The messages of one session."""

    subprotocol = "realtime"

    def __init__(self, service: Service) -> None:
        self.queue_seconds = service.limits.seat_seconds  # The API has no event that shows a place in the queue.
        self.about: dict[str, Any] = {"proto": "realtime", "codec": "pcm16"}
        self._service = service
        self._id = secrets.token_hex(8)
        self._sent = 0
        self._set({"codec": "pcm16"})
        self._reader, self._writer = Pcm16Reader(), Pcm16Writer()

    def greet(self, connection: Line) -> None:
        """Shows the session."""
        connection.send(self._event("session.created", session=self._session()))

    def take(self, connection: Line, data: Data) -> End | None:
        """Takes one event; one that is refused gets an error, and the session goes on."""
        if isinstance(data, bytes):
            return BINARY
        try:
            event = read_event(data)
            if isinstance(event, AppendSound):
                return self._append(connection, event)
            return self._update(connection, event)
        except EventError as why:
            connection.send(self._error(why.message, why.code, param=why.param, event_id=why.event_id))
            return None

    def ready(self) -> list[Data]:
        """Nothing: the API has no event for it, and sound is kept until then."""
        return []

    def event(self, type_: EventType, since: float, **fields: Any) -> None:
        """Nothing: these events are no part of the API."""

    async def frame(self, frame: AgentFrame, since: float) -> list[Data]:
        """Sound and text."""
        sound = base64.b64encode(self._writer.write(frame.agent_S)).decode()
        messages: list[Data] = [self._delta("response.output_audio.delta", sound)]
        if frame.text:
            messages.append(self._delta("response.output_audio_transcript.delta", frame.text))
        return messages

    def goodbye(self, end: End, since: float) -> list[Data]:
        """An error with the sentence."""
        kind = "server_error" if end.code in SERVER_ENDS else "invalid_request_error"
        return [self._error(end.sentence, end.reason, kind=kind)]

    # From the client

    def _set(self, query: dict[str, str]) -> None:
        """Takes over settings, all or none. Raises: Refusal."""
        wanted = read_query(query, self._service.limits)
        self._settings = self._service.session(wanted)
        self._query, self._wanted = query, wanted

    def _update(self, connection: Line, event: SessionUpdate) -> End | None:
        if not connection.spend(UPDATE_SECONDS):
            return ENDS["too-fast"]
        if connection.call is not None:
            sentence = "the settings of a call are fixed from its first sound on: set them before, in a new session"
            raise EventError(sentence, "session_fixed", param="session", event_id=event.event_id)
        try:
            self._set(self._query | event.session.query())
        except Refusal as why:
            field = str(why.body.get("field", ""))
            names = {query: name for name, query in QUERY_FIELDS.items()}
            place = f"session.{names.get(field, field)}"
            sentence = why.error.replace(field, place) if field else why.error
            allowed = f"; allowed: {why.body['allowed']}" if "allowed" in why.body else ""
            raise EventError(sentence + allowed, "invalid_value", param=place, event_id=event.event_id) from why
        connection.send(self._event("session.updated", session=self._session()))
        return None

    def _append(self, connection: Line, event: AppendSound) -> End | None:
        try:
            data = base64.b64decode(event.audio, validate=True)
        except (binascii.Error, ValueError) as why:
            raise EventError("audio is not base64", "invalid_value", param="audio", event_id=event.event_id) from why
        for wav_S in self._reader.read(data):
            if not connection.spend(len(wav_S) / SAMPLE_RATE):
                return ENDS["too-fast"]
            if connection.call is None:
                try:
                    connection.begin(self._settings, self._wanted.most_frames)
                except Refusal:
                    return ENDS["queue"]
            connection.hear(wav_S)
        return None

    # To the client

    def _event(self, type_: str, **fields: Any) -> str:
        self._sent += 1
        content = {"type": type_, "event_id": f"event_{self._id}_{self._sent}", **fields}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    def _delta(self, type_: str, delta: str) -> str:
        of = {"response_id": f"resp_{self._id}", "item_id": f"item_{self._id}", "output_index": 0, "content_index": 0}
        return self._event(type_, **of, delta=delta)

    def _error(
        self, message: str, code: str, *, kind: str = "invalid_request_error", param: str | None = None,
        event_id: str | None = None,
    ) -> str:  # fmt: skip
        error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
        return self._event("error", error=error)

    def _session(self) -> dict[str, Any]:
        """The session as it is now, with what was not set by the client."""
        wanted, service = self._wanted, self._service
        assert service.release is not None
        session = SessionFields(
            instructions=wanted.role,
            seed=-1 if wanted.seed is None else wanted.seed,
            max_steps=wanted.most_frames,
            text_temperature=wanted.sampling.text_temperature,
            text_topk=wanted.sampling.text_top_k,
            audio_temperature=wanted.sampling.audio_temperature,
            audio_topk=wanted.sampling.audio_top_k,
        ).model_dump()
        session["audio"]["output"]["voice"] = service.voices.default if wanted.voice is None else wanted.voice
        return {"object": "realtime.session", "id": f"sess_{self._id}", "model": service.release.name, **session}
