"""The clip of a caller's own voice, as a request brings it: bounded in size and time, WAV alone, and with consent."""

import asyncio
import io
import wave

from aiohttp import web

from data_pipelines.sound.audio import VOICE_SECONDS
from model.config import SAMPLE_RATE
from ppx_train.serve.query import Refusal

TYPES = ("audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave")
FORM = "a WAV file of 16 bits, mono, 24 kHz"
BYTES_A_SECOND = 2 * SAMPLE_RATE
MOST_BYTES = int(VOICE_SECONDS[1] * BYTES_A_SECOND) + 4096
"""Of a request: the longest clip, and a header with room for what editors write into it."""
UPLOAD_SECONDS = 30.0
MOST_AT_ONCE = 8
"""Clips that may be on their way or wait for their turn."""
CONSENT = "yes"


async def read_clip(request: web.Request) -> bytes:
    """Returns the samples of the clip, PCM16 at 24 kHz, of 3 to 10 s.

    Raises: Refusal with status 400 without consent or for a file of another form, 408, 413 or 415.
    """
    if request.query.get("consent") != CONSENT:
        raise Refusal(
            400, "the speaker's consent is not stated: add consent=yes if it is your voice or you have the permission",
            field="consent", allowed=[CONSENT],
        )  # fmt: skip
    if request.content_type not in TYPES:
        raise Refusal(415, f"the clip is of another type: send {FORM}", field="clip", allowed=list(TYPES))
    try:
        data = await asyncio.wait_for(_body(request), UPLOAD_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the clip has not come within {UPLOAD_SECONDS:.0f} s: try again", field="clip") from None
    except web.RequestPayloadError:
        raise Refusal(400, "the clip has come damaged: send it again", field="clip") from None
    return read_wav(data)


async def _body(request: web.Request) -> bytes:
    """The body, of which no more than is allowed is ever held."""
    data = bytearray()
    if (request.content_length or 0) <= MOST_BYTES:
        async for part in request.content.iter_chunked(1 << 16):
            data += part
            if len(data) > MOST_BYTES:
                break
        else:
            return bytes(data)
    low, high = VOICE_SECONDS
    raise Refusal(413, f"the clip is too long: give {low:.0f} to {high:.0f} s", field="clip", allowed=MOST_BYTES)


def read_wav(data: bytes) -> bytes:
    """Returns the samples of a WAV file. Raises: Refusal with status 400 if it has another form, or no 3 to 10 s."""
    low, high = VOICE_SECONDS
    allowed = f"{FORM}, {low:.0f} to {high:.0f} s"
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            pcm = file.readframes(MOST_BYTES)
    except (wave.Error, EOFError):
        raise Refusal(400, f"the clip cannot be read: send {FORM}", field="clip", allowed=allowed) from None
    if form != (1, 2, SAMPLE_RATE):
        raise Refusal(400, f"the clip has another form: send {FORM}", field="clip", allowed=allowed)
    pcm = pcm[: len(pcm) // 2 * 2]
    seconds = len(pcm) / BYTES_A_SECOND
    if not low <= seconds <= high:
        raise Refusal(
            400, f"the clip has {seconds:.1f} s: give {low:.0f} to {high:.0f} s of one speaker", field="clip",
            allowed=allowed,
        )  # fmt: skip
    return pcm
