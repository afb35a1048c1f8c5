"""What a call leaves behind: nothing, and at once."""

import gc
import weakref
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from ppx_train.inference.loading import Release
from ppx_train.serve.protocol import Kind
from tests.ppx_train.serve.live import live, pcm, receive_until, speech, until, within


def test_a_call_that_has_ended_is_freed_without_a_garbage_collection(voiced: Release) -> None:
    async def test() -> None:
        ended: list[weakref.ref[Any]] = []
        async with live(voiced) as one:
            for _ in range(3):
                async with one.call({"proto": "2"}) as socket:
                    await receive_until(socket, Kind.HANDSHAKE)
                    ended += [weakref.ref(chat) for chat in one.service.chats]
                    for frame_S in speech(3):
                        await socket.send_bytes(pcm(frame_S))
                    await receive_until(socket, Kind.AUDIO)
                await until(lambda: one.free == 2)
            await until(lambda: all(chat() is None for chat in ended))

    gc.collect()
    gc.disable()
    try:
        within(30, test())
    finally:
        gc.enable()
