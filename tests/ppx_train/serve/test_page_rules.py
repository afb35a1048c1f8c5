"""What NVIDIA's page and its Opus worker send, and what they can read, with FFmpeg and a reader of Ogg of our own.

The page throws at kinds and controls that it does not know, expects one Ogg-Opus stream of mono sound whose first two
pages are its headers, and closes after 10 s without a message. Its encoder makes 20 ms packets, two to a page.
"""

import asyncio
import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="FFmpeg: pip install av")
pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
pytest.importorskip("prometheus_client")

import av

from ppx_train.inference.loading import Release
from ppx_train.serve.protocol import Kind
from tests.ppx_train.serve.live import Live, live
from tests.ppx_train.serve.ogg import pages

QUERY = {
    "text_temperature": "0.7", "text_topk": "25", "audio_temperature": "0.8", "audio_topk": "250", "pad_mult": "0",
    "text_seed": "99386", "audio_seed": "745921", "repetition_penalty_context": "64", "repetition_penalty": "1",
    "text_prompt": "You enjoy having a good conversation.", "voice_prompt": "ada.pt", "worker_auth_id": "w",
    "email": "e@x", "codec": "opus",
}  # fmt: skip
"""What the page asks for; the codec only undoes the default of the tests."""
SECONDS = 3.0


def encoded_by_ffmpeg(wav_S: Any) -> bytes:
    """Ogg-Opus as the page's encoder makes it."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg", options={"page_duration": "40000"}) as out:
        options = {"application": "audio", "compression_level": "0", "frame_duration": "20"}
        stream = out.add_stream("libopus", rate=24000, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray((wav_S * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = 24000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()


def decoded_by_ffmpeg(stream: bytes) -> Any:
    """Samples at 48 kHz."""
    with av.open(io.BytesIO(stream)) as file:
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])


def split_at_pages(stream: bytes) -> list[bytes]:
    """The pages, as the worker posts them."""
    return [b"OggS" + part for part in stream.split(b"OggS")[1:]]


@dataclass
class PageCall:
    """What the page got and when; how many frames the model spoke, and how many of the page's were dropped."""

    messages: list[bytes]
    times: list[float]
    spoken: int
    dropped: int

    @property
    def sound(self) -> list[bytes]:
        return [message[1:] for message in self.messages if message[0] == Kind.AUDIO]


async def page_call(one: Live) -> PageCall:
    """A call as the page holds it."""
    wav_S = 0.3 * np.sin(2 * np.pi * 300 * np.arange(round(SECONDS * 24000)) / 24000)
    got, times = [], []
    async with one.http.ws_connect(one.address + "/api/chat", params=QUERY) as socket:

        async def listen() -> None:
            async for message in socket:
                got.append(message.data)
                times.append(time.monotonic())

        listening = asyncio.create_task(listen())
        while not got:
            await asyncio.sleep(0.01)
        headers, data = (parts := split_at_pages(encoded_by_ffmpeg(wav_S)))[:2], parts[2:]
        for header in headers:
            await socket.send_bytes(b"\x01" + header)
        began = time.monotonic()
        for number, part in enumerate(data):
            await asyncio.sleep(max(0.0, began + 0.04 * number - time.monotonic()))
            await socket.send_bytes(b"\x01" + part)
        await asyncio.sleep(0.3)
        await socket.close()
        await listening
    assert one.service.engine is not None
    figures = one.service.engine.figures
    return PageCall(got, times, figures.frames, figures.dropped)


@pytest.fixture(scope="module")
def call(voiced: Release) -> PageCall:
    async def run() -> PageCall:
        async with live(voiced) as one:
            return await page_call(one)

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_the_page_gets_a_handshake_and_then_only_kinds_that_it_can_read(call: PageCall) -> None:
    got = call.messages
    assert got[0] == b"\x00" and all(isinstance(message, bytes) for message in got)
    assert {message[0] for message in got[1:]} == {1, 2} and all(len(message) > 1 for message in got[1:])
    for message in got:
        if message[0] == 2:
            assert message[1:].decode("utf-8") and "\u2581" not in message[1:].decode()
    assert max(np.diff(call.times)) < 1


def test_the_page_gets_one_ogg_stream_of_mono_opus_in_whole_pages(call: PageCall) -> None:
    sound = call.sound
    for payload in sound:
        pages(payload)  # A worker that joins late finds the beginning of a page in each message.
    found = pages(b"".join(sound))
    assert all(page.checks for page in found) and len({page.serial for page in found}) == 1
    assert [page.number for page in found] == list(range(len(found)))
    assert [page.flags & 2 for page in found] == [2] + [0] * (len(found) - 1)
    (head,), (tags,) = found[0].packets, found[1].packets
    assert head[:8] == b"OpusHead" and head[9] == 1 and head[18] == 0 and tags[:8] == b"OpusTags"  # mono, mapping 0
    data = found[2:]
    steps = np.diff([page.granule for page in data])
    assert len(data) == 2 * call.spoken and set(steps) == {1920}  # 40 ms at 48 kHz
    wav = decoded_by_ffmpeg(b"".join(sound))
    skipped = int.from_bytes(head[10:12], "little")  # a decoder leaves out what the header calls the encoder's delay
    assert len(wav) == 1920 * len(data) - skipped and np.isfinite(wav).all() and np.abs(wav).max() > 0


def test_the_pages_two_packets_of_20_ms_to_a_page_are_heard(call: PageCall) -> None:
    assert {len(page.packets) for page in pages(encoded_by_ffmpeg(np.zeros(24000)))[2:-1]} == {2}
    frames = SECONDS * 12.5
    assert frames - 6 < call.spoken + call.dropped <= frames and len(call.sound) == call.spoken > 0
