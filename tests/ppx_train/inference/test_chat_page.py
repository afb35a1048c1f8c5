"""The page of a folder of chats: it shows what was said, runs nothing of it, and plays in a real browser."""

import asyncio
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ppx_train.inference.chat_page import render
from ppx_train.inference.chat_record import ChatRecord, write_chat
from ppx_train.inference.timeline import AgentWord
from ppx_train.inference.user_side import SaidTurn
from ppx_train.inference.verdicts import judge
from tests.browser import NEEDS_CHROMIUM, chromium, until_root
from tests.ppx_train.inference.scenes import scene

EVIL = '<script>document.title="run"</script><img src=x onerror="document.title=\'run\'">'


def make_page(folder: Path) -> str:
    """Two chats: a fine one of an evil role, voice and words, and a silent one with a recorded user."""
    chats = []
    for number, (agent, words) in enumerate(
        [scene(9.0, words="Harbour clinic good morning".split()), scene(9.0, agent=())], start=1
    ):
        said = (SaidTurn(text=f"Hello {EVIL}", start=1.0, end=3.0),) if number == 1 else ()
        if number == 1:
            words.append(AgentWord(text=EVIL, seconds=5.0))
        chat = ChatRecord(
            number=number, role=EVIL, voice=f'a"{EVIL}{number}', seed=1, seconds=9.0, user=said, words=tuple(words),
            pieces=(), judgement=judge(agent, words),
        )  # fmt: skip
        write_chat(folder, chat, agent.agent_S, agent.user_S)
        chats.append(chat)
    page = render(folder, chats, EVIL, {"user": EVIL})
    (folder / "index.html").write_text(page, "utf-8")
    return page


class Reader(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_all_text_and_fetches_nothing(tmp_path: Path) -> None:
    reader = Reader(make_page(tmp_path))
    assert [tag for tag, _ in reader.found if tag in ("script", "img", "link", "iframe")] == ["script"]
    assert all(not (value or "").startswith(("http", "//")) for _, with_ in reader.found for value in with_.values())
    assert all(with_["src"] and with_["src"].startswith("data:audio/") for tag, with_ in reader.found if "src" in with_)
    assert not any(name.startswith("on") or name == "style" for _, with_ in reader.found for name in with_)
    for text in (
        EVIL,
        "Harbour clinic good morning",
        f"Hello {EVIL}",
        "1 of 2",
        "0.0 s of speech",
        "(speaks for 2.1 s)",
        "0:03",
    ):
        assert text in reader.text, text


@NEEDS_CHROMIUM
def test_a_browser_plays_it_under_its_policy(tmp_path: Path) -> None:
    """The policy of the page lets its own script run, and none of the texts."""
    pytest.importorskip("playwright")
    make_page(tmp_path)

    async def press() -> tuple[str, dict[str, str]]:
        async with chromium() as browser:
            page = await browser.new_page()
            await page.goto((tmp_path / "index.html").as_uri())
            await until_root(page, 'players="2"')
            await page.locator("button[data-at]").first.click()
            return await page.title(), await until_root(page, "sought")

    title, root = asyncio.run(press())
    assert title != "run" and root["sought"] == "1.00" and "error" not in root
