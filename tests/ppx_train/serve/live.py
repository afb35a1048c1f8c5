"""A server in the test's own process and clients that talk to it over loopback sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from ppx_train.inference.loading import Release
from ppx_train.inference.session import Audio
from ppx_train.serve.protocol import PATH, Kind, Message, audio_message, read_message
from ppx_train.serve.server import in_thread, listening, running
from ppx_train.serve.service import Service
from ppx_train.serve.settings import CallLimits, ServeSettings
from tests.ppx_train.inference.noise import noise

FRAME = 1920


@dataclass
class Live:
    """A running server. exits: codes with which its watchdog would have ended the process."""

    service: Service
    address: str
    http: aiohttp.ClientSession
    exits: list[int] = field(default_factory=list)

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        async with self.http.get(self.address + path, **more) as answer:
            return answer.status, await (answer.json() if "json" in answer.content_type else answer.text())

    async def refused(self, query: dict[str, str] | None = None, **more: Any) -> tuple[int, Any]:
        """The status and the body with which a call is refused before the upgrade."""
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        headers |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | more.pop("headers", {})
        return await self.get(PATH, params=query or {}, headers=headers, **more)

    def call(self, query: dict[str, str] | None = None, **more: Any) -> Any:
        """A WebSocket to /api/chat, as an async context manager."""
        return self.http.ws_connect(self.address + PATH, params={"codec": "pcm16", **(query or {})}, **more)

    @property
    def free(self) -> int:
        assert self.service.engine is not None
        return self.service.engine.conversations.free


@asynccontextmanager
async def live(release: Release, *, limits: CallLimits | None = None, **settings: Any) -> AsyncIterator[Live]:
    # On a busy machine a tick may measure long.
    settings = {"model": "tiny", "max_sessions": 2, "not_realtime": True, **settings}
    service = Service(ServeSettings(port=0, limits=limits or CallLimits(), **settings))
    service.settings.check()
    async with listening(service) as address, aiohttp.ClientSession() as http:
        one = Live(service, address, http)
        await in_thread(lambda: service.load(release))
        async with running(service, leave=one.exits.append):
            yield one


def within(seconds: float, test: Coroutine[Any, Any, None]) -> None:
    """Runs a test that must end in time."""
    asyncio.run(asyncio.wait_for(test, seconds))


async def until(true: Callable[[], bool], seconds: float = 5.0) -> float:
    """Waits until something is true; returns for how long."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it did not become true"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def receive(socket: Any, seconds: float = 5.0) -> Message | None:
    """The next message, or None once the server has closed."""
    got = await asyncio.wait_for(socket.receive(), seconds)
    return read_message(got.data) if got.type is aiohttp.WSMsgType.BINARY else None


async def receive_until(socket: Any, kind: Kind, seconds: float = 5.0) -> list[Message]:
    """Messages up to the first of a kind, or up to the close."""
    got: list[Message] = []
    while (message := await receive(socket, seconds)) is not None:
        got.append(message)
        if message.kind == kind:
            break
    return got


async def rest(socket: Any, seconds: float = 5.0) -> list[Message]:
    """All messages up to the close."""
    got = []
    while (message := await receive(socket, seconds)) is not None:
        got.append(message)
    return got


def speech(frames: int, seed: int = 0) -> Audio:
    """Noise that PCM16 carries exactly, [frames, 1920]."""
    values = np.rint(noise(frames * FRAME / 24000 + 0.01, seed=seed)[: frames * FRAME, 0] * 2**15)
    return (np.clip(values, -(2**15), 2**15 - 1) / 2**15).astype(np.float32).reshape(frames, FRAME)


def pcm(frame_S: Audio) -> bytes:
    return audio_message((frame_S * 2**15).astype("<i2").tobytes())


async def paced(frames: int, send: Callable[[int], Awaitable[None]]) -> None:
    """Calls `send` with 0, 1, ... every 80 ms."""
    began = time.monotonic()
    for n in range(frames):
        await asyncio.sleep(max(0.0, began + n * 0.08 - time.monotonic()))
        await send(n)


def sound(messages: list[Message]) -> Any:
    """The samples, int16, of PCM16 messages."""
    return np.frombuffer(b"".join(m.payload for m in messages if m.kind == Kind.AUDIO), "<i2")
