"""Who gets to a call through the page: microphones, tokens, scripts from elsewhere, keyboards and screen readers."""

from typing import Any

import pytest

pytest.importorskip("playwright")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from ppx_train.serve.access import Access
from tests.browser import INSECURE_HOST, NEEDS_CHROMIUM
from tests.ppx_train.serve.page_stage import Stage, start, text_of, wait_played

pytestmark = NEEDS_CHROMIUM


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
