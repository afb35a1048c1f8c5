"""Sessions of `/v1/realtime` over real sockets, of a plain client and of OpenAI's package."""

import asyncio
import base64
import importlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from model.streaming.sample import Sampling
from ppx_train.inference.call import PHASE_SAMPLES
from ppx_train.inference.loading import Release
from ppx_train.inference.offline import chat
from ppx_train.inference.session import TextPieces
from ppx_train.serve.opus import Pcm16Writer
from tests.ppx_train.serve.live import FRAME, Live, live, paced, speech, until, within
from tests.ppx_train.serve.realtime import Event, append, deltas, rest, session, sound, until_type, update


async def talk(one: Live, fields: Event, user_TS: Any) -> list[Event]:
    """A whole session with as many frames as are given."""
    async with session(one) as socket:
        await socket.send_str(update(max_steps=len(user_TS), **fields))
        updated = (await until_type(socket, "session.updated"))[-1]["session"]
        assert updated["instructions"] == fields["instructions"] and updated["seed"] == fields["seed"]
        user_S = user_TS.reshape(-1)
        await socket.send_str(append(user_S[:PHASE_SAMPLES]))
        assert await until(lambda: all(chat_.is_ready for chat_ in one.service.chats)) < 10  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)  # A tick has found no more than it keeps: nothing is cut off the stream.
        rest_of = np.split(user_S[PHASE_SAMPLES:], range(FRAME, len(user_S) - PHASE_SAMPLES, FRAME))
        events: list[Event] = []
        for piece_S in rest_of:  # One after another, so that nothing is dropped on a busy machine.
            await socket.send_str(append(piece_S))
            events += await until_type(socket, "response.output_audio.delta")
        events += await rest(socket)
        assert socket.close_code == 1000 and events[-1]["error"]["code"] == "limit"
    return events


def test_live_sessions_side_by_side_say_what_each_says_alone_offline(voiced: Release) -> None:
    frames = 12
    wanted: list[Event] = [
        {"instructions": "you work for citysan", "audio": {"output": {"voice": "ada"}}, "seed": 1},
        {"instructions": "", "audio": {"output": {"voice": ""}}, "seed": 4, "text_temperature": 0,
         "audio_temperature": 0},
    ]  # fmt: skip

    async def test() -> None:
        async with live(voiced) as one:
            heard = [speech(frames, seed) for seed in range(2)]
            talks = [talk(one, fields, user_TS) for fields, user_TS in zip(wanted, heard, strict=True)]
            for fields, user_TS, events in zip(wanted, heard, await asyncio.gather(*talks), strict=True):
                name = fields["audio"]["output"]["voice"]
                voice = voiced.voice(voiced.voices[name]).codes_QP if name else None
                prompt = voiced.prompt(voice, fields["instructions"])
                sampling = Sampling(greedy=True) if "text_temperature" in fields else Sampling()
                alone = chat(voiced, user_TS.reshape(-1), prompt_KP=prompt, sampling=sampling, seed=fields["seed"])
                expected = np.frombuffer(Pcm16Writer().write(alone.agent_S), "<i2")
                # Other tokens would sound altogether different; a decoder of more rows rounds differently.
                np.testing.assert_allclose(sound(events), expected, atol=4, rtol=0)
                pieces = TextPieces(voiced.tokenizer)
                assert deltas(events, "output_audio_transcript") == [
                    text for i in alone.text_ids if (text := pieces.add(i))
                ]
                ids = {one["event_id"] for one in events}
                assert len(ids) == len(events) and len({one.get("item_id") for one in events[:-1]}) == 1
            assert one.free == 2

    within(60, test())


def test_openais_package_completes_a_session(voiced: Release) -> None:
    """Its own types are the truth about the shape of events."""
    openai = pytest.importorskip("openai", reason="pip install 'openai[realtime]'")
    refused = pytest.importorskip("websockets.exceptions", reason="pip install 'openai[realtime]'").InvalidStatus
    # The package builds these when they are first used, which takes the time of many ticks.
    for name in ("openai.resources.beta.realtime", "openai.resources.realtime", "websockets.asyncio.client"):
        importlib.import_module(name)
    types = importlib.import_module("openai.types.realtime")
    shapes: dict[str, Any] = {
        "session.created": types.SessionCreatedEvent,
        "session.updated": types.SessionUpdatedEvent,
        "error": types.RealtimeErrorEvent,
        "response.output_audio.delta": types.ResponseAudioDeltaEvent,
        "response.output_audio_transcript.delta": types.ResponseAudioTranscriptDeltaEvent,
    }
    for shape in shapes.values():
        shape.model_rebuild()

    async def test() -> None:
        async with live(voiced, token="a-good-token") as one:
            stranger = openai.AsyncOpenAI(api_key="another-token", base_url=one.address + "/v1")
            with pytest.raises(refused, match="401"):
                await stranger.realtime.connect(model="any").enter()
            client = openai.AsyncOpenAI(api_key="a-good-token", base_url=one.address + "/v1")
            sockets = one.address.replace("http", "ws") + "/v1"  # Its beta takes TLS for granted.
            old = openai.AsyncOpenAI(api_key="a-good-token", base_url=one.address, websocket_base_url=sockets)
            with pytest.raises(refused, match="400"):
                await old.beta.realtime.connect(model="any").enter()
            async with client.realtime.connect(model="any") as connection:
                seen: list[Any] = []

                async def receive(type_: str) -> Any:
                    while True:
                        data = await asyncio.wait_for(connection.recv_bytes(), 10)
                        got = connection.parse_event(data)
                        shapes[got.type].model_validate_json(data)  # Its parser does not check, its types do.
                        assert isinstance(got, shapes[got.type])
                        seen.append(got)
                        if got.type == type_:
                            return got

                assert (await receive("session.created")).session.model == voiced.name
                audio = {"input": {"turn_detection": None}, "output": {"voice": "bob"}}
                ours = {"seed": 3, "text_temperature": 0.9}
                wanted: Any = {"type": "realtime", "instructions": "you work for citysan", "audio": audio, **ours}
                await connection.session.update(session=wanted)
                session_ = (await receive("session.updated")).session
                assert session_.instructions == "you work for citysan" and session_.audio.output.voice == "bob"
                assert session_.model_extra["seed"] == 3 and session_.model_extra["text_temperature"] == 0.9
                await connection.response.create(event_id="one")
                refusal = (await receive("error")).error
                assert refusal.event_id == "one" and "no turns" in refusal.message
                frames = [(frame_S * 2**15).astype("<i2").tobytes() for frame_S in speech(12)]

                async def send(n: int) -> None:
                    await connection.input_audio_buffer.append(audio=base64.b64encode(frames[n]).decode())

                await paced(len(frames), send)
                heard = await receive("response.output_audio.delta")
                assert len(base64.b64decode(heard.delta)) == 2 * FRAME
                while not any(got.type == "response.output_audio_transcript.delta" for got in seen):
                    await send(0)
                    await receive("response.output_audio.delta")
            assert await until(lambda: one.free == 2) < 5

    within(60, test())
