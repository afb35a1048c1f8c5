"""A plain client of `/v1/realtime`."""

import asyncio
import base64
import json
from typing import Any

import aiohttp
import numpy as np

from ppx_train.inference.session import Audio
from ppx_train.serve.realtime import PATH
from tests.ppx_train.serve.live import Live

Event = dict[str, Any]


def session(one: Live, **more: Any) -> Any:
    """A WebSocket to /v1/realtime, as an async context manager."""
    return one.http.ws_connect(one.address + PATH, params={"model": "any"}, **more)


async def event(socket: Any, seconds: float = 10.0) -> Event | None:
    """The next event, or None once the server has closed."""
    got = await asyncio.wait_for(socket.receive(), seconds)
    return json.loads(got.data) if got.type is aiohttp.WSMsgType.TEXT else None


async def rest(socket: Any) -> list[Event]:
    """All events up to the close."""
    got = []
    while (one := await event(socket)) is not None:
        got.append(one)
    return got


async def until_type(socket: Any, type_: str) -> list[Event]:
    """Events up to the first of a type."""
    got: list[Event] = []
    while not got or got[-1]["type"] != type_:
        one = await event(socket)
        assert one is not None, (type_, got)
        got.append(one)
    return got


def update(**fields: Any) -> str:
    return json.dumps({"type": "session.update", "session": {"type": "realtime", **fields}})


def append(wav_S: Audio) -> str:
    sound = base64.b64encode((wav_S * 2**15).astype("<i2").tobytes()).decode()
    return json.dumps({"type": "input_audio_buffer.append", "audio": sound})


def deltas(events: list[Event], kind: str) -> list[str]:
    return [one["delta"] for one in events if one["type"] == f"response.{kind}.delta"]


def sound(events: list[Event]) -> Any:
    return np.frombuffer(b"".join(map(base64.b64decode, deltas(events, "output_audio"))), "<i2")
