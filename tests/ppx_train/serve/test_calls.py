"""Calls over real sockets: what clients of other servers rely on, and that callers do not mix."""

import asyncio
import sys
import time
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
from ppx_train.serve.opus import Pcm16Writer, reader_of, writer_of
from ppx_train.serve.protocol import Kind, Message, audio_message
from tests.ppx_train.serve.live import (
    FRAME,
    Live,
    live,
    paced,
    pcm,
    receive,
    receive_until,
    rest,
    sound,
    speech,
    until,
    within,
)


async def talk(one: Live, query: dict[str, str], user_TS: Any) -> list[Message]:
    """A whole call, paced in real time; returns what came after the handshake."""
    async with one.call({"max_steps": str(len(user_TS)), **query}) as socket:
        assert (await receive_until(socket, Kind.HANDSHAKE))[-1].payload == b""
        user_S = user_TS.reshape(-1)
        await socket.send_bytes(pcm(user_S[:PHASE_SAMPLES]))
        await asyncio.sleep(0.2)  # A tick has found no more than it keeps: nothing is cut off the stream.
        rest_of = np.split(user_S[PHASE_SAMPLES:], range(FRAME, len(user_S) - PHASE_SAMPLES, FRAME))
        sending = asyncio.create_task(paced(len(rest_of), lambda n: socket.send_bytes(pcm(rest_of[n]))))
        messages = await rest(socket)
        await sending
        assert socket.close_code == 1000
    return messages


def test_live_calls_side_by_side_say_what_each_says_alone_offline(voiced: Release) -> None:
    frames = 14
    wanted: list[dict[str, str]] = [
        {"voice_prompt": "ada.pt", "text_prompt": "you work for citysan", "seed": "1"},
        {"voice_prompt": "bob", "text_prompt": "", "seed": "2", "text_temperature": "1.2", "audio_topk": "30"},
        {"voice_prompt": "", "text_prompt": "tell me about the waste", "seed": "3"},
        {"voice_prompt": "", "text_prompt": "", "seed": "4", "text_temperature": "0", "audio_temperature": "0"},
    ]
    samplings = [
        Sampling(), Sampling(text_temperature=1.2, audio_top_k=30), Sampling(), Sampling(greedy=True),
    ]  # fmt: skip

    async def test() -> None:
        async with live(voiced, max_sessions=4) as one:
            heard = [speech(frames, seed) for seed in range(4)]
            calls = [talk(one, query, user_TS) for query, user_TS in zip(wanted, heard, strict=True)]
            all_messages = await asyncio.gather(*calls)
            for query, user_TS, sampling, messages in zip(wanted, heard, samplings, all_messages, strict=True):
                name = query["voice_prompt"].removesuffix(".pt")
                voice = voiced.voice(voiced.voices[name]).codes_QP if name else None
                prompt = voiced.prompt(voice, query["text_prompt"])
                alone = chat(voiced, user_TS.reshape(-1), prompt_KP=prompt, sampling=sampling, seed=int(query["seed"]))
                expected = np.frombuffer(Pcm16Writer().write(alone.agent_S), "<i2")
                # Other tokens would sound altogether different; a decoder of more rows rounds differently.
                np.testing.assert_allclose(sound(messages), expected, atol=4, rtol=0)
                pieces = TextPieces(voiced.tokenizer)
                said = [m.payload.decode() for m in messages if m.kind == Kind.TEXT]
                assert said == [text for i in alone.text_ids if (text := pieces.add(i))]
            assert one.free == 4

    within(30, test())


def test_the_agent_hears_its_caller(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            query = {"seed": "5"}
            first, second = await asyncio.gather(
                talk(one, query, speech(12, 1)), talk(one, query, np.zeros((12, FRAME), np.float32))
            )
            assert sound(first)[:FRAME].size == FRAME and (sound(first) != sound(second)).any()

    within(30, test())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sphn needs Python 3.11")
def test_an_opus_client_gets_one_ogg_stream_with_a_message_each_80_ms(voiced: Release) -> None:
    pytest.importorskip("sphn")

    async def test() -> None:
        async with live(voiced) as one, one.call({"codec": "opus"}) as socket:
            assert [m.kind for m in await receive_until(socket, Kind.HANDSHAKE)] == [Kind.HANDSHAKE]
            writer, reader = writer_of("opus"), reader_of("opus")
            data = [writer.write(frame_S) for frame_S in speech(12)]
            data[0:1] = [
                data[0][:30],
                b"",
                data[0][30:],
            ]  # The header comes in two messages, with an empty one between.

            async def send(n: int) -> None:
                await socket.send_bytes(audio_message(data[n]))
                await socket.send_str("text frames are ignored")
                for junk in (b"", b"\x03\x00", b"\x06", b"\x09unknown", b"\x02text"):
                    await socket.send_bytes(junk)

            await paced(len(data), send)
            got = [m for m in [await receive(socket) for _ in range(10)] if m is not None]
            audio = [m.payload for m in got if m.kind == Kind.AUDIO]
            assert audio[0][:4] == b"OggS" and b"OpusHead" in audio[0] and {m.kind for m in got} <= {1, 2}
            samples = [len(piece) for payload in audio for piece in reader.read(payload)]
            assert sum(samples) == FRAME * len(audio) and len(audio) >= 4
            await socket.close()
            assert await until(lambda: one.free == 2) < 1

    within(30, test())


def test_a_client_that_asks_for_events_gets_phases_and_times(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, max_sessions=1) as one:
            holder = one.call({"proto": "2", "pads": "1", "pad_mult": "1.5", "seed": "9"})
            async with holder as first, one.call({"proto": "2"}) as second:
                events = [m.event for m in await receive_until(first, Kind.HANDSHAKE) if m.kind == Kind.METADATA]
                assert [event["type"] for event in events] == ["loading_voice", "prompting"]
                ready = await receive(first)
                assert ready is not None and ready.event["type"] == "ready" and ready.event["ignored"] == ["pad_mult"]
                waits = await receive(second)
                assert waits is not None and waits.event["type"] == "queued" and waits.event["position"] == 1
                status, refusal = await one.refused({"codec": "pcm16"})
                assert status == 503 and "taken" in refusal["error"]  # It could not see its place.
                await paced(8, lambda n: first.send_bytes(pcm(speech(8)[n])))
                await receive_until(first, Kind.AUDIO)
                await first.close()
                later = [m.event["type"] for m in await receive_until(second, Kind.HANDSHAKE) if m.kind == 4]
                assert later == ["loading_voice", "prompting"]

    within(30, test())


def test_a_warm_server_is_ready_within_half_a_second(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            began = time.monotonic()
            async with one.call() as socket:
                await receive_until(socket, Kind.HANDSHAKE)
            assert time.monotonic() - began < 0.5

    within(30, test())


def test_words_before_the_handshake_are_heard_after_it(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, max_sessions=1) as one, one.call({"proto": "2"}) as holder:
            await receive_until(holder, Kind.HANDSHAKE)
            socket = await one.call({"proto": "2"})
            for frame_S in speech(40):  # More than the 2 s that are kept.
                await socket.send_bytes(pcm(frame_S))
            await asyncio.sleep(0.2)
            await holder.close()
            await receive_until(socket, Kind.HANDSHAKE)
            messages = await receive_until(socket, Kind.AUDIO)  # Nothing was sent since.
            dropped = [m.event["frames"] for m in messages if m.kind == 4 and m.event["type"] == "backlog_dropped"]
            assert messages[-1].kind == Kind.AUDIO and 15 <= dropped[-1] <= 20  # 25 frames were kept, 5 may wait.
            await socket.close()

    within(30, test())
