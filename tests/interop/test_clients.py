"""Clients of others complete calls with this server: Kyutai's on the command line, and LiveKit's plugin.

pip install --no-deps moshi==0.2.13
PPX_LIVEKIT=path/to/python  (of an environment with `pip install "livekit-plugins-nvidia[personaplex]"`)
"""

import asyncio
import importlib
import io
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.config import FRAME_SAMPLES
from model.duplex import DuplexLM
from model.weights.checkpoint import save_native
from tests.interop.sound_card import SoundCard
from tests.live_server import live_server
from tests.ppx_train.fixtures import make_codec, make_tokenizer
from tests.ppx_train.inference.noise import CONFIG

SECONDS = 4.0
LIVEKIT = "PPX_LIVEKIT"

pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
pytest.importorskip("prometheus_client", reason="the server: pip install prometheus-client")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a small random model, with the voice that LiveKit's plugin asks for by default."""
    model = tmp_path_factory.mktemp("release") / "tiny"
    torch.manual_seed(0)
    save_native(model, DuplexLM(CONFIG))
    make_codec(model / "mimi.safetensors")
    make_tokenizer(model / "tokenizer.model")
    (model / "voices").mkdir()
    save_file({"codes": torch.randint(CONFIG.card, (8, 20), dtype=torch.int32)}, model / "voices" / "NATF2.safetensors")
    with live_server(model, "--max-sessions", "2") as url:
        yield url


def test_kyutais_client_completes_a_call(
    kyutai: object, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = SoundCard((0.3 * np.sin(np.arange(FRAME_SAMPLES * 20) / 15)).astype(np.float32))
    monkeypatch.setitem(sys.modules, "sounddevice", card)  # type: ignore[arg-type]
    client = importlib.import_module("moshi.client")
    said, log = io.StringIO(), io.StringIO()
    printer = importlib.import_module("moshi.client_utils").RawPrinter(said, log)

    async def call() -> None:
        running = asyncio.create_task(client.run(printer, Namespace(url=address, host=None, port=None, https=False)))
        await asyncio.sleep(SECONDS + 1)
        assert not running.done(), f"the call has ended: {log.getvalue()}"
        assert capsys.readouterr().out == ""  # the client prints exceptions there
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(call())
    warnings = re.findall(r"(?:Error|Warning): [^\x1b\n]*", log.getvalue())
    assert warnings == ["Warning: unknown message kind 0"]  # it knows the handshake of no server
    frames = [frame for frame in card.played if np.any(frame)]
    assert len(frames) > 0.75 * SECONDS * 12.5 and np.isfinite(frames).all()
    assert said.getvalue().strip()  # a random model talks all the time


def test_livekits_plugin_completes_a_call(address: str) -> None:
    python = os.environ.get(LIVEKIT)
    if not python:
        pytest.skip(f"{LIVEKIT} names no Python with livekit-plugins-nvidia[personaplex]")
    caller = Path(__file__).with_name("livekit_caller.py")
    words = [address.replace("http://", "ws://"), "NATF2", "You are a helpful assistant.", "7", str(SECONDS)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(caller), *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["errors"] == [] and seen["generations"] == 1 and seen["silences_over_500_ms"] == 0
    assert seen["samples"] > 0.8 * SECONDS * 24000 and seen["text"].strip()
    assert "Unknown" not in done.stderr and "WARN" not in done.stderr
