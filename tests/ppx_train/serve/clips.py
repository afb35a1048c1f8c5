"""Clips as callers bring them, and the requests that bring them."""

import io
from typing import Any

import numpy as np
import soundfile

from data_pipelines.sound.audio import RATE_HZ, Audio
from tests.ppx_train.serve.live import Live

WAV = {"Content-Type": "audio/wav"}


def wav(audio: Audio, rate: int = RATE_HZ, kind: str = "WAV") -> bytes:
    """A file of [samples] or [samples, channels], 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1), rate, "PCM_16", format=kind)
    return file.getvalue()


async def bring(one: Live, clip: bytes, *, headers: dict[str, str] | None = None, **query: str) -> tuple[int, Any]:
    """Brings a clip with consent; returns the status and the body."""
    where = one.address + "/api/voices"
    async with one.http.post(where, data=clip, params={"consent": "yes", **query}, headers=headers or WAV) as got:
        return got.status, await got.json()


def damaged(spoken: dict[str, Audio]) -> dict[str, tuple[Audio, str]]:
    """Clips that the checks refuse, and what is said of them, by the name of the check."""
    man, woman = spoken["man"], spoken["woman"]
    noise = 0.05 * np.random.default_rng(0).standard_normal(4 * RATE_HZ).astype(np.float32)
    return {
        "level": (np.zeros(4 * RATE_HZ, np.float32), "silent"),
        "clipping": (np.clip(8 * man, -1, 1), "lower level"),
        "noise": (noise, "quiet room"),
        "speech": (np.concatenate([man[: 2 * RATE_HZ], np.zeros(4 * RATE_HZ, np.float32)]), "speech"),
        "speakers": (np.concatenate([man[: 4 * RATE_HZ], woman[: 4 * RATE_HZ]]), "more than one person"),
    }
