"""One call over one WebSocket: an adapter between `/api/chat` and a `Call` of the engine."""

# Shapes: S samples (of a frame)

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from model.config import FRAME_RATE, SAMPLE_RATE
from model.errors import UserError
from ppx_train.inference.call import CallEvent
from ppx_train.inference.session import AgentFrame, Audio, SessionSettings
from ppx_train.serve.ends import ENDS, GONE, End
from ppx_train.serve.logs import note
from ppx_train.serve.opus import reader_of, writer_of
from ppx_train.serve.outbox import Outbox
from ppx_train.serve.protocol import (
    HANDSHAKE,
    MOST_MESSAGE_BYTES,
    SUBPROTOCOL,
    EventType,
    Kind,
    audio_message,
    error_message,
    event_message,
    read_message,
    text_message,
)
from ppx_train.serve.query import CallRequest, Refusal
from ppx_train.serve.rate import MESSAGE_SECONDS, RateMeter
from ppx_train.serve.service import Service

GOODBYE_SECONDS = 2.0
"""What a client gets to take the last messages and to close."""
STATS_SECONDS = 5.0
RETRY_SECONDS = 5
HARD_MESSAGE_BYTES = 4 * MOST_MESSAGE_BYTES
"""A message beyond it is not even received, and the client may hear no reason."""
SEND_BUFFER_BYTES = 16 * 1024
"""For each client, in the process and in the system: sound must not wait there unseen."""
logger = logging.getLogger("ppx_train.serve")


class EarlySound:
    """Sound from before the handshake: the newest few seconds."""

    def __init__(self, seconds: float) -> None:
        self._most = int(seconds * SAMPLE_RATE)
        self._kept_S: Audio = np.zeros(0, np.float32)

    def add(self, wav_S: Audio) -> None:
        """Adds samples and drops the oldest."""
        self._kept_S = np.concatenate([self._kept_S, wav_S])[-self._most :] if self._most else self._kept_S

    def take(self) -> Audio:
        """Returns what is kept, and forgets it."""
        kept_S, self._kept_S = self._kept_S, np.zeros(0, np.float32)
        return kept_S


class Chat:
    """A call from its request to its end. It runs on the event loop; only `_tell` is called from elsewhere."""

    def __init__(self, service: Service, wanted: CallRequest, settings: SessionSettings) -> None:
        limits = service.limits
        self.service, self.wanted, self.settings = service, wanted, settings
        self.id = secrets.token_hex(4)
        self.loop = asyncio.get_running_loop()
        self.began = self.heard_at = self.loop.time()
        self.outbox = Outbox(limits.unsent_frames)
        self.is_ready = False
        self._ended: asyncio.Future[End] = self.loop.create_future()
        self._seated = asyncio.Event()
        self._position = 0
        self._state = ""
        self._early = EarlySound(limits.early_seconds)
        self._reader, self._writer = reader_of(wanted.codec), writer_of(wanted.codec)
        self._rate = RateMeter(limits.speed, limits.burst_seconds, self.began)

    async def run(self, request: web.Request) -> web.WebSocketResponse:
        """Holds the call. Raises: Refusal if no slot is free and the client could not see its place in the queue."""
        try:
            self.call = self.service.running.begin(self.settings, self._tell, self.wanted.most_frames)
        except UserError as why:
            if why.code != "in-use":
                raise Refusal(400, str(why)) from why
            raise Refusal(503, "all lines are taken: try again later", retry_after=RETRY_SECONDS) from why
        end = GONE
        try:
            if self.wanted.proto == 1:
                await self._seat_in_time()
            socket = await self._open(request)
            end = await self._talk(socket)
            await self._close(socket, end)
            return socket
        except Refusal as why:
            end = End(f"refused_{why.status}", GONE.code, "")
            raise
        finally:
            self.call.leave()
            self.call.tell = _nobody  # Call and chat would keep each other, and codecs of 50 kB, until a collection.
            self.service.chats.discard(self)
            self.service.metrics.ended.labels(end.reason).inc()
            seconds = round(self.loop.time() - self.began, 3)
            counts = {"dropped": self.call.dropped, "late": self.call.late, "left_out": self.outbox.left_out}
            note("call ended", call=self.id, reason=end.reason, seconds=seconds, **counts)

    def finish(self, end: End) -> None:
        """Ends the call; the first reason holds."""
        if not self._ended.done():
            self._ended.set_result(end)

    def event(self, type_: EventType, **fields: Any) -> None:
        """Sends an event to a client that asked for them."""
        if self.wanted.proto == 2:
            self.outbox.put(event_message(type_, self.loop.time() - self.began, **fields))

    async def _seat_in_time(self) -> None:
        try:
            await asyncio.wait_for(self._seated.wait(), self.service.limits.seat_seconds)
        except asyncio.TimeoutError:
            raise Refusal(503, "all lines are taken: try again later", retry_after=RETRY_SECONDS) from None

    async def _open(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(
            timeout=GOODBYE_SECONDS, heartbeat=self.service.limits.heartbeat_seconds, autoping=False, compress=False,
            max_msg_size=HARD_MESSAGE_BYTES, protocols=(SUBPROTOCOL,),
        )  # fmt: skip
        await socket.prepare(request)
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        self._transport = request.transport
        self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES)
        wanted = self.wanted
        note("call began", call=self.id, proto=wanted.proto, codec=wanted.codec, prompt=self.settings.prompt_frames)
        return socket

    async def _talk(self, socket: web.WebSocketResponse) -> End:
        """Sends and receives until the call ends, for whatever reason."""
        self.service.chats.add(self)
        parts = [self._send(socket), self._receive(socket), self._watch()]
        tasks = [asyncio.create_task(self._guard(part)) for part in parts]
        try:
            return await self._ended
        finally:
            self.call.leave()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _guard(self, part: Coroutine[Any, Any, End]) -> None:
        """Runs a part of the call; what it raises ends this call, and is logged."""
        try:
            self.finish(await part)
        except ConnectionError:
            self.finish(GONE)
        except Exception:
            logger.exception("call %s has failed", self.id)
            self.finish(ENDS["internal"])

    async def _close(self, socket: web.WebSocketResponse, end: End) -> None:
        """Says why the call ends, if somebody still listens; a client that does not take it is cut off."""

        async def say_goodbye() -> None:
            if end.sentence and not socket.closed:
                if self.wanted.proto == 2:
                    bye = {"reason": end.reason, "code": int(end.code), "sentence": end.sentence}
                    await socket.send_bytes(event_message("bye", self.loop.time() - self.began, **bye))
                await socket.send_bytes(error_message(end.sentence))
            await socket.close(code=end.code, message=end.sentence.encode()[:120])

        try:
            await asyncio.wait_for(say_goodbye(), 2 * GOODBYE_SECONDS)
        except (asyncio.TimeoutError, ConnectionError):
            self._transport.abort()

    # From the engine to the client

    def _tell(self, event: CallEvent) -> None:
        self.loop.call_soon_threadsafe(self._on_event, event)

    def _on_event(self, event: CallEvent) -> None:
        if self._ended.done():
            return
        if event.kind == "frame" and event.frame is not None:
            if not self.outbox.put_frame(event.frame):
                self.finish(ENDS["slow"])
        elif event.kind == "queued" and event.position != self._position:
            self._position = event.position
            self.event("queued", position=event.position)
        elif event.kind == "prompting":
            self._seated.set()
            if self.settings.voice_frames:
                self.event("loading_voice")
            self.event("prompting", frames=self.settings.prompt_frames)
        elif event.kind == "ready":
            self._begin()
        elif event.kind == "dropped":
            self.event("backlog_dropped", frames=self.call.dropped)
        elif event.kind == "ended":  # The last frames are sent before, if the client takes them in time.
            self.outbox.put(ENDS[event.reason])
            self.loop.call_later(GOODBYE_SECONDS, self.finish, ENDS[event.reason])

    def _begin(self) -> None:
        """The prompt is through: the handshake, and what was said meanwhile."""
        self.is_ready = True
        self.heard_at = now = self.loop.time()
        self.service.metrics.note_ready(now - self.began)
        self.outbox.put(HANDSHAKE)
        sampling = self.settings.sampling
        self.event(
            "ready", sampling=vars(sampling), max_steps=self.wanted.most_frames, ignored=self.wanted.ignored,
            codec=self.wanted.codec,
        )  # fmt: skip
        self.call.hear(self._early.take())

    async def _send(self, socket: web.WebSocketResponse) -> End:
        while True:
            item = await self.outbox.get()
            if isinstance(item, End):
                return item
            while self._transport.get_write_buffer_size() > SEND_BUFFER_BYTES:
                await asyncio.sleep(0.02)
            if isinstance(item, bytes):
                await socket.send_bytes(item)
            else:
                await self._send_frame(socket, item)

    async def _send_frame(self, socket: web.WebSocketResponse, frame: AgentFrame) -> None:
        data = await self.loop.run_in_executor(self.service.encoders, self._writer.write, frame.agent_S)
        if data:
            await socket.send_bytes(audio_message(data))
        if frame.text:
            await socket.send_bytes(text_message(frame.text))
            self.event("text", at=round(frame.seconds, 2), text=frame.text)
        if self.wanted.pads and frame.kind != self._state:
            self._state = frame.kind
            self.event("state", at=round(frame.seconds, 2), state=frame.kind)

    # From the client to the engine

    async def _receive(self, socket: web.WebSocketResponse) -> End:
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.ERROR:
                return ENDS["too-large"] if socket.close_code == ENDS["too-large"].code else GONE
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return GONE
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT) and len(message.data) > MOST_MESSAGE_BYTES:
                return ENDS["too-large"]
            if not self._rate.spend(MESSAGE_SECONDS, self.loop.time()):
                return ENDS["too-fast"]
            end = None
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type is WSMsgType.TEXT and self.wanted.proto == 2:  # Other servers ignore such messages.
                end = ENDS["wrong-type"]
            elif message.type is WSMsgType.BINARY:
                end = self._take(message.data)
            if end is not None:
                return end
            await asyncio.sleep(0)  # A client that sends without end lets others have their turn.

    def _take(self, data: bytes) -> End | None:
        """Takes one message; only sound has an effect. Returns why the call must end, if it must."""
        message = read_message(data)
        if message is None or message.kind != Kind.AUDIO:
            return None
        try:
            for wav_S in self._reader.read(message.payload):
                now = self.loop.time()
                if not self._rate.spend(len(wav_S) / SAMPLE_RATE, now):
                    return ENDS["too-fast"]
                self.heard_at = now
                if self.is_ready:
                    self.call.hear(wav_S)
                else:
                    self._early.add(wav_S)
        except UserError:
            return ENDS["undecodable"]
        return None

    async def _watch(self) -> End:
        """Ends calls that wait, last or are silent for too long, and sends figures to clients that asked for events."""
        limits = self.service.limits
        told_at = self.loop.time()
        while True:
            await asyncio.sleep(min(1.0, limits.idle_seconds / 4, limits.queue_seconds / 4))
            now = self.loop.time()
            if not self._seated.is_set():
                if now - self.began > limits.queue_seconds:
                    return ENDS["queue"]
            elif self.is_ready and now - self.heard_at > limits.idle_seconds:
                return ENDS["idle"]
            # Frames are counted by the engine; a client that sends few of them does not keep its slot for longer.
            elif now - self.began > limits.call_seconds + limits.queue_seconds:
                return ENDS["limit"]
            if self.is_ready and now - told_at >= STATS_SECONDS:
                told_at = now
                self.event("stats", **self._stats())

    def _stats(self) -> dict[str, float]:
        figures = self.service.running.figures
        ticks = list(figures.tick_seconds)[-int(STATS_SECONDS * FRAME_RATE) :]
        return {
            "tick_ms": round(1000 * sum(ticks) / max(1, len(ticks)), 1),
            "budget_ms": round(1000 / FRAME_RATE),
            "missed": figures.missed,
            "cut_ms": round(1000 * self.call.cut_samples / SAMPLE_RATE),
            "late": self.call.late,
            "dropped": self.call.dropped,
            "backlog_ms": round(1000 * self.call.backlog / FRAME_RATE),
        }


def _nobody(event: CallEvent) -> None:
    """Hears the events of a call whose client has left."""
