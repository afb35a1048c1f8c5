"""Calls from the page in a headless Chromium, through a real server, with words that a synthesizer speaks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

import soundfile

from model.streaming.sample import Sampling
from ppx_train.cli import chat as chat_command
from ppx_train.inference import call
from ppx_train.inference.loading import Release
from ppx_train.inference.offline import chat
from ppx_train.serve import replay
from ppx_train.voices.voice_file import read_voice
from tests.browser import NEEDS_CHROMIUM
from tests.ppx_train.serve.live import until
from tests.ppx_train.serve.page_stage import SECONDS, Stage, played, saved, start, text_of, wait_played

pytestmark = NEEDS_CHROMIUM


def test_a_call_is_heard_read_kept_and_held_again_offline(
    stage: Stage, voiced: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "MOST_BACKLOG_FRAMES", 10**6)  # A busy machine must not drop what the test compares.

    async def test() -> None:
        async with stage.page() as page:
            await page.get_by_role("radio", name="Bank").check()
            await page.select_option("#voice", "bob")
            await page.get_by_text("More settings").click()
            await page.fill("#seed", "7")
            await page.select_option("#codec", "pcm16")
            await start(page)
            await wait_played(page, 3)
            assert "in the buffer" in await text_of(page, "#delay", contains="Delay")
            await page.locator("#captions li").first.wait_for()
            await page.click("#hang-up")
            assert await text_of(page, "#phase") == "The call is over"
            files = {what: await saved(page, what, tmp_path) for what in ("recording", "transcript", "settings")}
        both, rate = soundfile.read(files["recording"], dtype="int16")
        settings = json.loads(files["settings"].read_text())
        assert rate == 24000 and settings["frames_dropped"] == settings["frames_left_out"] == 0
        assert (
            settings["seed"] == 7 and settings["voice"] == "bob" and settings["role"].startswith("You work for a bank")
        )
        agent, user = both[: round(settings["seconds"] * rate), 0], both[:, 1].astype(np.float32) / 2**15
        assert np.abs(user).max() > 0.1  # the words that the microphone heard
        prompt = voiced.prompt(read_voice(voiced.voices["bob"], voiced.lm.config).codes_QP, settings["role"])
        sampling = Sampling(**{name.replace("topk", "top_k"): value for name, value in settings["sampling"].items()})
        again = chat(voiced, user[: len(agent)], prompt_KP=prompt, seed=settings["seed"], sampling=sampling)
        count = len(agent) // 1920 * 1920
        expected = np.clip(np.rint(again.agent_S * 2**15), -(2**15), 2**15 - 1)
        # A call shares its batch with empty rows, so its sound may be rounded otherwise; another token is far louder.
        assert count > 48000 and np.abs(expected[:count] - agent[:count].astype(np.float32)).max() < 2**-9 * 2**15
        monkeypatch.setattr(replay, "load_release", lambda *_, **__: voiced)
        assert settings["server"]["checksum"] == voiced.checksum and settings["server"]["precision"] == "fp32"
        assert chat_command.command(["--model", "tiny", "--replay", str(files["settings"])]) == 0
        files["settings"].write_text(json.dumps(settings | {"seed": 8}))
        assert chat_command.command(["--model", "tiny", "--replay", str(files["settings"])]) == 1
        transcript = json.loads(files["transcript"].read_text())
        said = [(piece["at"], piece["text"]) for piece in transcript["pieces"]]
        assert (
            said
            and "".join(text for _, text in said).split()
            == " ".join(line["text"] for line in transcript["agent"]).split()
        )

    stage.run(test())


def test_opus_is_used_where_the_browser_has_it_and_pcm16_elsewhere(stage: Stage) -> None:
    async def test() -> None:
        for script, codec in (("", "Opus"), ("delete globalThis.AudioEncoder", "PCM16")):
            async with stage.page(script=script) as page:
                if not script and not await page.evaluate("'AudioEncoder' in globalThis"):
                    continue
                await start(page)
                await wait_played(page, 0.5)
                assert await page.locator("[data-name='Sound on the wire']").text_content() == codec

    stage.run(test())


def test_a_full_server_shows_the_place_in_the_queue_and_then_takes_the_call(stage: Stage) -> None:
    async def test() -> None:
        async with stage.page() as page:
            async with stage.one.call({"proto": "2"}), stage.one.call({"proto": "2"}):
                await until(lambda: stage.one.free == 0, SECONDS)
                await page.click("#start")
                assert "You are number 1 in the queue" in await text_of(page, "#phase", contains="queue")
                await page.get_by_role("button", name="Cancel").click()
                await page.get_by_role("button", name="Call again").click()
                await text_of(page, "#phase", contains="number 1")
            await text_of(page, "#phase", contains="Connected")

    stage.run(test())


def test_the_end_of_a_call_by_the_server_is_explained_and_another_can_follow(stage: Stage) -> None:
    def cut_off() -> None:
        for each in list(stage.one.service.chats):
            each._transport.abort()  # type: ignore[attr-defined]

    ends = [
        (lambda: stage.one.service.end_all("draining"), "The server restarts"),
        (cut_off, "The connection broke"),
        (lambda: stage.one.service.end_all("slow"), "Too slow to listen"),
        (lambda: stage.one.service.end_all("limit"), "The call is over"),
    ]

    async def test() -> None:
        async with stage.page() as page:
            await start(page)
            for end, title in ends:
                await wait_played(page, 0.1)
                end()
                await text_of(page, "#phase", contains=title)
                assert await page.locator("#keep").is_visible() and await text_of(page, "#why", contains=".")
                await page.get_by_role("button", name="Call again").click()
                await page.locator("#mute").wait_for()

    stage.run(test())


def test_refusals_are_explained(stage: Stage) -> None:
    async def test() -> None:
        async with stage.page() as page:
            for count, title in ((600, "The server refuses a setting"), (2000, "The role is too long")):
                await page.fill("#role", "words " * count)
                await page.click("#start")
                await text_of(page, "#phase", contains=title)
                assert count == 2000 or "at most 512 tokens" in await text_of(page, "#why")
                await page.get_by_role("button", name="Change settings").click()
            await page.fill("#role", "You are a teacher.")
            stage.one.service.phase = "draining"
            try:
                await page.click("#start")
                assert "restarts" in await text_of(page, "#why", contains="It says")
            finally:
                stage.one.service.phase = "ready"

    stage.run(test())


def test_muting_sends_silence_and_a_hidden_tab_is_noted(stage: Stage, tmp_path: Path) -> None:
    async def test() -> None:
        async with stage.page() as page:
            await start(page)
            await page.click("#mute")
            assert await page.get_attribute("#mute", "aria-pressed") == "true"
            await wait_played(page, await played_or_0(page) + 1.5)
            hide = "Object.defineProperty(document, 'hidden', { value: true })"
            await page.evaluate(f"{hide}; document.dispatchEvent(new Event('visibilitychange'))")
            assert "hidden" in await text_of(page, "#notices")
            await page.click("#hang-up")
            both, _ = soundfile.read(await saved(page, "recording", tmp_path))
        assert np.abs(both[-24000:, 1]).max() == 0 and np.abs(both[:, 0]).max() > 0

    async def played_or_0(page: Any) -> float:
        return await played(page) if await page.locator("[data-name=Played]").count() else 0.0

    stage.run(test())
