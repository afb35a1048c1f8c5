"""One call with LiveKit's own plugin, run by the Python of an environment that has it; prints what came as JSON.

    python livekit_caller.py BASE_URL VOICE ROLE SEED SECONDS

A microphone of 48 kHz gives 10 ms at a time, as LiveKit's rooms do; the plugin resamples it to 24 kHz.
"""

import asyncio
import json
import math
import sys
import time
from array import array
from itertools import pairwise
from typing import Any

import aiohttp
from livekit import rtc
from livekit.plugins.nvidia import realtime

RATE = 48000
BLOCK = RATE // 100


async def main(url: str, voice: str, role: str, seed: int, seconds: float) -> None:
    seen: dict = {"generations": 0, "samples": 0, "text": "", "errors": [], "arrived": []}
    listeners = []

    async def listen(generation: Any) -> None:
        async for message in generation.message_stream:
            listeners.append(asyncio.create_task(read(message.text_stream)))
            async for frame in message.audio_stream:
                seen["samples"] += frame.samples_per_channel
                seen["arrived"].append(time.monotonic())

    async def read(texts: Any) -> None:
        async for text in texts:
            seen["text"] += text

    def on_generation(generation: Any) -> None:
        seen["generations"] += 1
        listeners.append(asyncio.create_task(listen(generation)))

    async with aiohttp.ClientSession() as http:
        model = realtime.RealtimeModel(base_url=url, voice=voice, text_prompt=role, seed=seed, http_session=http)
        session = model.session()
        session.on("generation_created", on_generation)
        session.on("error", lambda error: seen["errors"].append(str(error.error)))
        started = time.monotonic()
        for number in range(round(seconds * 100)):
            tone = (int(9000 * math.sin(2 * math.pi * 220 * (number * BLOCK + n) / RATE)) for n in range(BLOCK))
            session.push_audio(rtc.AudioFrame(array("h", tone).tobytes(), RATE, 1, BLOCK))
            await asyncio.sleep(max(0.0, started + number / 100 - time.monotonic()))
        await session.aclose()
        await asyncio.wait(listeners, timeout=2)
    seen["silences_over_500_ms"] = sum(b - a > 0.5 for a, b in pairwise(seen["arrived"]))
    del seen["arrived"]
    print(json.dumps(seen))


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
