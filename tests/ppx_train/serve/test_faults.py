"""Clients that misbehave, vanish or are too slow or too fast, and a server that fails or stops: others go on."""

import asyncio
import os
import random
import socket as sockets
import struct
import time
from typing import Any

import aiohttp
import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from ppx_train.inference.loading import Release
from ppx_train.serve.protocol import Kind, audio_message
from ppx_train.serve.server import drain
from ppx_train.serve.settings import CallLimits
from tests.ppx_train.serve.live import (
    Live,
    live,
    paced,
    pcm,
    receive_until,
    rest,
    speech,
    until,
    within,
)

ROUNDS = int(os.environ.get("PPX_FUZZ", "300"))
"""Random messages; the variable sets more, as for the other fuzz tests."""


async def open_call(one: Live, query: dict[str, str] | None = None) -> Any:
    """A call that is through its prompt."""
    socket = await one.call(query)
    await receive_until(socket, Kind.HANDSHAKE)
    return socket


async def is_serving(one: Live) -> bool:
    """Whether another caller gets through, and gets sound."""
    async with one.call() as socket:
        await receive_until(socket, Kind.HANDSHAKE)
        await paced(4, lambda n: socket.send_bytes(pcm(speech(4)[n])))
        return (await receive_until(socket, Kind.AUDIO))[-1].kind == Kind.AUDIO and not one.exits


def closes(release: Release, code: int, data: Any, words: str, query: dict[str, str] | None = None) -> None:
    """Whether a call ends with a code and a sentence after some data, and leaves the server serving."""

    async def test() -> None:
        async with live(release) as one:
            socket = await open_call(one, query)
            await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
            last = await rest(socket)
            assert socket.close_code == code
            assert not words or (last[-1].kind == Kind.ERROR and words in last[-1].text)
            assert await until(lambda: one.free == 2) < 1 and await is_serving(one)

    within(30, test())


def test_sound_that_cannot_be_decoded_ends_the_call(voiced: Release) -> None:
    pytest.importorskip("sphn")
    closes(voiced, 1007, audio_message(b"\xff" * 500), "decoded", {"codec": "opus"})


def test_a_message_that_is_too_long_ends_the_call(voiced: Release) -> None:
    closes(voiced, 1009, audio_message(bytes(70_000)), "64 KiB")


def test_a_text_frame_ends_a_call_with_events(voiced: Release) -> None:
    closes(voiced, 1003, "[" * 60_000, "binary", {"proto": "2"})


def test_a_client_that_sends_too_fast_is_cut_off_and_one_at_real_time_is_not(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, limits=CallLimits(burst_seconds=1.0)) as one:
            good, fast = await open_call(one), await open_call(one, {"proto": "2"})

            async def both(n: int) -> None:
                await good.send_bytes(pcm(speech(1)[0]))
                if not fast.closed:
                    for _ in range(5):
                        await fast.send_bytes(pcm(speech(1, n)[0]))

            sending = asyncio.create_task(paced(14, both))
            messages = await rest(fast)
            events = [m.event for m in messages if m.kind == Kind.METADATA]
            assert fast.close_code == 1008 and "twice real time" in messages[-1].text
            assert "backlog_dropped" in {event["type"] for event in events} and events[-1]["type"] == "bye"
            await sending
            assert not good.closed and one.free == 1
            await good.close()

    within(30, test())


def test_hidden_hours_of_silence_are_not_decoded(voiced: Release) -> None:
    """Opus packets of a few bytes hold 120 ms each: a message of 64 KiB could hold an hour."""
    pytest.importorskip("sphn")
    from ppx_train.serve.opus import writer_of

    writer = writer_of("opus")
    header = writer.write(np.zeros(1920, np.float32))
    pages = b"".join(ogg_page(serial=header[14:18], number=n + 100, packets=[b"\xfb\x03"] * 250) for n in range(60))

    async def test() -> None:
        async with live(voiced) as one:
            socket = await open_call(one, {"codec": "opus"})
            await socket.send_bytes(audio_message(header + pages))
            began = time.monotonic()
            await rest(socket)
            assert socket.close_code in (1007, 1008) and time.monotonic() - began < 2
            assert one.service.metrics.lag(1.0) < 0.5 and await is_serving(one)

    within(30, test())


def ogg_page(*, serial: bytes, number: int, packets: list[bytes]) -> bytes:
    sizes = bytes(len(packet) for packet in packets)
    head = b"OggS\0\0" + struct.pack("<q", number * 10**5) + serial + struct.pack("<II", number, 0)
    return head + bytes([len(packets)]) + sizes + b"".join(packets)


def test_clients_that_vanish_leave_their_slot(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, limits=CallLimits(heartbeat_seconds=0.6)) as one:
            socket = await open_call(one)
            socket._response.connection.transport.abort()  # As when its process is killed.
            assert await until(lambda: one.free == 2) < 0.5
            # A half-open one: it is there, and neither sends nor answers pings.
            raw = await raw_client(one)
            await until(lambda: one.free == 1)
            assert await until(lambda: one.free == 2) < 3
            raw.close()
            assert await is_serving(one)

    within(30, test())


async def raw_client(one: Live) -> sockets.socket:
    """A connection that has asked for a call, and reads nothing."""
    host, port = one.address.removeprefix("http://").split(":")
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, (host, int(port)))
    request = "GET /api/chat?codec=pcm16 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    await loop.sock_sendall(raw, request.encode())
    return raw


def test_a_client_that_reads_too_slowly_is_cut_off(voiced: Release) -> None:
    async def test() -> None:
        limits = CallLimits(unsent_frames=6, heartbeat_seconds=30)
        async with live(voiced, limits=limits) as one:
            raw = await raw_client(one)
            await until(lambda: one.free == 1)
            loop = asyncio.get_running_loop()
            good = await open_call(one)

            data = pcm(speech(1)[0])
            head = struct.pack(">BBH", 0x82, 0x80 | 126, len(data)) + bytes(4)

            deadline = loop.time() + 20
            while one.free == 0 and loop.time() < deadline:
                await loop.sock_sendall(raw, head + data)
                await good.send_bytes(data)
                await asyncio.sleep(0.07)
            assert one.free == 1
            await until(lambda: 'ppx_calls_total{reason="slow"} 1.0' in one.service.metrics.page(None, 0, 0).decode())
            assert not good.closed
            await good.close()
            raw.close()

    within(40, test())


def test_silent_and_long_calls_end_with_a_reason(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, limits=CallLimits(idle_seconds=0.4)) as one:
            idle = await open_call(one)
            assert "sound" in (await rest(idle))[-1].text and idle.close_code == 1000
            async with one.call({"max_steps": "3"}) as short:
                await receive_until(short, Kind.HANDSHAKE)
                await paced(6, lambda n: short.send_bytes(pcm(speech(6)[n])))
                messages = await rest(short)
                assert "time" in messages[-1].text and short.close_code == 1000
                assert len([m for m in messages if m.kind == Kind.AUDIO]) == 3

    within(30, test())


def test_a_caller_in_the_queue_is_sent_away_in_time(voiced: Release) -> None:
    async def test() -> None:
        limits = CallLimits(queue_seconds=0.4, idle_seconds=60)
        async with live(voiced, max_sessions=1, limits=limits) as one:
            holder = await open_call(one)
            async with one.call({"proto": "2"}) as waits:
                assert "taken" in (await rest(waits))[-1].text and waits.close_code == 1013
            await holder.close()
            await until(lambda: one.free == 1)

    within(30, test())


def test_draining_refuses_callers_and_cuts_calls_at_the_deadline(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            talks = await open_call(one, {"proto": "2"})
            draining = asyncio.create_task(drain(one.service, 0.5, asyncio.Event()))
            await asyncio.sleep(0.1)
            assert (await one.refused({"codec": "pcm16"}))[0] == 503 and (await one.get("/readyz"))[0] == 503
            messages = await rest(talks)
            events = [m.event for m in messages if m.kind == Kind.METADATA]
            assert [event["type"] for event in events if event["type"] != "ready"] == ["limit", "bye"]
            assert talks.close_code == 1012 and "again" in messages[-1].text
            await draining
            assert not one.service.chats

    within(30, test())


def test_a_model_that_fails_tells_all_callers_and_ends_the_process(
    voiced: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def test() -> None:
        monkeypatch.setattr("ppx_train.serve.watchdog.GRACE_SECONDS", 0.3)
        async with live(voiced) as one:
            first, second = await open_call(one), await open_call(one)
            assert one.service.engine is not None
            monkeypatch.setattr(one.service.engine.conversations, "step", fails)
            await paced(3, lambda n: first.send_bytes(pcm(speech(3)[n])))
            for socket in (first, second):
                assert "failed" in (await rest(socket))[-1].text and socket.close_code == 1011
            await until(lambda: one.exits == [70])
            assert (await one.get("/readyz"))[0] == 503 and (await one.refused({"codec": "pcm16"}))[0] == 503
            assert (await one.get("/healthz"))[0] == 200

    within(30, test())


def test_a_tick_that_hangs_ends_the_process(voiced: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("ppx_train.serve.watchdog.GRACE_SECONDS", 0.3)
        async with live(voiced, watchdog_seconds=1.0) as one:
            socket = await open_call(one)
            assert one.service.engine is not None
            monkeypatch.setattr(one.service.engine.conversations, "step", lambda heard: time.sleep(2.5))
            await paced(3, lambda n: socket.send_bytes(pcm(speech(3)[n])))
            await rest(socket)
            assert socket.close_code == 1011
            await until(lambda: one.exits == [70])

    within(30, test())


def test_random_messages_leave_it_serving(voiced: Release) -> None:
    """Random kinds, lengths and cuts; whatever comes, the call ends with a code of the protocol or goes on."""
    random_ = random.Random(0)

    def junk() -> tuple[bool, bytes]:
        length = random_.choice((0, 1, 2, 3, 9, 100, 1920, 3841, 20_000, 65_536, 65_537, 66_000))
        data = random_.randbytes(length)
        kind = random_.choice((0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 200))
        body = random_.choice((data, b"OggS" + data, b"OggS\0\2" + bytes(20) + data[:200], b"{" * length))
        return random_.random() < 0.1, (bytes([kind]) + body if random_.random() < 0.9 else body)

    async def test() -> None:
        async with live(voiced, limits=CallLimits(burst_seconds=3.0)) as one:
            sent = 0
            while sent < ROUNDS:
                codec = random_.choice(one_codec)
                socket = await one.call({"codec": codec, "proto": random_.choice("12")})
                reading = asyncio.create_task(rest(socket, 20))
                while sent < ROUNDS and not socket.closed:
                    is_text, data = junk()
                    try:
                        await (socket.send_str(data.hex()[:60_000]) if is_text else socket.send_bytes(data))
                    except (ConnectionError, aiohttp.ClientError):
                        break
                    sent += 1
                    await asyncio.sleep(0)
                await socket.close()
                await reading
                assert socket.close_code in (1000, 1003, 1007, 1008, 1009), socket.close_code
            assert await until(lambda: one.free == 2) < 2 and await is_serving(one)

    from ppx_train.serve.opus import codecs_here

    one_codec = codecs_here()
    within(30 + ROUNDS / 20, test())


def test_random_queries_get_an_answer_of_the_protocol(voiced: Release) -> None:
    random_ = random.Random(1)
    names = "voice_prompt text_prompt seed text_temperature audio_topk max_steps proto codec pads text_seed x".split()
    values = ("", "1", "-1", "1e400", "NaN", "\0", "\ud7ff", "é" * 30, "../a", "ada.pt", "9" * 50, "%00", "0.1", "[]")

    async def test() -> None:
        async with live(voiced) as one:
            for _ in range(min(ROUNDS, 2000) // 5):
                wanted = {random_.choice(names): random_.choice(values) for _ in range(random_.randrange(5))}
                status, _ = await one.refused({"proto": "1", "codec": "pcm16", **wanted})
                assert status in (101, 400, 404, 503), (status, wanted)
            for raw in ("?%ff%fe=%c3&seed=%ff", "?text_prompt=%ed%a0%80", "?&&==&", "?" + "a=" * 3000):
                async with one.http.get(one.address + "/api/chat" + raw) as got:
                    assert got.status == 400

    within(60, test())
