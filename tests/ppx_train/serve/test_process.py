"""The server as a process: TLS, signals, capacity, and what it leaves behind."""

import asyncio
import copy
import gc
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch

pytest.importorskip("prometheus_client")

from model.config import LMConfig
from ppx_train.inference.loading import Release
from ppx_train.inference.session import SessionSettings
from ppx_train.serve import admission
from ppx_train.serve.connection import Connection
from ppx_train.serve.protocol import Kind
from ppx_train.serve.server import listening
from ppx_train.serve.service import Service
from ppx_train.serve.settings import ServeSettings
from ppx_train.serve.tls import tls_context, write_certificate
from tests.paths import ROOT
from tests.ppx_train.serve.live import live, paced, pcm, receive_until, rest, speech, until, within
from tests.refusals import refused


def test_a_process_serves_with_tls_and_drains_on_sigterm(folder: Path) -> None:
    pytest.importorskip("cryptography")
    program = f"import sys; sys.argv[0] = 'ppx-serve'; sys.path[0] = {str(ROOT)!r}; "
    program += "from ppx_train.cli.serve import main; main()"
    words = ["--model", str(folder), "--port", "0", "--ssl", "auto", "--drain-seconds", "0.3", "--not-realtime"]
    server = subprocess.Popen(
        [sys.executable, "-c", program, *words, "--max-sessions", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PPX_SERVE_TOKEN": "a-good-token"},
    )  # fmt: skip
    assert server.stdout is not None and server.stderr is not None
    try:
        line = server.stdout.readline()
        assert line.startswith("tiny on cpu: 2 sessions at https://127.0.0.1:"), line + server.stderr.read()
        host, port = "127.0.0.1", int(line.rpartition(":")[2])
        trusted = ssl.create_default_context(cadata=ssl.get_server_certificate((host, port)))

        async def call() -> None:
            _, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")  # A client without TLS.
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as http:
                where = f"https://{host}:{port}/api/chat?codec=pcm16&text_prompt=secret"
                with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                    await http.ws_connect(where)
                async with http.ws_connect(where + "&token=a-good-token") as socket:
                    await receive_until(socket, Kind.HANDSHAKE)
                    await paced(4, lambda n: socket.send_bytes(pcm(speech(4)[n])))
                    server.send_signal(signal.SIGTERM)
                    messages = await rest(socket)
                    assert socket.close_code == 1012 and messages[-1].kind == Kind.ERROR
            writer.close()

        within(30, call())
        assert server.wait(timeout=15) == 0
        logged = [json.loads(line) for line in server.stderr.read().splitlines()]
        assert [entry["event"] for entry in logged] == ["call began", "draining", "call ended"]
        assert logged[-1]["reason"] == "draining" and "secret" not in str(logged)
    finally:
        server.kill()
        server.wait()


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with refused("not-found", "cert.pem"):
        tls_context(str(tmp_path), "127.0.0.1")
    write_certificate(tmp_path, ["localhost", "10.1.2.3"])
    tls_context(str(tmp_path), "127.0.0.1")
    (tmp_path / "key.pem").write_text("no key")
    with refused("unreadable", "key.pem"):
        tls_context(str(tmp_path), "127.0.0.1")


def test_an_address_that_is_taken_is_named_and_only_the_host_is_listened_on() -> None:
    async def test() -> None:
        async with listening(Service(ServeSettings(model="m", port=0))) as address:
            port = int(address.rpartition(":")[2])
            assert address == f"http://127.0.0.1:{port}"
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.2", port)
            with refused("in-use", str(port)):
                async with listening(Service(ServeSettings(model="m", port=port))):
                    pass
            with refused("in-use", "203.0.113.1"):
                async with listening(Service(ServeSettings(model="m", port=0, host="203.0.113.1", insecure=True))):
                    pass
            async with aiohttp.ClientSession() as http:  # While the model is loaded, health can be asked for.
                for path, status in (("/healthz", 200), ("/readyz", 503), ("/api/chat", 503), ("/api/info", 200)):
                    async with http.get(address + path) as got:
                        assert got.status == status

    within(20, test())


def test_slots_follow_from_the_time_of_a_tick(voiced: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = SessionSettings()
    each = 0.02

    def takes(conversations: Any, _: SessionSettings) -> float:
        return each * len(conversations.sessions)

    monkeypatch.setattr(admission, "measure_tick", takes)
    monkeypatch.setattr(admission, "check_hearing", lambda _: None)
    fits = admission.admit(voiced, 3, warm)
    assert fits.slots == 3 and fits.note is None
    fewer = admission.admit(voiced, 8, warm)
    assert fewer.slots == 3 and fewer.note is not None and fewer.note.startswith("3 sessions, not 8")
    each = 0.09
    with refused("no-device", "90 ms"):
        admission.admit(voiced, 8, warm)
    assert admission.admit(voiced, 4, warm, not_realtime=True).slots == 4


def test_slots_follow_from_memory(voiced: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LMConfig()  # 32 layers, 2 x 4096 values a frame, 3000 frames: 1.57 GB a call in two bytes each.
    big = replace(voiced, lm=voiced.lm)
    shaped = type("Shaped", (), {"config": config, "text_emb": type("E", (), {"weight": torch.zeros(1).bfloat16()})})
    big.lm = shaped  # type: ignore[assignment]
    monkeypatch.setattr(admission, "free_bytes", lambda _: 60 * 2**30)
    assert admission.slots_by_memory(big) == 32
    assert admission.slots_by_memory(voiced) > 1000
    monkeypatch.setattr(admission, "free_bytes", lambda _: 100)
    with refused("no-device", "memory"):
        admission.admit(voiced, 2, SessionSettings())


def test_measuring_leaves_no_trace(voiced: Release) -> None:
    conversations = admission.Conversations(voiced, 2, most=admission.MOST)
    before = conversations.join(SessionSettings(seed=3, prompt_KP=voiced.prompt(None, "hello")))
    conversations.prompt(before)
    frame_S = speech(1)[0]
    expected = [conversations.step({before: frame_S})[before].tokens for _ in range(4)]
    conversations.leave(before)
    warm = SessionSettings(prompt_KP=voiced.prompt(None, "hello"))
    assert admission.measure_tick(conversations, warm) > 0 and conversations.free == 2
    after = conversations.join(SessionSettings(seed=3, prompt_KP=voiced.prompt(None, "hello")))
    conversations.prompt(after)
    assert [conversations.step({after: frame_S})[after].tokens for _ in range(4)] == expected
    assert admission.free_bytes(torch.device("cpu")) > 2**20


def test_a_model_that_does_not_hear_is_not_served(voiced: Release) -> None:
    hears = admission.Conversations(voiced, 1, most=admission.MOST)
    admission.check_hearing(hears)
    assert hears.free == 1
    deaf = replace(voiced, lm=copy.deepcopy(voiced.lm))
    with torch.no_grad():
        deaf.lm.audio_emb.weight[deaf.lm.config.num_codebooks :] = 0  # What the user's streams add.
    with refused("bad-weights", "does not hear", "250 frames"):
        admission.check_hearing(admission.Conversations(deaf, 1, most=admission.MOST))


def test_sigterm_while_the_model_is_loaded_ends_the_process_in_order(tmp_path: Path) -> None:
    program = f"import sys, time; sys.path[0] = {str(ROOT)!r}; from ppx_train.serve import service; "
    program += "service._load = lambda _: (print('loading', flush=True), time.sleep(60)); sys.argv[0] = 'ppx-serve'; "
    program += "from ppx_train.cli.serve import main; main()"
    words = ["--model", str(tmp_path), "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None and server.stdout.readline() == "loading\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
        assert server.stderr is not None
        assert [json.loads(line)["event"] for line in server.stderr] == ["stopped while the model was being loaded"]
    finally:
        server.kill()


def test_the_event_loop_goes_on_while_the_model_computes(voiced: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_step(_: object) -> dict[Any, Any]:
        time.sleep(1.0)
        return {}

    async def test() -> None:
        async with live(voiced) as one, one.call() as socket:
            await receive_until(socket, Kind.HANDSHAKE)
            monkeypatch.setattr(one.service.running.conversations, "step", slow_step)
            await socket.send_bytes(pcm(np.zeros(3840, np.float32)))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            assert (await one.get("/healthz"))[0] == 200 and time.monotonic() - began < 0.5
            assert one.service.metrics.lag(0.5) < 0.5

    within(20, test())


def test_figures_are_those_of_the_engine(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            async with one.call() as socket:
                await receive_until(socket, Kind.HANDSHAKE)
                await paced(6, lambda n: socket.send_bytes(pcm(speech(6)[n])))
                await receive_until(socket, Kind.AUDIO)
                page = (await one.get("/metrics"))[1]
                assert "ppx_calls_active 1.0" in page and "ppx_slots 2.0" in page
            await until(lambda: 'ppx_calls_total{reason="left"} 1.0' in one.service.metrics.page(None, 0, 0).decode())
            figures = dict(
                line.rsplit(" ", 1) for line in (await one.get("/metrics"))[1].splitlines() if line[0] != "#"
            )
            assert float(figures["ppx_frames"]) == one.service.running.figures.frames > 0
            ticks = one.service.running.figures.ticks
            assert ticks - 3 <= float(figures["ppx_tick_seconds_count"]) <= ticks
            assert float(figures["ppx_loop_lag_seconds_count"]) > 5
            assert figures["ppx_ready_seconds_count"] == "1.0"

    within(20, test())


CONNECTS = int(os.environ.get("PPX_CONNECTS", "25"))


def test_nothing_grows_with_calls(voiced: Release) -> None:
    async def some(one: Any, count: int) -> tuple[int, int, int, int]:
        for _ in range(count):
            async with one.call({"proto": "2"}) as socket:
                await receive_until(socket, Kind.HANDSHAKE)
                await socket.send_bytes(pcm(speech(1)[0]))
        await until(lambda: one.free == 2 and not one.service.chats)
        await asyncio.sleep(0.2)
        gc.collect()
        chats = sum(type(thing) is Connection for thing in gc.get_objects())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return chats, threading.active_count(), len(os.listdir("/proc/self/fd")), pages

    async def test() -> None:
        async with live(voiced) as one:
            before = await some(one, 4)
            after = await some(one, CONNECTS)
            assert after[0] <= before[0] + 2 and after[1] == before[1] and after[2] <= before[2]
            assert (after[3] - before[3]) * os.sysconf("SC_PAGE_SIZE") < 16 * 2**20

    within(30 + CONNECTS, test())
