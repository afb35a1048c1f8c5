"""A headless Chromium with a microphone that hears a file, and spoken words for it."""

import ctypes
import shutil
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
INSECURE_HOST = "ppx.test"
"""A name that leads to this machine and, unlike localhost, is not trusted by browsers."""
TEXT = "Good morning. I would like to see the doctor. Do you have time on Thursday, or is Friday better for you?"


@asynccontextmanager
async def chromium(microphone: Path | None = None) -> AsyncIterator[Any]:
    """A browser. microphone: a WAV file that is heard again and again; None for a machine without a microphone."""
    from playwright.async_api import async_playwright

    words = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    words.append(f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1")
    if microphone is not None:
        words += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=words)
        try:
            yield browser
        finally:
            await browser.close()


async def until_root(page: Any, *attributes: str) -> dict[str, str]:
    """The data attributes of the root element, once it has `attributes` (as in `players="2"`) or an error.

    Chromium's own clock (--virtual-time-budget) does not wait for a busy machine to decode sound.
    """
    wanted = "".join(f"[data-{attribute}]" for attribute in attributes)
    await page.locator(f"html{wanted}, html[data-error]").wait_for(state="attached", timeout=600_000)
    return dict(await page.evaluate("() => ({...document.documentElement.dataset})"))


def speak(path: Path) -> Path:
    """Writes words that eSpeak NG speaks, 16 bits, mono. Skips the test without it."""
    loader = pytest.importorskip("espeakng_loader", reason="spoken words: pip install 'ppx-train[tts]'")
    espeak = ctypes.CDLL(loader.get_library_path())
    rate = espeak.espeak_Initialize(2, 0, str(Path(loader.get_data_path()).parent).encode(), 0)
    said: list[Any] = []

    def take(samples: Any, count: int, _: Any) -> int:
        if count:
            said.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )(take)  # fmt: skip
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_SetVoiceByName(b"en")
    text = TEXT.encode()
    espeak.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
    espeak.espeak_Synchronize()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.concatenate(said).astype("<i2").tobytes())
    return path
