"""One call over one WebSocket, whatever its protocol: limits, slow and vanished clients, its end.

What protocols do differently is their `Wire`: what messages look like, and when the call of the engine begins.
"""

# Shapes: S samples (of a frame)

import asyncio
import logging
import math
import secrets
from collections.abc import Coroutine
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from model.errors import UserError
from ppx_train.inference.call import Call, CallEvent
from ppx_train.inference.session import AgentFrame, Audio, SessionSettings
from ppx_train.serve.early import EarlySound
from ppx_train.serve.ends import ENDS, GONE, End
from ppx_train.serve.logs import note
from ppx_train.serve.metrics import call_stats
from ppx_train.serve.outbox import Data, Outbox
from ppx_train.serve.protocol import MOST_MESSAGE_BYTES, EventType
from ppx_train.serve.query import Refusal
from ppx_train.serve.rate import MESSAGE_SECONDS, RateMeter
from ppx_train.serve.service import Service
from ppx_train.serve.wire import Wire

GOODBYE_SECONDS = 2.0
"""What a client gets to take the last messages and to close."""
STATS_SECONDS = 5.0
RETRY_SECONDS = 5
HARD_MESSAGE_BYTES = 4 * MOST_MESSAGE_BYTES
"""A message beyond it is not even received, and the client may hear no reason."""
SEND_BUFFER_BYTES = 16 * 1024
"""For each client, in the process and in the system: sound must not wait there unseen."""
logger = logging.getLogger("ppx_train.serve")


class Connection:
    """A client from its request to its end. It runs on the event loop; only `_tell` is called from elsewhere."""

    def __init__(self, service: Service, wire: Wire) -> None:
        limits = service.limits
        self.service, self.wire = service, wire
        self.id = secrets.token_hex(4)
        self.loop = asyncio.get_running_loop()
        self.began = self.heard_at = self.called_at = self.loop.time()
        self.call: Call | None = None
        self.outbox = Outbox(limits.unsent_frames)
        self.is_ready = False
        self._ended: asyncio.Future[End] = self.loop.create_future()
        self._seated = asyncio.Event()
        self._position = 0
        self._early = EarlySound(limits.early_seconds)
        self._rate = RateMeter(limits.speed, limits.burst_seconds, self.began)

    @property
    def since(self) -> float:
        """Seconds since the connection."""
        return self.loop.time() - self.began

    def begin(self, settings: SessionSettings, most_frames: int) -> None:
        """Begins the call of the engine, once. Raises: Refusal if it takes no more calls."""
        try:
            self.call = self.service.running.begin(settings, self._tell, most_frames)
        except UserError as why:
            if why.code != "in-use":
                raise Refusal(400, str(why)) from why
            raise _taken() from why
        self.called_at = self.loop.time()

    async def run(self, request: web.Request, *, seat_first: bool = False) -> web.WebSocketResponse:
        """Holds the connection. seat_first: whether the client is refused if it gets no slot in time.

        Raises: Refusal if so.
        """
        end = GONE
        try:
            if seat_first:
                await self._seat_in_time()
            socket = await self._open(request)
            end = await self._talk(socket)
            await self._close(socket, end)
            return socket
        except Refusal as why:
            end = End(f"refused_{why.status}", GONE.code, "")
            raise
        finally:
            self.service.chats.discard(self)
            self.service.metrics.ended.labels(end.reason).inc()
            counts = {"left_out": self.outbox.left_out}
            if self.call is not None:
                self.call.leave()
                self.call.tell = _nobody  # Call and connection would keep each other until a garbage collection.
                counts |= {"dropped": self.call.dropped, "late": self.call.late}
            note("call ended", call=self.id, reason=end.reason, seconds=round(self.since, 3), **counts)

    def finish(self, end: End) -> None:
        """Ends the call; the first reason holds."""
        if not self._ended.done():
            self._ended.set_result(end)

    def send(self, *messages: Data) -> None:
        """Sends messages in their turn; a client that lets too many wait is cut off."""
        if not all(self.outbox.put(message) for message in messages):
            self.finish(ENDS["slow"])

    def event(self, type_: EventType, **fields: Any) -> None:
        """Sends an event to a client whose protocol has it."""
        message = self.wire.event(type_, self.since, **fields)
        if message is not None:
            self.send(message)

    def spend(self, seconds: float) -> bool:
        """Notes what a client costs, in seconds of sound; returns whether that is not too much."""
        return self._rate.spend(seconds, self.loop.time())

    def hear(self, wav_S: Audio) -> None:
        """Takes sound of the client."""
        self.heard_at = self.loop.time()
        if self.is_ready and self.call is not None:
            self.call.hear(wav_S)
        else:
            self._early.add(wav_S)

    async def _seat_in_time(self) -> None:
        try:
            await asyncio.wait_for(self._seated.wait(), self.service.limits.seat_seconds)
        except asyncio.TimeoutError:
            raise _taken() from None

    async def _open(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(
            timeout=GOODBYE_SECONDS, heartbeat=self.service.limits.heartbeat_seconds, autoping=False, compress=False,
            max_msg_size=HARD_MESSAGE_BYTES, protocols=(self.wire.subprotocol,),
        )  # fmt: skip
        await socket.prepare(request)
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        self._transport = request.transport
        self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES)
        note("call began", call=self.id, **self.wire.about)
        return socket

    async def _talk(self, socket: web.WebSocketResponse) -> End:
        """Sends and receives until the call ends, for whatever reason."""
        self.service.chats.add(self)
        self.wire.greet(self)
        parts = [self._send(socket), self._receive(socket), self._watch()]
        tasks = [asyncio.create_task(self._guard(part)) for part in parts]
        try:
            return await self._ended
        finally:
            if self.call is not None:
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
                for message in self.wire.goodbye(end, self.since):
                    await _put_on(socket, message)
            await socket.close(code=end.code, message=end.sentence.encode()[:120])

        try:
            await asyncio.wait_for(say_goodbye(), 2 * GOODBYE_SECONDS)
        except (asyncio.TimeoutError, ConnectionError):
            self._transport.abort()

    # From the engine to the client

    def _tell(self, event: CallEvent) -> None:
        self.loop.call_soon_threadsafe(self._on_event, event)

    def _on_event(self, event: CallEvent) -> None:
        if self._ended.done() or self.call is None:
            return
        if event.kind == "frame" and event.frame is not None:
            if not self.outbox.put_frame(event.frame):
                self.finish(ENDS["slow"])
        elif event.kind == "queued" and event.position != self._position:
            self._position = event.position
            self.event("queued", position=event.position)
        elif event.kind == "prompting":
            self._seated.set()
            if self.call.settings.voice_frames:
                self.event("loading_voice")
            self.event("prompting", frames=self.call.settings.prompt_frames)
        elif event.kind == "ready":
            self.is_ready = True
            self.heard_at = self.loop.time()
            self.service.metrics.note_ready(self.heard_at - self.called_at)
            self.send(*self.wire.ready())
            self.event("ready", max_steps=self.call.most_frames)
            self.call.hear(self._early.take())
        elif event.kind == "dropped":
            self.event("backlog_dropped", frames=self.call.dropped)
        elif event.kind == "ended":  # The last frames are sent before, if the client takes them in time.
            self.outbox.put(ENDS[event.reason])
            self.loop.call_later(GOODBYE_SECONDS, self.finish, ENDS[event.reason])

    async def _send(self, socket: web.WebSocketResponse) -> End:
        while True:
            item = await self.outbox.get()
            if isinstance(item, End):
                return item
            while self._transport.get_write_buffer_size() > SEND_BUFFER_BYTES:
                await asyncio.sleep(0.02)
            messages = await self.wire.frame(item, self.since) if isinstance(item, AgentFrame) else [item]
            for message in messages:
                await _put_on(socket, message)

    # From the client to the engine

    async def _receive(self, socket: web.WebSocketResponse) -> End:
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.ERROR:
                return ENDS["too-large"] if socket.close_code == ENDS["too-large"].code else GONE
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return GONE
            if not self.spend(MESSAGE_SECONDS):
                return ENDS["too-fast"]
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
            end = self._take(message)
            if end is not None:
                return end
            await asyncio.sleep(0)  # A client that sends without end lets others have their turn.

    def _take(self, message: WSMessage) -> End | None:
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            return None
        if len(message.data) > MOST_MESSAGE_BYTES:
            return ENDS["too-large"]
        return self.wire.take(self, message.data)

    async def _watch(self) -> End:
        """Ends calls that wait, last or are silent for too long, and sends figures to clients that asked for events."""
        limits, queue_seconds = self.service.limits, self.wire.queue_seconds
        told_at = -math.inf  # The first figures come with the first sound: they say how much of it was cut.
        while True:
            await asyncio.sleep(min(1.0, limits.idle_seconds / 4, queue_seconds / 4))
            now = self.loop.time()
            if self.call is not None and not self._seated.is_set():
                if now - self.called_at > queue_seconds:
                    return ENDS["queue"]
            elif (self.is_ready or self.call is None) and now - self.heard_at > limits.idle_seconds:
                return ENDS["idle"]
            # Frames are counted by the engine; a client that sends few of them does not keep its slot for longer.
            elif now - self.called_at > limits.call_seconds + limits.queue_seconds:
                return ENDS["limit"]
            if self.call is not None and self.call.is_cut and now - told_at >= STATS_SECONDS:
                told_at = now
                stats = call_stats(self.call, self.service.running, STATS_SECONDS)
                self.event("stats", **stats, left_out=self.outbox.left_out)


async def _put_on(socket: web.WebSocketResponse, message: Data) -> None:
    await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))


def _taken() -> Refusal:
    return Refusal(503, "all lines are taken: try again later", retry_after=RETRY_SECONDS)


def _nobody(event: CallEvent) -> None:
    """Hears the events of a call whose client has left."""
