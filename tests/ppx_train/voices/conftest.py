"""Clips that espeak-ng speaks, and a codec of random weights."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.sound.audio import RATE_HZ, Audio, to_mono_24k
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi
from tests.ppx_train.fixtures import make_codec

SENTENCES = "The waste is picked up every other week on Tuesdays. Please put the bins out before seven in the morning."
BEFORE = "My name is Anna and I work for the harbour clinic. What can I do for you today? We open at nine."


@pytest.fixture(scope="session")
def spoken() -> dict[str, Audio]:
    """A man and a woman at 24 kHz, [samples] of some 5 to 6 s each."""
    pytest.importorskip("espeakng_loader", reason="a speech engine: pip install 'ppx-train[tts]'")
    pytest.importorskip("webrtcvad", reason="pip install 'ppx-train[speaker]'")
    from data_pipelines.speech.tts.espeak import EspeakEngine

    engine = EspeakEngine()
    said = {}
    for name, voice in (("man", "espeak/en-us+m3"), ("woman", "espeak/en-us+f2")):
        speech = engine.speak(BEFORE if name == "man" else SENTENCES, voice, seed=0)
        said[name] = to_mono_24k(speech.audio, speech.rate)
    return said


@pytest.fixture
def clip(spoken: dict[str, Audio], tmp_path: Path) -> Path:
    """The man's clip as a file."""
    return write(tmp_path / "anna.wav", spoken["man"])


@pytest.fixture(scope="session")
def codec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_codec(tmp_path_factory.mktemp("codec") / "mimi.safetensors")


@pytest.fixture(scope="session")
def codec(codec_file: Path) -> Mimi:
    return load_mimi(codec_file)


def write(path: Path, audio: Audio) -> Path:
    soundfile.write(path, np.clip(audio, -1, 1), RATE_HZ, "PCM_16")
    return path
