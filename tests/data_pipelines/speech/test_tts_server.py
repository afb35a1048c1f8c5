"""The speech server and its client: requests that are refused, keys, and what happens when the server fails."""

import base64
import http.client
import http.server
import io
import json
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")
pytest.importorskip("pocketsphinx")

from data_pipelines.speech.engines import EngineChoice, open_engine
from data_pipelines.speech.protocols import EngineGone
from data_pipelines.speech.tts import remote, server
from data_pipelines.speech.voices import load_pool
from model.errors import Code, UserError
from tests.data_pipelines import speech_servers
from tests.data_pipelines.jobs import wait_for
from tests.data_pipelines.speech_servers import LINES, Server
from tests.data_pipelines.tiny_recordings import without_length
from tests.refusals import refused

fakes, manifest, chatterbox_server, dia_server, here = speech_servers.FIXTURES


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=1200) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as why:
        return why.code, json.loads(why.read())


@pytest.mark.parametrize("body, reason", [
    (b"{", "not a request"),
    (b"[]", "not a request"),
    (b'{"text": "a"}', "not a request .KeyError: 'seed'"),
    (b'{"text": "a", "seed": 1, "reference": "***"}', "not a request"),
    (b'{"text": "  ", "seed": 1}', "a request needs a text"),
    (b'{"text": "a", "seed": "1"}', "a request needs a text"),
    (b'{"text": "a", "seed": 1, "options": [1]}', "a request needs a text"),
    (b'{"text": "a", "seed": 1}', "chatterbox needs a reference clip"),
])  # fmt: skip
def test_the_server_refuses_bad_requests_with_400_and_lives_on(
    body: bytes, reason: str, chatterbox_server: Server
) -> None:

    code, answer = ask(f"{chatterbox_server.url}/speak", body)
    assert code == 400 and re.search(reason, answer["error"])
    assert ask(f"{chatterbox_server.url}/identity") == (200, chatterbox_identity(chatterbox_server))


@pytest.mark.parametrize("length", ["-1", "many", str(1 << 30)])
def test_the_server_refuses_impossible_lengths(length: str, chatterbox_server: Server) -> None:
    with urllib.request.urlopen(f"{chatterbox_server.url}/identity") as answer:
        assert answer.status == 200
    connection = http.client.HTTPConnection(chatterbox_server.url.removeprefix("http://"), timeout=1200)
    connection.putrequest("POST", "/speak")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def chatterbox_identity(running: Server) -> dict:
    identity = ask(f"{running.url}/identity")[1]
    assert identity["name"] == "chatterbox" and identity["version"] == "chatterbox-tts 0.1.7"
    assert identity["licence"] == "MIT" and len(identity["model_sha256"]) == 64
    return identity


def test_other_paths_are_404(chatterbox_server: Server) -> None:
    assert ask(f"{chatterbox_server.url}/etc/passwd")[0] == 404
    assert ask(f"{chatterbox_server.url}/other", b"{}")[0] == 404


def test_the_identity_is_returned_while_the_engine_works(
    chatterbox_server: Server, manifest: Path, tmp_path: Path
) -> None:
    clip = server.float_wav(*load_pool(manifest).audio("anna/anna"))
    go = tmp_path / "go"
    body = json.dumps({"text": f"Waiting for {go}", "seed": 0, "reference": base64.b64encode(clip).decode()}).encode()
    thread = threading.Thread(target=lambda: urllib.request.urlopen(f"{chatterbox_server.url}/speak", body).read())
    thread.start()
    try:
        wait_for(go.with_suffix(".begun").exists)
        assert ask(f"{chatterbox_server.url}/identity")[0] == 200
        assert thread.is_alive()
    finally:
        go.touch()
        thread.join()


def test_a_key_is_asked_for_and_never_shown(fakes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    running = Server(fakes, "dia", key="secret-4711")
    try:
        monkeypatch.delenv("PPX_TTS_KEY", raising=False)
        with refused("no-access", running.url, 401, "PPX_TTS_KEY", error=EngineGone):
            remote.HttpBackend(running.url, "dia")
        monkeypatch.setenv("PPX_TTS_KEY", "secret-4711")
        engine = open_engine(EngineChoice(name="dia", url=running.url, store=tmp_path))
        assert "secret" not in json.dumps(engine.identity())
        engine.converse(LINES[:2], seed=0)
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"secret-4711" in p.read_bytes()]
    finally:
        out, err = running.stop()
    assert "secret" not in out + err


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://[host", "http://host:99999", "http://ho st"])
def test_an_address_that_cannot_be_asked_is_refused(url: str) -> None:
    with refused("bad-value", f"--url {url!r}", "http://127.0.0.1:8000"):
        remote.HttpBackend(url, "dia")


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UserError, match=r"put the key into \$PPX_TTS_KEY") as why:
        remote.HttpBackend("http://name:word@host:8000", "dia")
    assert "word" not in str(why.value)


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPX_TTS_KEY", "secret\nkey")
    with pytest.raises(UserError, match=r"the key in \$PPX_TTS_KEY holds a space") as why:
        remote.HttpBackend("http://127.0.0.1:9", "dia")
    assert "secret" not in str(why.value)


@pytest.mark.parametrize("page", [b"<html>", b"[1]", b"\xff"])
def test_a_server_of_something_else_is_no_speech_server(page: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.HttpBackend, "_ask", lambda *_: (page, ""))
    with refused("bad-answer", "http://host", "check --url", error=EngineGone):
        remote.HttpBackend("http://host", "dia")


class Faulty:
    """A server that responds by a plan of status codes and faults by name; after the last one, with 200."""

    def __init__(self, *plan: int | str) -> None:
        self.plan, self.asked, self.stopped = list(plan), 0, threading.Event()
        outer = self
        identity = {"name": "dia", "version": "1", "licence": "MIT", "output_licence": "MIT", "deterministic": True}
        stamp = remote.fingerprint(identity)
        wav = server.float_wav(np.full(8000, 0.1, np.float32), 16000)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, json.dumps(identity).encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked += 1
                step = outer.plan.pop(0) if outer.plan else 200
                if step == "hang":
                    outer.stopped.wait()
                    return
                if step == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000000")
                    self.end_headers()
                    self.wfile.write(b"RIFF")
                elif step == "drop":
                    self.connection.close()
                elif step == "prose":
                    self.answer(200, b"Sorry, I cannot do that.")
                elif step == "stream":
                    data = io.BytesIO()
                    soundfile.write(data, np.full(8000, 0.1), 16000, format="FLAC")
                    self.answer(200, without_length(data.getvalue()))
                elif step == "other":
                    self.answer(200, wav, "0" * 64)
                else:
                    self.answer(int(step), wav if step == 200 else b'{"error": "too busy"}')

            def answer(self, code: int, data: bytes, by: str = stamp) -> None:
                self.send_response(code)
                self.send_header("X-Engine", by)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def client(self, tries: int = 3) -> remote.HttpBackend:
        timeout = 1.0 if "hang" in self.plan else 600.0
        return remote.HttpBackend(self.url, "dia", timeout=timeout, tries=tries, wait=0.01)

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("plan, asked", [
    ((429, 200), 2), ((500, 503, 200), 3), (("cut", 200), 2), (("drop", "drop", 200), 3),
])  # fmt: skip
def test_what_passes_is_tried_again(plan: tuple[int | str, ...], asked: int) -> None:
    running = Faulty(*plan)
    try:
        audio, rate = running.client().say("hi", b"", 0, {})
        assert rate == 16000 and len(audio) == 8000 and running.asked == asked
    finally:
        running.stop()


def test_a_response_that_does_not_come_in_time_is_asked_for_again() -> None:
    running = Faulty("hang")
    try:
        running.client(tries=20).say("hi", b"", 0, {})
        assert running.asked >= 2  # There are more requests where the machine is slow.
    finally:
        running.stop()


@pytest.mark.parametrize("plan, kind, code, named, asked", [
    ((400,), UserError, "bad-value", "400 too busy", 1),
    ((422,), UserError, "bad-value", "422", 1),
    ((403,), EngineGone, "no-access", "403 too busy: set PPX_TTS_KEY", 1),
    ((500,) * 9, UserError, "program-failed", "500 too busy", 2),
    ((429,) * 9, EngineGone, "unreachable", "3 tries (429 too busy)", 3),
    ((503,) * 9, EngineGone, "unreachable", "3 tries (503", 3),
    (("drop",) * 9, EngineGone, "unreachable", "3 tries", 3),
    (("hang",) * 9, EngineGone, "unreachable", "3 tries (timed out)", 3),
    (("other",), EngineGone, "other-settings", "--out", 1),
])  # fmt: skip
def test_what_does_not_pass_is_named_and_only_the_engines_own_failures_reject_one_script(
    plan: tuple[int | str, ...], kind: type[UserError], code: Code, named: str, asked: int
) -> None:
    running = Faulty(*plan)
    try:
        client = running.client()
        with pytest.raises(UserError) as why:
            client.say("hi", b"", 0, {})
        assert type(why.value) is kind and why.value.code == code and named in str(why.value)
        assert running.asked == asked
    finally:
        running.stop()


def test_an_answer_of_unknown_length_is_read_to_its_end() -> None:
    running = Faulty("stream")
    try:
        audio, rate = running.client().say("hi", b"", 0, {})
        assert rate == 16000 and audio.shape == (8000,) and np.allclose(audio, 0.1, atol=1e-4)
    finally:
        running.stop()


def test_an_answer_that_is_no_sound_is_refused() -> None:
    running = Faulty("prose")
    try:
        with refused("bad-answer", "WAV"):
            running.client().say("hi", b"", 0, {})
    finally:
        running.stop()


def test_a_server_of_another_engine_is_refused(chatterbox_server: Server) -> None:
    with refused("bad-combination", chatterbox_server.url, "'chatterbox', not dia"):
        remote.HttpBackend(chatterbox_server.url, "dia")


def test_a_server_that_is_not_there_ends_the_run_at_once(tmp_path: Path) -> None:
    with refused("unreachable", "http://127.0.0.1:9/identity", "2 tries", error=EngineGone):
        remote.HttpBackend("http://127.0.0.1:9", "dia", tries=2, wait=0.01)
