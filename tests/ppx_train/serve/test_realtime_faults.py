"""What `/v1/realtime` refuses, how its sessions end, and who may open one."""

import asyncio
import json
import os
import random
from typing import Any

import aiohttp
import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from ppx_train.inference.chat_settings import ROLE
from ppx_train.inference.engine import MOST_QUEUED
from ppx_train.inference.loading import Release
from ppx_train.serve.outbox import MOST_MESSAGES, Outbox
from ppx_train.serve.realtime import PATH
from ppx_train.serve.server import drain
from ppx_train.serve.settings import CallLimits
from tests.ppx_train.serve.live import FRAME, Live, live, paced, speech, until, within
from tests.ppx_train.serve.realtime import append, event, rest, session, sound, until_type, update

ROUNDS = int(os.environ.get("PPX_FUZZ", "1000"))


REFUSED: list[tuple[Any, str, str | None]] = [
    ("{", "invalid_json", None),
    ("[" * 60_000, "invalid_json", None),
    ('{"type": "session.update", "session": {"instructions": "\\ud800"}}', "invalid_json", None),
    ("[]", "invalid_value", None),
    ({}, "invalid_value", "type"),
    ({"type": ["session.update"]}, "invalid_value", "type"),
    ({"type": "transcription_session.update"}, "invalid_value", "type"),
    ({"type": "session.update"}, "invalid_value", "session"),
    ({"type": "session.update", "session": 3}, "invalid_value", "session"),
    ({"type": "input_audio_buffer.append"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": 7}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "a"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "é\n=="}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.commit"}, "no_turns", "type"),
    ({"type": "response.create", "response": {"instructions": "greet"}}, "no_turns", "type"),
    ({"type": "response.cancel"}, "no_turns", "type"),
    (update(audio={"input": {"turn_detection": {"type": "server_vad"}}}), "no_turns",
     "session.audio.input.turn_detection"),
    (update(instructions=3), "invalid_value", "session.instructions"),
    (update(instructions="a" * 9000), "invalid_value", "session.instructions"),
    (update(instructions="waste " * 600), "invalid_value", "session.instructions"),
    (update(audio={"output": {"voice": "marin"}}), "invalid_value", "session.audio.output.voice"),
    (update(audio={"output": {"voice": "../ada"}}), "invalid_value", "session.audio.output.voice"),
    (update(audio={"output": {"format": {"type": "audio/pcmu"}}}), "invalid_value", "session.audio.output.format.type"),
    (update(audio={"input": {"transcription": {"model": "whisper-1"}}}), "invalid_value",
     "session.audio.input.transcription"),
    (update(output_modalities=["text"]), "invalid_value", "session.output_modalities.0"),
    (update(tools=[{"type": "function", "name": "f"}]), "invalid_value", "session.tools"),
    (update(voice="ada"), "unknown_parameter", "session.voice"),
    (update(seed=True), "invalid_value", "session.seed"),
    (update(seed=-7), "invalid_value", "session.seed"),
    (update(text_temperature="hot"), "invalid_value", "session.text_temperature"),
    ('{"type": "session.update", "session": {"max_steps": ' + "9" * 4000 + "}}", "invalid_value", "session.max_steps"),
    ('{"type": "session.update", "session": {"text_temperature": NaN}}', "invalid_value", "session.text_temperature"),
]  # fmt: skip


def test_events_that_cannot_have_an_effect_are_refused_and_the_session_goes_on(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one, session(one) as socket:
            created = (await until_type(socket, "session.created"))[-1]["session"]
            assert created["instructions"] == ROLE and created["audio"]["output"]["voice"] == "ada"
            assert created["audio"]["input"]["turn_detection"] is None
            for sent, code, param in REFUSED:
                if isinstance(sent, dict):
                    sent = {**sent, "event_id": "mine"}
                await socket.send_str(sent if isinstance(sent, str) else json.dumps(sent))
                answer = await event(socket)
                assert answer is not None and answer["type"] == "error", (sent, answer)
                error = answer["error"]
                assert (error["code"], error["param"]) == (code, param), (str(sent)[:99], error)
                assert error["type"] == "invalid_request_error" and len(error["message"]) < 500
                assert error["event_id"] == ("mine" if isinstance(sent, dict) else None)
            assert one.free == 2  # Nothing of it has begun a call, nor changed the session.
            await socket.send_str(update(text_temperature=9, audio={"input": {"turn_detection": None}}))
            updated = (await until_type(socket, "session.updated"))[-1]["session"]
            assert updated == {**created, "text_temperature": 2.0}  # as far as it goes
            await paced(6, lambda n: socket.send_str(append(speech(6)[n])))
            assert len(sound(await until_type(socket, "response.output_audio.delta"))) == FRAME
            await socket.send_str(update(instructions="another role"))
            error = (await until_type(socket, "error"))[-1]["error"]
            assert error["code"] == "session_fixed" and "fixed" in error["message"]
            await socket.close()
            assert await until(lambda: one.free == 2) < 5

    within(60, test())


def test_sessions_end_with_an_error_and_a_close_code(voiced: Release) -> None:
    async def ends(socket: Any, sent: Any = None) -> tuple[int, str]:
        if sent is not None:
            await (socket.send_bytes(sent) if isinstance(sent, bytes) else socket.send_str(sent))
        last = (await rest(socket))[-1]
        assert last["type"] == "error" and last["error"]["message"]
        return socket.close_code, last["error"]["code"]

    async def test() -> None:
        limits = CallLimits(idle_seconds=1.5, seat_seconds=0.6, burst_seconds=5.0)
        async with live(voiced, max_sessions=1, limits=limits) as one:
            assert await ends(await session(one), b"\1sound") == (1003, "wrong-type")
            assert await ends(await session(one), append(np.zeros(30_000, np.float32))) == (1009, "too-large")
            assert await ends(await session(one)) == (1000, "idle")
            flood = await session(one)
            for _ in range(12):
                await flood.send_str(append(np.zeros(22_000, np.float32)))
            assert await ends(flood) == (1008, "too-fast")
            await until(lambda: one.free == 1)
            holder = await session(one)
            await holder.send_str(append(speech(1)[0]))
            await until(lambda: one.free == 0)
            assert await ends(await session(one), append(speech(1)[0])) == (1013, "queue")
            await holder.send_str(append(speech(1)[0]))
            draining = asyncio.create_task(drain(one.service, 0.3, asyncio.Event()))
            assert await ends(holder) == (1012, "draining")
            await draining
            page = one.service.metrics.page(None, 0, 0).decode()
            for reason in ("wrong-type", "too-large", "idle", "too-fast", "queue", "draining"):
                assert f'ppx_calls_total{{reason="{reason}"}} 1.0' in page

    within(60, test())


def test_who_may_open_a_session_is_the_same_as_for_a_call(voiced: Release) -> None:
    async def status(one: Live, **more: Any) -> int:
        params = more.pop("params", {})
        try:
            async with one.http.ws_connect(one.address + PATH, params=params, **more) as socket:
                assert (await event(socket) or {})["type"] == "session.created"
                return 101
        except aiohttp.WSServerHandshakeError as why:
            return why.status

    async def test() -> None:
        async with live(voiced, token="a-good-token") as one:
            assert await status(one) == 401
            assert await status(one, headers={"Authorization": "Bearer another-token"}) == 401
            token = {"Authorization": "Bearer a-good-token"}
            assert await status(one, headers=token) == 101
            assert await status(one, headers={**token, "Origin": "https://evil.example"}) == 403
            assert await status(one, headers={**token, "OpenAI-Beta": "realtime=v1"}) == 400
            assert await status(one, headers=token, params={"intent": "transcription"}) == 400
            assert (await one.get(PATH, headers=token))[0] == 400
            offers = ("realtime", "openai-insecure-api-key.a-good-token")
            async with session(one, protocols=offers) as socket:
                assert socket.protocol == "realtime"  # Browsers close if none of their offers is taken.
            await until(lambda: not one.service.chats)
            waiting = [await session(one, headers=token) for _ in range(MOST_QUEUED)]
            assert await status(one, headers=token) == 503
            for socket in waiting:
                await socket.close()
            await until(lambda: not one.service.chats)
            assert await status(one, headers=token) == 101

    within(60, test())


def test_a_client_that_does_not_read_its_errors_costs_no_more_memory() -> None:
    outbox = Outbox(25)
    assert all(outbox.put("error") for _ in range(MOST_MESSAGES)) and not outbox.put("error")


def test_random_messages_leave_it_serving(voiced: Release) -> None:
    random_ = random.Random(0)
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        1e400,
        10**30,
        "",
        "x" * 3000,
        "\0",
        "é",
        [],
        [[]],
        {},
        {"a": {}},
        "AAAA",
        "//79",
    ]
    types = [
        "session.update", "session.update", "input_audio_buffer.append", "input_audio_buffer.append",
        "response.create", "conversation.item.create", "x", None, 3,
    ]  # fmt: skip
    names = ["type", "session", "audio", "event_id", "instructions", "seed", "max_steps", "input", "output", "voice"]

    broken = ["", "{", '{"type":', "[" * 2000, '{"type": "\\udc00"}', "null", "9" * 5000, "x" * 66_000]

    def thing(depth: int = 0) -> Any:
        if depth > 3 or random_.random() < 0.4:
            return random_.choice(values)
        return {random_.choice(names): thing(depth + 1) for _ in range(random_.randrange(4))}

    def junk() -> str | bytes:
        kind = random_.random()
        if kind < 0.01:
            return random_.randbytes(random_.choice((0, 1, 100, 66_000)))
        if kind < 0.1:
            return random_.choice(broken)
        text = json.dumps({"type": random_.choice(types), "session": thing(), "audio": thing(3), names[3]: thing(3)})
        return text[: random_.randrange(len(text))] if random_.random() < 0.1 else text

    async def test() -> None:
        async with live(voiced) as one:
            sent = 0
            while sent < ROUNDS:
                socket = await session(one)
                reading = asyncio.create_task(rest(socket))
                while sent < ROUNDS and not socket.closed and not reading.done():
                    data = junk()
                    try:
                        await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
                    except (ConnectionError, aiohttp.ClientError):
                        break
                    sent += 1
                    await asyncio.sleep(0)
                await socket.close()
                await reading
                assert socket.close_code in (1000, 1003, 1008, 1009), socket.close_code
            await until(lambda: one.free == 2)
            async with session(one) as socket:  # Another session gets through, and gets sound.
                await paced(5, lambda n: socket.send_str(append(speech(5)[n])))
                await until_type(socket, "response.output_audio.delta")
            assert not one.exits

    within(60 + ROUNDS / 20, test())
