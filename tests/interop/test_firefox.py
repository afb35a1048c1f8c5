"""A call from the page in a headless Firefox: what its speaker plays, what its microphone hears, and what it keeps.

apt-get install firefox-esr pulseaudio pulseaudio-utils nodejs npm
npm install --prefix path/to/folder puppeteer-core
PPX_PUPPETEER=path/to/folder
"""

# Shapes: S samples; C channels

import json
import os
import shutil
import subprocess
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("sphn", reason="Opus: pip install sphn")
pytest.importorskip("prometheus_client", reason="the server: pip install prometheus-client")

import soundfile
import soxr
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import signal

from tests.browser import speak
from tests.interop.pulse import NEEDS_PULSE, RATE, Pulse, pulse
from tests.live_server import live_server
from tests.ppx_train.inference.conftest import folder  # noqa: F401 - a model folder

PUPPETEER = "PPX_PUPPETEER"
FIREFOX = shutil.which("firefox") or shutil.which("firefox-esr")
PIECE = RATE // 20
QUIET = 0.01
"""Level of a piece that says nothing."""

pytestmark = [
    NEEDS_PULSE,
    pytest.mark.skipif(FIREFOX is None, reason="no Firefox: apt-get install firefox-esr"),
    pytest.mark.skipif(shutil.which("node") is None, reason="no Node: apt-get install nodejs"),
    pytest.mark.skipif(PUPPETEER not in os.environ, reason=f"{PUPPETEER} names no folder with puppeteer-core"),
]


def soften(codec: Path) -> None:
    """Makes a codec of random weights 34 dB quieter: it shouts, and a speaker would cut off the peaks."""
    with safe_open(codec, "pt") as file:
        weights, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    for name in ("weight", "bias"):
        weights[f"decoder.model.14.conv.conv.{name}"] *= 0.02
    save_file(weights, codec, metadata=metadata)


def returned(said_S: npt.NDArray[Any], heard_S: npt.NDArray[Any]) -> tuple[float, float]:
    """The share of the pieces of `said_S` that are in `heard_S`, in their order, and their median gain.

    A piece of 50 ms is there where the normalised correlation is above 0.95. Between two pieces there may be a gap.
    """
    power_S = np.concatenate([[0], np.cumsum(heard_S.astype(np.float64) ** 2)])
    level_S = np.sqrt(np.maximum(power_S[PIECE:] - power_S[:-PIECE], 1e-6))
    pieces = [said_S[at : at + PIECE] for at in range(0, len(said_S) - PIECE, PIECE)]
    pieces = [piece_S for piece_S in pieces if piece_S.std() > QUIET]
    gains: list[float] = []
    ends: list[int] = []  # the lowest end of a rising sequence of places, by its length
    for piece_S in pieces:
        norm = float(np.linalg.norm(piece_S))
        alike_S = signal.oaconvolve(heard_S, piece_S[::-1], "valid") / level_S / norm
        at = int(alike_S.argmax())
        if alike_S[at] > 0.95:
            gains.append(level_S[at] / norm)
            place = bisect_left(ends, at)
            ends[place : place + 1] = [at]
    return len(ends) / len(pieces), float(np.median(gains)) if gains else 0.0


def hold_call(one: Pulse, address: str, words: Path, files: Path) -> dict[str, Any]:
    """What the caller in Firefox reports, after the words were spoken to it."""
    caller = Path(__file__).with_name("firefox_caller.mjs")
    command = ["node", str(caller), os.environ[PUPPETEER], str(FIREFOX), address, str(files)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=one.environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as node:
        try:
            assert node.stdout is not None
            if node.stdout.readline() == "heard\n":
                one.say(words)
            report, problem = node.communicate("end the call\n", timeout=300)
        finally:
            node.terminate()  # It closes its browser.
    assert node.returncode == 0, problem[-2000:]
    return dict(json.loads(report))


def test_firefox_plays_the_agent_and_hears_the_user(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    model, files = tmp_path / "model", tmp_path / "files"
    shutil.copytree(folder, model)
    soften(model / "mimi.safetensors")
    files.mkdir()
    words = speak(tmp_path / "words.wav")
    with (
        pulse() as one,
        live_server(model, "--max-sessions", "1", "--not-realtime") as address,
        one.recorded(tmp_path / "played"),
    ):
        report = hold_call(one, address, words, files)
    assert report["problems"] == [] and report["phase"] == "The call is over"
    names = (".wav", "-transcript.json", "-settings.json")
    recording, transcript, settings = (next(files.glob(f"call-*{name}")) for name in names)
    codec = "Opus" if report["hasEncoder"] else "PCM16"
    assert report["figures"]["Sound on the wire"] == codec
    assert json.loads(settings.read_text())["codec"] == codec.lower()
    lines = [line["text"] for line in json.loads(transcript.read_text())["agent"]]
    assert report["captions"] == lines and "".join(lines)

    both_SC, rate = soundfile.read(recording, dtype="float32")
    agent_S, user_S = soxr.resample(both_SC, rate, RATE).T
    words_S = soxr.resample(*soundfile.read(words, dtype="float32"), RATE)
    played_S = np.fromfile(tmp_path / "played", "<f4")
    for said_S, heard_S in ((agent_S, played_S), (words_S, user_S)):
        share, gain = returned(said_S, heard_S)
        print(f"{share:.0%} returned with gain {gain:.4f}")
        # Gaps left 34 % of the words on a machine too busy for real time. Nothing returns of sound that was not played.
        assert share > 0.25 and gain == pytest.approx(1, abs=0.05)
        assert returned(said_S[::-1], heard_S)[0] < 0.05
