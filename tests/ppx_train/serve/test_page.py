"""Calls from the page in a headless Chromium, through a real server, with words that a synthesizer speaks."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

import soundfile

from model.streaming.sample import Sampling
from ppx_train.inference import engine
from ppx_train.inference.loading import Release, read_voice
from ppx_train.inference.offline import chat
from ppx_train.serve.access import Access
from tests.ppx_train.serve.browser import INSECURE_HOST, NEEDS_CHROMIUM, chromium, speak
from tests.ppx_train.serve.live import Live, live, until

pytestmark = NEEDS_CHROMIUM

SECONDS = 120.0
"""Within which anything happens, on a busy machine too."""


@dataclass
class Stage:
    """A server, browsers with and without a microphone, and the loop that they all live in."""

    loop: asyncio.AbstractEventLoop
    one: Live
    browser: Any
    deaf: Any
    problems: list[str] = field(default_factory=list)

    def run(self, test: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(test, 3 * SECONDS))

    @asynccontextmanager
    async def page(self, browser: Any = None, *, host: str = "127.0.0.1", script: str = "", **options: Any) -> Any:
        """The page, opened. script: what runs before it. options: of the browser's context."""
        context = await (browser or self.browser).new_context(**{"permissions": ["microphone"], **options})
        context.set_default_timeout(500 * SECONDS)
        await context.add_init_script(script)
        page = await context.new_page()
        self.problems.clear()
        page.on("pageerror", lambda why: self.problems.append(str(why)))
        try:
            await page.goto(self.one.address.replace("127.0.0.1", host))
            yield page
        finally:
            await context.close()
            assert not self.problems
            assert await until(lambda: self.one.free == 2 and not self.one.service.chats, SECONDS) >= 0


@pytest.fixture(scope="module")
def stage(voiced: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    words = speak(tmp_path_factory.mktemp("speech") / "words.wav")
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    one = loop.run_until_complete(stack.enter_async_context(live(voiced)))
    browser = loop.run_until_complete(stack.enter_async_context(chromium(words)))
    deaf = loop.run_until_complete(stack.enter_async_context(chromium()))
    yield Stage(loop, one, browser, deaf)
    loop.run_until_complete(stack.aclose())
    loop.close()


async def text_of(page: Any, selector: str, *, contains: str = "") -> str:
    """What is seen at a place, once it contains something."""
    found = page.locator(selector).filter(has_text=contains)
    await found.wait_for()
    return str(await found.inner_text())


async def start(page: Any) -> None:
    await page.click("#start")
    await page.locator("#mute").wait_for()


async def played(page: Any) -> float:
    return float((await page.locator("[data-name=Played]").text_content()).split()[0])


async def wait_played(page: Any, seconds: float) -> None:
    """Waits until the agent was heard for so long."""
    await page.locator("[data-name=Played]").wait_for(state="attached")
    while await played(page) < seconds:
        await asyncio.sleep(0.2)


async def saved(page: Any, what: str, folder: Path) -> Path:
    async with page.expect_download() as download:
        await page.click(f"#save-{what}")
    path = folder / (await download.value).suggested_filename
    await (await download.value).save_as(path)
    return path


def test_a_call_is_heard_read_kept_and_held_again_offline(
    stage: Stage, voiced: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_BACKLOG_FRAMES", 10**6)  # A busy machine must not drop what the test compares.

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
        prompt = voiced.prompt(read_voice(voiced.voices["bob"], voiced.lm.config), settings["role"])
        sampling = Sampling(**{name.replace("topk", "top_k"): value for name, value in settings["sampling"].items()})
        again = chat(voiced, user[: len(agent)], prompt_KP=prompt, seed=settings["seed"], sampling=sampling)
        count = len(agent) // 1920 * 1920
        expected = np.clip(np.rint(again.agent_S * 2**15), -(2**15), 2**15 - 1)
        assert count > 48000 and np.abs(expected[:count] - agent[:count]).max() <= 2
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


def test_a_microphone_that_cannot_be_had_is_explained(stage: Stage) -> None:
    async def test() -> None:
        async with stage.page(permissions=[]) as page:
            await page.click("#start")
            assert await text_of(page, "#problem h2") == "The microphone is blocked"
            assert await page.locator("#setup").is_visible()
        async with stage.page(stage.deaf) as page:
            await page.click("#test-microphone")
            assert await text_of(page, "#problem h2") == "No microphone was found"
        async with stage.page(host=INSECURE_HOST) as page:
            assert "no microphone" in await text_of(page, "#problem h2")
            assert "--ssl auto" in await text_of(page, "#problem p") and not await page.locator("#start").is_visible()

    stage.run(test())


def test_one_microphone_is_opened_with_the_processors_that_were_chosen(stage: Stage) -> None:
    spy = """
    const asked = (globalThis.asked = []);
    const real = MediaDevices.prototype.getUserMedia;
    MediaDevices.prototype.getUserMedia = function (wanted) {
      asked.push(wanted.audio);
      return real.call(this, wanted);
    };
    """

    async def test() -> None:
        async with stage.page(script=spy) as page:
            await page.click("#test-microphone")
            await text_of(page, "#level-words", contains="Good")
            assert await page.locator("#microphone option").count() > 1  # named now
            await page.get_by_label("Suppress noise").uncheck()
            await page.wait_for_timeout(500)
            await start(page)
            await wait_played(page, 0.3)
            defaults = {"channelCount": 1, "echoCancellation": True, "noiseSuppression": True, "autoGainControl": False}
            assert await page.evaluate("asked") == [defaults, {**defaults, "noiseSuppression": False}]

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


def test_a_token_is_asked_for_kept_in_the_tab_and_shown_to_the_server(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.one.service, "access", Access("a-good-token", (), is_local=True))

    async def test() -> None:
        async with stage.page() as page:
            for wrong in ("a-wrong-token", "so wrong"):
                await page.fill("#token", wrong)
                await page.get_by_role("button", name="Continue").click()
                assert await text_of(page, "#problem h2") == "The token is wrong"
            await page.fill("#token", "a-good-token")
            await page.get_by_role("button", name="Continue").click()
            await start(page)
            assert await page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
            assert "token" not in page.url
            await page.reload()
            await page.locator("#start").wait_for()  # not asked again

    stage.run(test())


def test_nothing_that_comes_from_elsewhere_is_markup_and_no_inline_script_runs(stage: Stage) -> None:
    hostile = "<img src=x onerror=alert(1)><b>bold</b>"

    async def test() -> None:
        status = await stage.one.http.get(stage.one.address + "/")
        policy = status.headers["Content-Security-Policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        async with stage.page() as page:
            await page.fill("#role", hostile)
            await start(page)
            (chat,) = stage.one.service.chats
            chat.event("text", at=100.0, text=hostile)
            assert hostile in await text_of(page, "#captions", contains="<img")
            assert await page.locator("main img, main b:not(#elapsed)").count() == 0
            ran = """() => {
              const script = document.createElement("script");
              document.head.append(Object.assign(script, { textContent: "globalThis.ran = 1" }));
              return globalThis.ran;
            }"""
            assert await page.evaluate(ran) is None

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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_whole_call_by_keyboard_without_a_fault_that_axe_finds(stage: Stage, scheme: Any, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="axe-core: pip install 'ppx-train[dev]'")

    async def tab_to(page: Any, id_: str) -> None:
        for _ in range(60):
            if await page.evaluate("document.activeElement.id") == id_:
                return
            await page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {id_}")

    async def check(page: Any) -> None:
        found = await axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    async def test() -> None:
        async with stage.page(color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
            await page.locator("#start").wait_for()
            await tab_to(page, "preset-teacher")
            await page.keyboard.press("ArrowRight")
            assert "medical office" in await page.input_value("#role")
            await tab_to(page, "test-microphone")
            await page.keyboard.press("Enter")
            await text_of(page, "#level-words", contains="Good")
            await page.get_by_text("More settings").click()
            await check(page)
            await tab_to(page, "start")
            await page.keyboard.press("Enter")
            await page.locator("#mute:focus").wait_for()
            await page.keyboard.press("Space")
            await page.get_by_text("Figures").click()
            await wait_played(page, 0.2)
            await check(page)
            await tab_to(page, "hang-up")
            await page.keyboard.press("Enter")
            await page.locator("#phase:focus").wait_for()
            await check(page)
            await tab_to(page, "again")
            await page.keyboard.press("Enter")
            await page.locator("#mute:focus").wait_for()

    stage.run(test())
