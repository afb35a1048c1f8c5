"""Servers of `/api/chat` that do as they are told, for tests of clients: a handshake, messages, an end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

Script = Callable[[web.WebSocketResponse, "Seen"], Awaitable[None]]


@dataclass
class Seen:
    """What a client asked for and sent."""

    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    messages: list[bytes] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)


@asynccontextmanager
async def serving(script: Script, refusal: web.Response | None = None) -> AsyncIterator[tuple[str, Seen]]:
    """A server on loopback, and what it has seen; with `refusal` it upgrades no call."""
    seen = Seen()

    async def chat(request: web.Request) -> web.StreamResponse:
        seen.query, seen.headers = dict(request.query), dict(request.headers)
        if refusal is not None:
            return web.Response(status=refusal.status, body=refusal.body, content_type=refusal.content_type)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await script(socket, seen)
        return socket

    app = web.Application()
    app.router.add_get("/api/chat", chat)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        await runner.cleanup()


async def listen(socket: web.WebSocketResponse, seen: Seen, messages: int) -> None:
    """Waits for a number of messages of the client."""
    async for message in socket:
        assert message.type is WSMsgType.BINARY
        seen.messages.append(message.data)
        seen.arrived.append(asyncio.get_running_loop().time())
        if len(seen.messages) >= messages:
            return
