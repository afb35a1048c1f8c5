"""A voice of the caller's own in the page: recorded or taken from a file, heard, agreed to, used, and explained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")
pytest.importorskip("webrtcvad", reason="pip install 'ppx-train[speaker]'")

import soundfile

from data_pipelines.sound.audio import RATE_HZ, Audio
from model.streaming.sample import Sampling
from ppx_train.inference import call
from ppx_train.inference.loading import Release, find_voice
from ppx_train.inference.offline import chat
from ppx_train.serve.clip_request import MOST_AT_ONCE
from ppx_train.serve.own_voices import OwnVoices
from tests.browser import NEEDS_CHROMIUM, speak
from tests.ppx_train.serve.clips import damaged, wav
from tests.ppx_train.serve.page_stage import Stage, open_stage, saved, start, text_of, wait_played
from tests.ppx_train.voices.test_command import has_embedder

pytestmark = [NEEDS_CHROMIUM, has_embedder]


@pytest.fixture(scope="module")
def booth(voiced: Release, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, with a server that takes voices."""
    words = speak(tmp_path_factory.mktemp("speech") / "words.wav")
    with open_stage(voiced, words, model=str(folder), own_voices=True) as stage:
        yield stage


def own(stage: Stage) -> OwnVoices:
    assert stage.one.service.own_voices is not None
    return stage.one.service.own_voices


async def take(page: Any, name: str, data: bytes) -> None:
    """Takes a file, as its dialog would."""
    await page.set_input_files("#clip-file", {"name": name, "mimeType": "audio/x", "buffer": data})


LOUDEST = """() => {
  const [meter, words] = ["own-level", "own-words"].map((id) => document.getElementById(id));
  Object.assign(globalThis, { loudest: 0, said: [] });
  setInterval(() => {
    loudest = Math.max(loudest, meter.value);
    if (said.at(-1) !== words.textContent) said.push(words.textContent);
  }, 20);
}"""
"""Notes the level and the words of a recording as they come."""


async def stop_after(page: Any, seconds: float) -> None:
    """Stops a recording once it is so long; in the page, as on a busy machine it might end by itself before."""
    script = """(seconds) => new Promise((done) => {
      const timer = setInterval(() => {
        if (!(parseFloat(document.getElementById("clip-length").textContent) >= seconds)) return;
        document.getElementById("record-voice").click();
        clearInterval(timer);
        done();
      }, 20);
    })"""
    await page.evaluate(script, seconds)


async def use(page: Any) -> str:
    """Agrees, uses the clip, and returns the id of the voice."""
    await page.check("#consent")
    await page.click("#use-clip")
    await text_of(page, "#own-words", contains="Ready")
    return str(await page.input_value("#voice"))


def test_a_file_becomes_a_voice_with_which_the_call_can_be_held_again_offline(
    booth: Stage, voiced: Release, spoken: dict[str, Audio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "MOST_BACKLOG_FRAMES", 10**6)  # A busy machine must not drop what the test compares.
    stereo = np.repeat(spoken["man"], 2)[:, None].repeat(2, axis=1)  # at 48 kHz

    async def test() -> None:
        async with booth.page() as page:
            await page.get_by_text("A voice of your own").click()
            await take(page, "me.flac", wav(stereo, 2 * RATE_HZ, "FLAC"))
            assert f"{len(spoken['man']) / RATE_HZ:.1f} s" in await text_of(page, "#own-words", contains="A clip of")
            await page.click("#play-clip")
            assert await page.inner_text("#play-clip") == "Stop"
            await page.get_by_role("button", name="Listen").wait_for()  # It has been played to its end.
            await page.click("#use-clip")
            assert "without consent" in await text_of(page, "#own-why", contains=".")
            assert await page.evaluate("document.activeElement.id") == "consent" and not len(own(booth))
            id_ = await use(page)
            assert own(booth).codes_of(id_) is not None
            await page.get_by_text("More settings").click()
            await page.select_option("#codec", "pcm16")
            await start(page)
            await wait_played(page, 2)
            await page.click("#hang-up")
            recording, settings = await saved(page, "recording", tmp_path), await saved(page, "settings", tmp_path)
            voice = await saved(page, "voice", tmp_path)
            await page.get_by_role("button", name="Change settings").click()
            await page.click("#forget-voice")
            await text_of(page, "#own-words", contains="has forgotten")
            assert own(booth).codes_of(id_) is None and await page.input_value("#voice") == "ada"
        kept = json.loads(settings.read_text())
        assert kept["own_voice"] is True and kept["voice"] == voice.stem and id_ not in settings.read_text()
        both, _ = soundfile.read(recording, dtype="int16")
        agent, user = both[: round(kept["seconds"] * RATE_HZ), 0], both[:, 1].astype(np.float32) / 2**15
        prompt = voiced.prompt(find_voice(voiced, str(voice)), kept["role"])
        sampling = Sampling(**{name.replace("topk", "top_k"): value for name, value in kept["sampling"].items()})
        again = chat(voiced, user[: len(agent)], prompt_KP=prompt, seed=kept["seed"], sampling=sampling)
        count = len(agent) // 1920 * 1920
        expected = np.clip(np.rint(again.agent_S * 2**15), -(2**15), 2**15 - 1)
        assert count > 24000 and np.abs(expected[:count] - agent[:count].astype(np.float32)).max() < 2**-9 * 2**15

    booth.run(test())


def test_a_recording_shows_its_level_ends_by_itself_and_becomes_a_voice(booth: Stage) -> None:
    async def test() -> None:
        async with booth.page() as page:
            await page.get_by_text("A voice of your own").click()
            await page.evaluate(LOUDEST)
            await page.click("#record-voice")
            await page.get_by_role("button", name="Stop recording").wait_for()
            await text_of(page, "#own-words", contains="A clip of 10.0 s")  # the longest
            assert await page.evaluate("document.getElementById('clip-level').hidden")
            assert await page.evaluate("loudest") > 0.1 and "Good." in await page.evaluate("said")
            first = await use(page)
            await page.click("#record-voice")
            assert not await page.is_checked("#consent")  # Another clip may be another person's.
            await stop_after(page, 4)
            seconds = float((await text_of(page, "#own-words", contains="A clip of")).split()[3])
            assert 4 <= seconds <= 10  # A busy machine stops late, at the longest at last.
            second = await use(page)
            assert second != first and await page.locator("#voice option", has_text="My own voice").count() == 1
            await start(page)
            await wait_played(page, 0.3)
            (chat_,) = booth.one.service.chats
            assert chat_.call is not None and chat_.call.settings.own_voice == second

    booth.run(test())


def test_whatever_is_wrong_with_a_clip_is_said_in_words(booth: Stage, spoken: dict[str, Audio]) -> None:
    man = spoken["man"]
    here = {
        "Too short: 2.0 s": wav(man[: 2 * RATE_HZ]),
        "Too long": wav(np.tile(man, 3)),
        "silent": wav(np.zeros(4 * RATE_HZ, np.float32)),
        "cannot read": b"no sound at all",
        "too large": bytes(20_000_001),
    }

    async def test() -> None:
        async with booth.page() as page:
            await page.get_by_text("A voice of your own").click()
            for words, data in here.items():
                await take(page, "clip.wav", data)
                await text_of(page, "#own-why", contains=words)
                assert not await page.is_visible("#use-clip") and not await page.inner_text("#own-words")
            for check, (audio, words) in damaged(spoken).items():
                if check == "level":  # The page has said so before.
                    audio, words = 0.006 * man, "too quiet"
                await take(page, "clip.wav", wav(audio[: 10 * RATE_HZ]))
                await page.check("#consent")
                await page.click("#use-clip")
                assert (await text_of(page, "#own-why", contains=words))[0].isupper()
            own(booth)._clips = MOST_AT_ONCE
            await page.click("#use-clip")
            await text_of(page, "#own-why", contains="Too many clips")
            own(booth)._clips = 0
            assert await page.locator("#voice option", has_text="own").count() == 0

    booth.run(test())


def test_a_recording_needs_a_microphone(booth: Stage) -> None:
    async def test() -> None:
        cases: list[tuple[Any, dict[str, Any], str]] = [
            (booth.browser, {"permissions": []}, "The microphone is blocked"),
            (booth.deaf, {}, "No microphone was found"),
        ]
        for browser, options, title in cases:
            async with booth.page(browser, **options) as page:
                await page.get_by_text("A voice of your own").click()
                await page.click("#record-voice")
                assert await text_of(page, "#problem h2") == title
                assert await page.inner_text("#record-voice") == "Record"

    booth.run(test())


def test_a_voice_that_the_server_has_forgotten_is_explained_and_can_be_made_again(
    booth: Stage, spoken: dict[str, Audio]
) -> None:
    async def test() -> None:
        async with booth.page() as page:
            await page.get_by_text("A voice of your own").click()
            await take(page, "clip.wav", wav(spoken["woman"]))
            assert own(booth).remove(await use(page))
            await page.click("#start")
            await text_of(page, "#phase", contains="no longer there")
            await page.get_by_role("button", name="Change settings").click()
            assert await page.input_value("#voice") == "ada"
            await page.click("#use-clip")  # Consent was given for this very clip.
            await text_of(page, "#own-words", contains="Ready")

    booth.run(test())


def test_a_voice_is_made_by_keyboard_without_a_fault_that_axe_finds(booth: Stage) -> None:
    axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="axe-core: pip install 'ppx-train[dev]'")

    async def press(page: Any, id_: str, key: str = "Enter") -> None:
        for _ in range(60):
            if await page.evaluate("document.activeElement.id || document.activeElement.parentElement.id") == id_:
                return await page.keyboard.press(key)
            await page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {id_}")

    async def check(page: Any) -> None:
        for scheme in ("light", "dark"):
            for width in (360, 1200):
                await page.emulate_media(color_scheme=scheme)
                await page.set_viewport_size({"width": width, "height": 800})
                found = await axe.Axe().run(page)
                assert found.violations_count == 0, found.generate_report()
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    async def test() -> None:
        async with booth.page() as page:
            await page.locator("#start").wait_for()
            await press(page, "own-voice")
            await press(page, "record-voice")
            await text_of(page, "#clip-length", contains=" s of 3 to 10")
            await check(page)
            await text_of(page, "#own-words", contains="A clip of 10.0 s")
            await press(page, "use-clip")
            await text_of(page, "#own-why", contains="consent")
            await check(page)
            await press(page, "consent", "Space")
            await press(page, "use-clip")
            await text_of(page, "#own-words", contains="Ready")
            await check(page)
            await press(page, "forget-voice")
            await text_of(page, "#own-words", contains="has forgotten")
            assert await page.evaluate("document.activeElement.id") == "record-voice"

    booth.run(test())


def test_a_server_that_takes_no_voices_shows_no_controls_for_them(stage: Stage) -> None:
    async def test() -> None:
        async with stage.page() as page:
            await page.locator("#start").wait_for()
            assert not await page.locator("#own-voice").is_visible()

    stage.run(test())
