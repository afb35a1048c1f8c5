"""`ppx-chat --server`: the files of an offline chat out of a call, and no option that would have no effect."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from aiohttp import web

from ppx_train.cli.chat import command
from tests.ppx_train.serve.fake_chat_server import Script, Seen, serving
from tests.refusals import refused


@contextmanager
def server(script: Script) -> Iterator[tuple[str, Seen]]:
    """A server in a thread of its own, as the command has its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    room = serving(script)
    try:
        yield asyncio.run_coroutine_threadsafe(room.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(room.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def echo(socket: web.WebSocketResponse, seen: Seen) -> None:
    """Says back what it hears, and a word with the third message."""
    await socket.send_bytes(b"\x00")
    async for message in socket:
        seen.messages.append(message.data)
        await socket.send_bytes(message.data)
        if len(seen.messages) == 4:
            await socket.send_bytes(b"\x02 well")


@pytest.fixture
def user(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "user.wav", 0.3 * np.sin(np.arange(12000) / 9), 24000)
    return tmp_path / "user.wav"


def test_a_recording_through_a_server_leaves_the_files_of_a_chat(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
    words = ["--input-wav", str(user), "--output-wav", str(tmp_path / "agent.wav"), "--text-prompt", "You are Ann."]
    with server(echo) as (url, seen):
        command(["--server", url, *words, "--seed", "4", "--voice-prompt", "NATF0", "--greedy", "--token", "open"])
        with refused("exists", "agent.wav"):
            command(["--server", url, *words])
    asked = {"voice_prompt": "NATF0", "text_prompt": "You are Ann.", "seed": "4", "text_topk": "1", "audio_topk": "1"}
    assert asked.items() <= seen.query.items() and seen.headers["Authorization"] == "Bearer open"
    agent, rate = soundfile.read(tmp_path / "agent.wav")
    assert (rate, len(agent)) == (24000, 12000) and np.abs(agent).max() > 0.25  # the tone came back
    pieces = json.loads((tmp_path / "agent.json").read_text("utf-8"))
    assert len(pieces) == 7 and [piece for piece in pieces if piece != "PAD"] == [" well"]
    assert (tmp_path / "agent.png").read_bytes()[:4] == b"\x89PNG"
    assert "0.5 s, first word after" in (said := capsys.readouterr().out) and "agent: well" in said


@pytest.mark.parametrize(
    "words",
    ["--device cpu", "--revision main", "--voice-prompt-dir voices", "--precision int8", "--past-window forget"],
)
def test_options_of_a_model_that_is_loaded_here_are_refused_with_a_server(user: Path, words: str) -> None:
    with refused("bad-combination", words):
        command(["--server", "http://127.0.0.1:9", "--input-wav", str(user), "--output-wav", "x.wav", *words.split()])


def test_a_token_is_for_a_server(user: Path, tmp_path: Path) -> None:
    with refused("bad-combination", "--token"):
        command(["--model", "m", "--token", "t", "--input-wav", str(user), "--output-wav", str(tmp_path / "x.wav")])


def test_either_a_model_or_a_server_is_named() -> None:
    files = ["--input-wav", "a.wav", "--output-wav", "b.wav"]
    with refused("missing-option", "--model", "--server"):
        command(files)
    with refused("bad-combination", "--server", "--model"):
        command(["--model", "m", "--server", "http://a", *files])
