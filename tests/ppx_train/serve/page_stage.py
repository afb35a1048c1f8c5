"""A server with browsers, in which tests use the page; and the page's modules without a server."""

import asyncio
import functools
import http.server
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppx_train.inference.loading import Release
from ppx_train.serve.settings import PAGE
from tests.browser import chromium
from tests.ppx_train.serve.live import Live, live, until

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


@contextmanager
def open_stage(release: Release, microphone: Path, **settings: Any) -> Iterator[Stage]:
    """Starts a server of a model and both browsers. microphone: the WAV file that is heard."""
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    one = loop.run_until_complete(stack.enter_async_context(live(release, **settings)))
    browser = loop.run_until_complete(stack.enter_async_context(chromium(microphone)))
    deaf = loop.run_until_complete(stack.enter_async_context(chromium()))
    try:
        yield Stage(loop, one, browser, deaf)
    finally:
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


PIECES = """
function* cut(values, sizes) {
  for (let at = 0, n = 0; at < values.length; n++) yield values.slice(at, (at += sizes[n % sizes.length]));
}
const sizes = [128, 1, 480, 7, 1920, 33];
"""


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def open_js() -> Iterator[Callable[..., Any]]:
    """Yields what runs a function's body in the page's origin; it gets `given`, and its result is returned."""
    handler = functools.partial(_Files, directory=str(PAGE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()

    async def open_page() -> Any:
        browser = await stack.enter_async_context(chromium())
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{server.server_port}/icon.svg")
        return page

    page = loop.run_until_complete(open_page())

    def run(body: str, given: Any = None) -> Any:
        return loop.run_until_complete(page.evaluate(f"async (given) => {{ {PIECES} {body} }}", given))

    yield run
    loop.run_until_complete(stack.aclose())
    loop.close()
    server.shutdown()
