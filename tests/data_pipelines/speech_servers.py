"""Speech servers for tests: packages that stand for Chatterbox and Dia, served by scripts/tts_server.py for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from data_pipelines.speech.engines import EngineChoice, open_engine
from tests.paths import ROOT

FAKES = Path(__file__).parent / "fake_engines"
SPEAKERS = {"anna": ("female", "en-us+f1"), "bob": ("male", "en-us+m1"), "cleo": ("female", "en-us+f2"),
            "dan": ("male", "en-us+m2")}  # fmt: skip


@pytest.fixture(scope="session")
def fakes(tmp_path_factory):
    """A folder for PYTHONPATH with both packages and what pip would say of them."""
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
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    espeak = open_engine("espeak")
    entries = []
    for name, (sex, voice) in SPEAKERS.items():
        said = espeak.speak(
            "This is a clip of my voice, and it lasts for four seconds or so, I think.", f"espeak/{voice}", seed=0
        )  # noqa: E501
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
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert " at http://" in line, self.process.communicate()
        self.url = line.split(" at ")[1].strip()

    def stop(self) -> tuple[str, str]:
        self.process.kill()
        return self.process.communicate()


@pytest.fixture(scope="session")
def chatterbox_server(fakes, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "asked"
    running = Server(fakes, "chatterbox", "--model", str(fakes / "weights"), log=log)
    running.log = log
    yield running
    running.stop()


@pytest.fixture(scope="session")
def dia_server(fakes):
    running = Server(fakes, "dia")
    yield running
    running.stop()


@pytest.fixture
def here(fakes, monkeypatch):
    """Makes the packages importable in this process."""
    monkeypatch.syspath_prepend(str(fakes))
    for name in ("chatterbox", "chatterbox.tts", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("chatterbox", "chatterbox.tts", "transformers"):
        sys.modules.pop(name, None)


def choice_of(kind: str, request, store: Path) -> EngineChoice:
    if kind in ("espeak", "kokoro"):
        return EngineChoice(name=kind)
    name, _, way = kind.partition("-")
    voices = request.getfixturevalue("manifest") if name == "chatterbox" else None
    if way == "http":
        return EngineChoice(name=name, url=request.getfixturevalue(f"{name}_server").url, voices=voices, store=store)
    request.getfixturevalue("here")
    model = str(request.getfixturevalue("fakes") / "weights") if name == "chatterbox" else None
    return EngineChoice(name=name, model=model, voices=voices, store=store)


FIXTURES = (fakes, manifest, chatterbox_server, dia_server, here)
