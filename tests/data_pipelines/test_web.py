"""Keys and texts stay with the server that the user named."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.llm.client import Client
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.speech.protocols import EngineGone
from data_pipelines.speech.tts.remote import HttpBackend
from tests.data_pipelines.llm.asking import question
from tests.refusals import refused


class Redirecting:
    """A server that redirects all requests to another one, which notes what reaches it."""

    def __init__(self, status: int) -> None:
        self.reached: list[str] = []
        reached = self.reached

        class Thief(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                reached.append(str(self.headers.get("Authorization")))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.thief = ThreadingHTTPServer(("127.0.0.1", 0), Thief)
        self.target = f"http://127.0.0.1:{self.thief.server_address[1]}"
        target = self.target

        class Redirect(Thief):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Location", f"{target}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        for server in (self.server, self.thief):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        for server in (self.server, self.thief):
            server.shutdown()
            server.server_close()


@pytest.fixture(params=[301, 302, 303, 307, 308])
def redirecting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redirecting]:
    monkeypatch.setenv("PPX_TTS_KEY", "secret-key")
    monkeypatch.setenv("TEST_KEY", "secret-key")
    servers = Redirecting(request.param)
    yield servers
    servers.stop()


def test_a_speech_server_that_redirects_is_not_followed(redirecting: Redirecting) -> None:
    with refused("unsafe", redirecting.url, redirecting.target, "--url", error=EngineGone):
        HttpBackend(redirecting.url, "dia", wait=0.01)
    assert redirecting.reached == []


def test_a_model_server_that_redirects_is_not_followed(redirecting: Redirecting, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("jsonschema")
    client = Client(LLMSettings(model="m", base_url=f"{redirecting.url}/v1", key_env="TEST_KEY"), tmp_path)
    with refused("unsafe", redirecting.url, redirecting.target, "--llm-url"):
        client.ask(question())
    assert redirecting.reached == []
