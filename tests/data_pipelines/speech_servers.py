"""Speech servers for tests: packages that stand for Chatterbox and Dia, served by scripts/tts_server.py for real."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.speech.engines import EngineChoice, open_engine
from data_pipelines.speech.protocols import Speech
from tests.paths import ROOT

FAKES = Path(__file__).parent / "fake_engines"
SPEAKERS = {"anna": ("female", "en-us+f1"), "bob": ("male", "en-us+m1"), "cleo": ("female", "en-us+f2"),
            "dan": ("male", "en-us+m2")}  # fmt: skip
LINES = [
    ("agent", "Hello, this is CitySan Services. How can I help you?"),
    ("user", "Hi there. What does the compost bin cost?"),
    ("agent", "It costs $8/month, and pickup is on Monday."),
    ("user", "Alright, thanks."),
]


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with both packages and their metadata, as pip would install them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "chatterbox").symlink_to(FAKES / "chatterbox")
    (folder / "transformers.py").symlink_to(FAKES / "dia" / "transformers.py")
    for name, version in (("chatterbox_tts", "0.1.7"), ("transformers", "5.23.0")):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    weights = folder / "weights"
    weights.mkdir()
    (weights / "t3_cfg.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one clip of each of SPEAKERS; cleo and dan are held out."""
    folder = tmp_path_factory.mktemp("voices")
    espeak = open_engine("espeak")
    entries = []
    for name, (sex, voice) in SPEAKERS.items():
        text = "This is a clip of my voice, and it lasts for four seconds or so, I think."
        said = espeak.speak(text, f"espeak/{voice}", seed=0)
        soundfile.write(folder / f"{name}.wav", said.audio, said.rate, subtype="PCM_16")
        entries.append({"path": f"{name}.wav", "speaker": name, "sex": sex, "accent": "us", "licence": "CC0-1.0",
                        "consent": "made by a machine", "held_out": name in ("cleo", "dan")})  # fmt: skip
    (folder / "voices.yaml").write_text(json.dumps({"voices": entries}))  # JSON is YAML
    return folder / "voices.yaml"


class Server:
    """scripts/tts_server.py in a process of its own."""

    def __init__(self, fakes: Path, *arguments: str, log: Path | None = None, key: str = "") -> None:
        env = os.environ | {"PYTHONPATH": f"{fakes}{os.pathsep}{ROOT}", "FAKE_LOG": str(log or ""), "PPX_TTS_KEY": key}
        command = [sys.executable, str(ROOT / "scripts" / "tts_server.py"), *arguments, "--port", "0"]
        self.log = log
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert " at http://" in line, self.process.communicate()
        self.url = line.split(" at ")[1].strip()

    def requests(self) -> int:
        """How many texts the engine was asked for, by its log."""
        return len(self.log.read_text().splitlines()) if self.log and self.log.is_file() else 0

    def stop(self) -> tuple[str, str]:
        self.process.kill()
        return self.process.communicate()


@pytest.fixture(scope="session")
def chatterbox_server(fakes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "asked"
    running = Server(fakes, "chatterbox", "--engine-model", str(fakes / "weights"), log=log)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def dia_server(fakes: Path) -> Iterator[Server]:
    running = Server(fakes, "dia")
    yield running
    running.stop()


@pytest.fixture
def here(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the packages importable in this process."""
    monkeypatch.syspath_prepend(str(fakes))
    for name in ("chatterbox", "chatterbox.tts", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("chatterbox", "chatterbox.tts", "transformers"):
        sys.modules.pop(name, None)


def choice_of(kind: str, request: pytest.FixtureRequest, store: Path) -> EngineChoice:
    if kind in ("espeak", "kokoro"):
        return EngineChoice(name=kind)
    name, _, way = kind.partition("-")
    voices = request.getfixturevalue("manifest") if name == "chatterbox" else None
    if way == "http":
        return EngineChoice(name=name, url=request.getfixturevalue(f"{name}_server").url, voices=voices, store=store)
    request.getfixturevalue("here")
    model = str(request.getfixturevalue("fakes") / "weights") if name == "chatterbox" else None
    return EngineChoice(name=name, model=model, voices=voices, store=store)


def check_speech(speech: Speech, written: list[str]) -> None:
    """Asserts what every engine owes: mono sound of a sane level, and all written words in order within it."""
    assert speech.audio.dtype == np.float32 and speech.audio.ndim == 1
    assert 0.05 < np.abs(speech.audio).max() <= 1 and np.isfinite(speech.audio).all()
    assert [text for text, _, _ in speech.words] == written
    last = -1.0
    for _, start, end in speech.words:
        assert last < start < end <= speech.seconds + 0.03
        last = start


FIXTURES = (fakes, manifest, chatterbox_server, dia_server, here)
