"""A client of `/api/chat`, which this server, Kyutai's and NVIDIA's speak: one call as an object.

    async with connect("http://127.0.0.1:8998", CallOptions(role="You are a teacher.")) as call:
        talk = await converse(call, user_S)

The servers' differences stay in here: how long the handshake is, whether they speak protocol 2, and how they refuse.
"""

# Shapes: S samples (mono, at 24 kHz)

import asyncio
import json
import ssl as tls
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
import numpy as np

from model.errors import Code, UserError
from model.streaming.sample import Sampling
from ppx_train.inference.session import Audio
from ppx_train.serve.opus import CodecName, reader_of, writer_of
from ppx_train.serve.protocol import HANDSHAKE, PATH, Close, Kind, audio_message, read_message

SILENT_SECONDS = 10.0
"""A server that sends nothing for so long is gone: a call has a frame of sound every 80 ms, also in silence."""
CODES: dict[int, Code] = {
    400: "bad-value", 401: "no-access", 403: "no-access", 404: "unknown-name", 409: "in-use", 429: "in-use",
    503: "in-use", Close.DRAINING: "in-use", Close.TRY_LATER: "in-use",
}  # fmt: skip
"""The kinds of mistakes behind statuses of HTTP and codes of a close."""


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """What is asked of a server. None leaves a choice to the server, and is not sent.

    voice: a name that the server knows. role: "" for no role. protocol: 2 tells times, kinds of frames, what goes on;
    1 is what every server speaks. codec: "pcm16" is part of protocol 2. ssl: True verifies a certificate as browsers
    do, a context as it says, False does not. ready_seconds: how long the server may take until it is ready.
    """

    voice: str | None = None
    role: str | None = None
    seed: int | None = None
    sampling: Sampling | None = None
    codec: CodecName = "opus"
    protocol: Literal[1, 2] = 2
    token: str | None = None
    ssl: tls.SSLContext | bool = True
    ready_seconds: float = 60.0

    def query(self) -> dict[str, str]:
        """The query of the address, with the names of the PersonaPlex page.

        Raises: UserError for a codec that the protocol does not have.
        """
        if self.codec != "opus" and self.protocol == 1:
            raise UserError(f"codec {self.codec}: protocol 1 has opus alone, choose protocol 2", code="bad-combination")
        query: dict[str, Any] = {"voice_prompt": self.voice, "text_prompt": self.role, "seed": self.seed}
        if self.sampling is not None:
            one = 1 if self.sampling.greedy else None
            query |= {
                "text_temperature": self.sampling.text_temperature,
                "text_topk": one or self.sampling.text_top_k,
                "audio_temperature": self.sampling.audio_temperature,
                "audio_topk": one or self.sampling.audio_top_k,
            }
        if self.protocol == 2:
            query |= {"proto": 2, "codec": self.codec, "pads": 1}
        return {name: str(value) for name, value in query.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Received:
    """Something that the server said: sound, a piece of text, or an event.

    Shapes: agent_S samples, with kind "audio". event: its JSON object, with kind "event".
    """

    kind: Literal["audio", "text", "event"]
    agent_S: Audio = field(default_factory=lambda: np.zeros(0, np.float32))
    text: str = ""
    event: dict[str, Any] = field(default_factory=dict)


class LiveCall:
    """A call that has begun; made by `connect`. One task may send while another receives."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse[bool]", codec: CodecName, where: str) -> None:
        self.socket, self.where = socket, where
        self.before: list[Received] = []
        """What the server said before it was ready."""
        self.ready_seconds = 0.0
        """How long it took from the request to the handshake."""
        self.goodbye = ""
        """Why the call ended, in the server's words."""
        self._writer, self._reader = writer_of(codec), reader_of(codec)

    async def send(self, user_S: Audio) -> None:
        """Sends any number of the user's samples, float32 in [-1, 1] at 24 kHz; nothing once the call has ended."""
        sound = self._writer.write(user_S)
        if sound and not self.socket.closed:
            with suppress(ConnectionError, aiohttp.ClientConnectionError):  # `receive` tells why the call ended.
                await self.socket.send_bytes(audio_message(sound))

    async def receive(self) -> Received | None:
        """The next message that means something, or None after an orderly end.

        Raises: UserError if the server ends the call for another reason, or says nothing for 10 s.
        """
        while (data := await self._data(SILENT_SECONDS)) is not None:
            message = self._read(data)
            if message is not None:
                return message
        return None

    def __aiter__(self) -> AsyncIterator[Received]:
        """All messages up to the end; raises as `receive` does."""
        return self._messages()

    async def _messages(self) -> AsyncIterator[Received]:
        while (message := await self.receive()) is not None:
            yield message

    async def wait_until_ready(self, seconds: float) -> None:
        """Waits for the handshake, of any length. Raises: UserError as `receive`, or if it does not come in time."""
        until = time.monotonic() + seconds
        while (data := await self._data(until - time.monotonic())) is not None:
            if data[:1] == HANDSHAKE:
                return
            message = self._read(data)
            if message is not None:
                self.before.append(message)
        raise UserError(f"{self.where}: ended before it was ready{_after(self.goodbye)}", code="unreachable")

    async def _data(self, seconds: float) -> bytes | None:
        """The next binary message, or None after an orderly end."""
        while True:
            try:
                message = await self.socket.receive(timeout=max(0.0, seconds))
            except asyncio.TimeoutError as why:
                raise UserError(f"{self.where}: silent for {seconds:.0f} s, try again", code="unreachable") from why
            if message.type is aiohttp.WSMsgType.BINARY:
                return bytes(message.data)
            if message.type is aiohttp.WSMsgType.TEXT:
                continue
            code = self.socket.close_code
            if code in (1000, 1001):
                return None
            reason = self.goodbye or str(message.extra or "") or f"the connection is lost ({code})"
            raise UserError(f"{self.where}: {reason}", code=CODES.get(code or 0, "unreachable"))

    def _read(self, data: bytes) -> Received | None:
        """What a message says; None for an empty one and for kinds without a meaning here, which are to be dropped."""
        message = read_message(data)
        if message is None:
            return None
        if message.kind == Kind.AUDIO:
            pieces = [np.zeros(0, np.float32), *self._reader.read(message.payload)]
            return Received(kind="audio", agent_S=np.concatenate(pieces))
        if message.kind == Kind.TEXT:
            return Received(kind="text", text=message.text)
        if message.kind == Kind.METADATA:
            return Received(kind="event", event=message.event)
        if message.kind == Kind.ERROR:
            self.goodbye = message.text
        return None


@asynccontextmanager
async def connect(url: str, options: CallOptions | None = None) -> AsyncIterator[LiveCall]:
    """Calls a server and waits until it is ready; the call ends with the block.

    url: http(s):// or ws(s)://, with or without the path of the chat.
    Raises: UserError if the server cannot be reached, refuses, or is not ready in time.
    """
    options = options or CallOptions()
    address, query = chat_address(url), options.query()
    where = address.split("?")[0]
    headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        try:
            socket = await session.ws_connect(
                address, params=query, ssl=options.ssl, timeout=aiohttp.ClientWSTimeout(ws_close=2.0)
            )
        except aiohttp.WSServerHandshakeError as why:
            code = CODES.get(why.status, "bad-answer")
            raise UserError(f"{where}: {await _refusal(session, address, query, options, why.status)}", code) from why
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as why:
            raise UserError(f"{where}: cannot be reached ({_reason(why)}), is the server up?", "unreachable") from why
        try:
            call = LiveCall(socket, options.codec, where)
            await call.wait_until_ready(options.ready_seconds)
            call.ready_seconds = time.monotonic() - began
            yield call
        finally:
            await socket.close()


def chat_address(url: str) -> str:
    """The address of a server's chat. Raises: UserError for what is no address."""
    scheme, separator, rest = url.strip().rstrip("/").partition("://")
    if not separator or scheme not in ("http", "https", "ws", "wss") or not rest:
        raise UserError(f"{url}: not a server's address, give http://HOST:PORT", code="bad-value")
    return f"{scheme}://{rest}" + ("" if rest.endswith(PATH) else PATH)


async def _refusal(
    session: aiohttp.ClientSession, address: str, query: dict[str, str], options: CallOptions, status: int
) -> str:
    """What the server has against a call. An upgrade that fails loses its body, so the question is asked again."""
    try:
        async with session.get(address, params=query, ssl=options.ssl) as answer:
            content = json.loads(await answer.content.read(2**16)) if answer.status == status else {}
        allowed = content.get("allowed")
        choices = f", choose from {', '.join(map(str, allowed))}" if isinstance(allowed, list) and allowed else ""
        return f"refused, {content['error']}{choices}"
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, KeyError, TypeError):
        return f"refused with status {status}, {HTTPStatus(status).phrase.lower()}: try again later"


def _reason(why: Exception) -> str:
    return " ".join(str(why).split()) or type(why).__name__


def _after(goodbye: str) -> str:
    return f": {goodbye}" if goodbye else ", try again"
