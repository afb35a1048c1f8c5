"""The client against servers that do as they are told: every kind of handshake, message, refusal and end."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from model.config import FRAME_SAMPLES
from model.errors import Code
from model.streaming.sample import Sampling
from ppx_train.serve.client import CallOptions, Received, chat_address, connect
from ppx_train.serve.file_chat import talk
from tests.ppx_train.serve.fake_chat_server import Script, Seen, listen, serving
from tests.refusals import refused

PCM = CallOptions(codec="pcm16", ready_seconds=5)


def pcm(samples: Any) -> bytes:
    """An audio message."""
    return b"\x01" + np.round(np.asarray(samples) * 32767).astype("<i2").tobytes()


def call(
    script: Script, options: CallOptions = PCM, refusal: web.Response | None = None
) -> tuple[list[Received], Seen]:
    """All that a client hears of a server."""

    async def run() -> tuple[list[Received], Seen]:
        async with serving(script, refusal) as (url, seen), connect(url, options) as live:
            return [*live.before, *[message async for message in live]], seen

    return asyncio.run(run())


async def nothing(socket: web.WebSocketResponse, seen: Seen) -> None:
    raise AssertionError("the call was to be refused")


@pytest.mark.parametrize("handshake", [b"\x00", b"\x00\x00\x00", b"\x00" + bytes(8)])
def test_handshakes_of_all_servers_are_accepted(handshake: bytes) -> None:
    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_bytes(handshake)
        await socket.send_bytes(pcm([0.25, -0.5]))
        await socket.send_bytes(b"\x02 h\xc3\xa9")

    sound, text = call(script)[0]
    assert sound.kind == "audio" and np.allclose(sound.agent_S, [0.25, -0.5], atol=1e-4)
    assert (text.kind, text.text) == ("text", " hé")


def test_events_before_the_handshake_are_kept_and_unknown_messages_dropped() -> None:
    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_str("what?")
        await socket.send_bytes(b'\x04{"type": "queued", "position": 2}')
        await socket.send_bytes(b"\x00")
        for odd in (b"", b"\x06", b"\x07\x01red", b"\x03\x09", b"\xff"):
            await socket.send_bytes(odd)
        await socket.send_bytes(b'\x04{"type": "bye"}')

    messages, _ = call(script)
    assert [message.event for message in messages] == [{"type": "queued", "position": 2}, {"type": "bye"}]


def test_what_is_asked_for_is_sent_under_the_names_of_the_page() -> None:
    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_bytes(b"\x00")

    sampling = Sampling(text_temperature=0.5, text_top_k=7, audio_temperature=0.6, audio_top_k=9)
    _, seen = call(
        script, CallOptions(voice="NATF2", role="A & B?", seed=3, sampling=sampling, token="open", protocol=1)
    )
    assert seen.query == {
        "voice_prompt": "NATF2", "text_prompt": "A & B?", "seed": "3", "text_temperature": "0.5", "text_topk": "7",
        "audio_temperature": "0.6", "audio_topk": "9",
    }  # fmt: skip
    assert seen.headers["Authorization"] == "Bearer open"
    greedy = CallOptions(sampling=Sampling(greedy=True), codec="pcm16").query()
    assert greedy["text_topk"] == greedy["audio_topk"] == "1" and (greedy["codec"], greedy["proto"]) == ("pcm16", "2")


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "bad-value"), (401, "no-access"), (404, "unknown-name"), (503, "in-use"), (500, "bad-answer")],
)
def test_a_refusal_is_one_line_with_the_words_of_the_server(status: int, code: Code) -> None:
    refusal = web.json_response({"error": "no such voice", "allowed": ["NATF0", "NATM1"]}, status=status)
    with refused(code, "refused, no such voice, choose from NATF0, NATM1"):
        call(nothing, refusal=refusal)
    with refused(code, f"refused with status {status}"):
        call(nothing, refusal=web.Response(status=status, text="<html>"))


@pytest.mark.parametrize(("close", "code"), [(1011, "unreachable"), (1012, "in-use"), (1013, "in-use")])
def test_an_end_with_an_error_is_told_in_the_words_of_the_server(close: int, code: Code) -> None:
    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_bytes(b"\x00")
        await socket.send_bytes(b"\x05something is wrong here")
        await socket.close(code=close)

    with refused(code, "something is wrong here"):
        call(script)


def test_a_server_that_never_gets_ready_or_leaves_is_told() -> None:
    async def waits(socket: web.WebSocketResponse, seen: Seen) -> None:
        await listen(socket, seen, 1)

    async def leaves(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.close()

    with refused("unreachable", "silent"):
        call(waits, CallOptions(ready_seconds=0.2))
    with refused("unreachable", "before it was ready"):
        call(leaves)


def test_addresses() -> None:
    for url in ("http://a:1", "http://a:1/", "http://a:1/api/chat"):
        assert chat_address(url) == "http://a:1/api/chat"
    assert chat_address("wss://a/live") == "wss://a/live/api/chat"
    for url in ("a:1", "ftp://a", "http://", ""):
        with refused("bad-value", "not a server's address"):
            chat_address(url)
    with refused("unreachable", "is the server up"):
        asyncio.run(connect("http://127.0.0.1:9", PCM).__aenter__())
    with refused("bad-combination", "protocol 1 has opus alone"):
        CallOptions(codec="pcm16", protocol=1).query()


def echo_frames(texts: dict[int, str]) -> Script:
    """Echoes every frame that it hears but the first, which is the lead, and says texts after their frames."""

    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_bytes(b"\x00")
        number = -1
        async for message in socket:
            seen.messages.append(message.data)
            seen.arrived.append(asyncio.get_running_loop().time())
            if number >= 0:
                await socket.send_bytes(message.data)
                if number in texts:
                    await socket.send_bytes(b"\x02" + texts[number].encode())
            number += 1

    return script


def test_a_talk_is_paced_as_long_as_the_recording_and_keeps_text_with_its_frame() -> None:
    user_S = (0.5 * np.sin(np.arange(round(4.5 * FRAME_SAMPLES)) / 20)).astype(np.float32)

    async def run(speed: float) -> tuple[Any, Seen]:
        script = echo_frames({1: " Hel", 2: "lo", 4: " you"})
        async with serving(script) as (url, seen), connect(url, PCM) as live:
            return await talk(live, user_S, speed=speed), seen

    found, seen = asyncio.run(run(1.0))
    assert found.agent_S.shape == user_S.shape and np.allclose(found.agent_S, user_S, atol=1e-4)
    assert found.pieces == ["PAD", " Hel", "lo", "PAD", " you"]
    assert [(word.text, round(word.seconds, 2)) for word in found.words()] == [("Hello", 0.08), ("you", 0.32)]
    assert seen.arrived[5] - seen.arrived[0] > 0.39
    _, hurried = asyncio.run(run(100.0))
    assert hurried.arrived[5] - hurried.arrived[0] < 0.39


def test_times_of_text_and_kinds_of_frames_come_from_events_where_a_server_sends_them() -> None:
    events = [("state", 0.0, "EPAD"), ("text", 0.08, " Hi"), ("state", 0.08, "text"), ("state", 0.24, "PAD")]

    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_bytes(b"\x00")
        for kind, at, value in events:
            await socket.send_bytes(b"\x04" + json.dumps({"type": kind, "at": at, kind: value}).encode())
        await socket.send_bytes(b"\x02 Hi")
        for _ in range(6):
            await socket.send_bytes(pcm(np.zeros(FRAME_SAMPLES)))

    async def run() -> Any:
        async with serving(script) as (url, _), connect(url, PCM) as live:
            return await talk(live, np.zeros(5 * FRAME_SAMPLES, np.float32))

    assert asyncio.run(run()).pieces == ["EPAD", " Hi", "", "PAD", "PAD"]


def test_a_talk_that_the_server_ends_in_order_is_shorter_and_says_why() -> None:
    async def script(socket: web.WebSocketResponse, seen: Seen) -> None:
        await socket.send_bytes(b"\x00")
        await socket.send_bytes(pcm(np.zeros(FRAME_SAMPLES)))
        await socket.send_bytes(b"\x05the time is up")
        await socket.close(code=1000)

    async def run() -> Any:
        async with serving(script) as (url, _), connect(url, PCM) as live:
            return await talk(live, np.zeros(4 * FRAME_SAMPLES, np.float32))

    found = asyncio.run(run())
    assert len(found.agent_S) == FRAME_SAMPLES and found.goodbye == "the time is up"
