"""The query of a call: every field is optional and typed; numbers beyond their range are brought into it."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from model.config import FRAME_RATE
from model.streaming.sample import Sampling
from ppx_train.inference.chat_settings import ROLE
from ppx_train.serve.opus import CodecName, codecs_here
from ppx_train.serve.settings import CallLimits
from ppx_train.voices.voice_file import VOICE_ID

MOST = Sampling(text_top_k=500, audio_top_k=500)
"""The largest top k of a call; the public page has sliders up to 500."""
MOST_TEMPERATURE = 2.0
LARGEST_SEED = 2**63 - 1
IGNORED = ("pad_mult", "repetition_penalty", "repetition_penalty_context")
"""Fields of other servers without an effect here."""


class Refusal(Exception):
    """A request that is refused before the upgrade to a WebSocket, with a status of HTTP and a JSON body."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        """more: `field` and `allowed` of a bad value, `retry_after` in seconds."""
        super().__init__(error)
        self.status, self.error = status, error
        self.retry_after: int | None = more.pop("retry_after", None)
        self.body: dict[str, Any] = {"error": error, **more}


@dataclass(frozen=True, kw_only=True)
class CallRequest:
    """What a client asks for.

    voice: an id, "" for none, or None for the server's default. seed: None draws one. most_frames: when the call ends.
    pads: whether to send an event when the agent's text stream changes between text, EPAD and PAD.
    ignored: fields that were given and have no effect.
    """

    voice: str | None
    role: str
    sampling: Sampling
    seed: int | None
    most_frames: int
    proto: int
    codec: CodecName
    pads: bool
    ignored: tuple[str, ...]

    @classmethod
    def default(cls, limits: CallLimits) -> "CallRequest":
        """What a client gets that asks for nothing, but for a codec that is there."""
        return read_query({"codec": codecs_here()[0]}, limits)


def read_query(query: Mapping[str, str], limits: CallLimits) -> CallRequest:
    """Reads the query of /api/chat.

    Raises: Refusal with status 400 and the field for a value of the wrong type.
    """
    for name in IGNORED:
        _number(query, name, 0.0, -math.inf, math.inf)
    text_temperature = _number(query, "text_temperature", 0.7, 0.0, MOST_TEMPERATURE)
    audio_temperature = _number(query, "audio_temperature", 0.8, 0.0, MOST_TEMPERATURE)
    text_top_k = _integer(query, "text_topk", 25, 0, MOST.text_top_k) or MOST.text_top_k
    audio_top_k = _integer(query, "audio_topk", 250, 0, MOST.audio_top_k) or MOST.audio_top_k
    most_frames = int(limits.call_seconds * FRAME_RATE)
    codec = _choice(query, "codec", "opus", ("opus", "pcm16"))
    if codec not in codecs_here():
        raise Refusal(
            400, "no Opus library is installed here: pip install 'ppx-train[serve]', or ask for codec=pcm16",
            field="codec", allowed=list(codecs_here()),
        )  # fmt: skip
    return CallRequest(
        voice=_voice(query),
        role=query.get("text_prompt", ROLE),
        sampling=Sampling(  # Temperature 0 is the likeliest token, as in other servers.
            text_temperature=text_temperature or 1.0,
            text_top_k=text_top_k if text_temperature else 1,
            audio_temperature=audio_temperature or 1.0,
            audio_top_k=audio_top_k if audio_temperature else 1,
        ),
        seed=_seed(query),
        most_frames=_integer(query, "max_steps", most_frames, 1, most_frames),
        proto=int(_choice(query, "proto", "1", ("1", "2"))),
        codec=cast(CodecName, codec),
        pads=_choice(query, "pads", "0", ("0", "1")) == "1",
        ignored=tuple(name for name in IGNORED if name in query),
    )


def _voice(query: Mapping[str, str]) -> str | None:
    """The id, without the ending .pt that other clients add. A path is no id."""
    if "voice_prompt" not in query:
        return None
    voice = query["voice_prompt"].removesuffix(".pt")
    if voice and not VOICE_ID.fullmatch(voice):
        raise Refusal(
            400, "voice_prompt is no id of a voice: /api/voices lists them",
            field="voice_prompt", allowed=f"^{VOICE_ID.pattern}$",
        )  # fmt: skip
    return voice


def _seed(query: Mapping[str, str]) -> int | None:
    """The seed; else one made of text_seed and audio_seed, if they are given; -1 is a new one."""
    if query.get("seed", ""):
        seed = _integer(query, "seed", -1, -1, LARGEST_SEED, clamps=False)
        return None if seed == -1 else seed
    pair = [_integer(query, name, -1, -1, LARGEST_SEED, clamps=False) for name in ("text_seed", "audio_seed")]
    if max(pair) == -1:
        return None
    return int.from_bytes(hashlib.sha256(str(pair).encode()).digest()[:8], "big") >> 1


def _choice(query: Mapping[str, str], field: str, default: str, allowed: tuple[str, ...]) -> str:
    value = query.get(field) or default
    if value not in allowed:
        raise Refusal(400, f"{field} has a value that is not allowed", field=field, allowed=list(allowed))
    return value


def _number(query: Mapping[str, str], field: str, default: float, low: float, high: float) -> float:
    text = query.get(field) or str(default)
    try:
        value = float(text) if len(text) < 100 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refusal(400, f"{field} is not a number", field=field, allowed=_range(low, high))
    return min(max(value, low), high)


def _integer(query: Mapping[str, str], field: str, default: int, low: int, high: int, *, clamps: bool = True) -> int:
    text = query.get(field) or str(default)
    is_one = re.fullmatch(r"[+-]?[0-9]{1,30}", text.strip()) is not None
    value = int(text) if is_one else 0
    if not is_one or (not clamps and not low <= value <= high):
        raise Refusal(400, f"{field} is not a whole number that can be used", field=field, allowed=_range(low, high))
    return min(max(value, low), high)


def _range(low: float, high: float) -> str:
    return "any number" if math.isinf(low) else f"{low:g} to {high}"
