"""The microphone, with a stand-in for PortAudio: this machine may have neither."""

import os
import signal
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ppx_train.inference.loading import Release
from ppx_train.inference.microphone import Microphone
from ppx_train.inference.offline import PlannedChat, chats
from ppx_train.inference.session import SessionSettings
from tests.ppx_train.inference.noise import noise
from tests.ppx_train.inference.test_chat_grid import SAMPLING
from tests.refusals import refused


class FakeSound(ModuleType):
    """sounddevice with one device, whose user presses Ctrl-C after `most` frames."""

    class PortAudioError(Exception):
        pass

    def __init__(self, most: int = 4, fault: str = "") -> None:
        super().__init__("sounddevice")
        self.most, self.fault = most, fault
        self.played: list[np.ndarray] = []
        self.opened: dict[str, Any] = {}
        self.is_open = True

    def Stream(self, **options: Any) -> "FakeSound":
        if self.fault == "open":
            raise self.PortAudioError("Error querying device -1")
        self.opened = options
        return self

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.is_open = False

    def write(self, audio: np.ndarray) -> bool:
        self.played.append(audio)
        return False

    def read(self, count: int) -> tuple[np.ndarray, bool]:
        if self.fault == "unplugged":
            raise self.PortAudioError("Stream is stopped")
        if len(self.played) == self.most:
            os.kill(os.getpid(), signal.SIGINT)
        return noise(count / 24000, seed=len(self.played)), len(self.played) == 2


def test_a_conversation_at_the_microphone_ends_with_ctrl_c(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = FakeSound()
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    before = signal.getsignal(signal.SIGINT)
    settings = SessionSettings(sampling=SAMPLING, seed=1)
    with Microphone() as user:
        ((_, agent),) = chats(release, [PlannedChat(settings=settings, user=user)], slots=1, sampling=SAMPLING)
    assert signal.getsignal(signal.SIGINT) is before and not sound.is_open
    assert sound.opened == {"samplerate": 24000, "blocksize": 1920, "channels": 1, "dtype": "float32"}
    assert agent.codes_AT.shape == (9, 4) and user.missed == 1
    heard = np.concatenate([noise(0.08, seed=n)[:, 0] for n in range(1, 5)])
    np.testing.assert_array_equal(agent.user_S, heard)
    played = np.concatenate(sound.played)[:, 0]  # The agent is heard one frame later.
    np.testing.assert_array_equal(played, np.concatenate([np.zeros(1920), agent.agent_S[:-1920].clip(-1, 1)]))


def test_a_missing_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(fault="open"))
    with refused("no-device", "Error querying device -1", "--input-wav"):
        Microphone()
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(fault="unplugged"))
    before = signal.getsignal(signal.SIGINT)
    with refused("no-device", "Stream is stopped"), Microphone() as user:
        user.next(None)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_missing_package_or_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with refused("missing-package", "sounddevice", "pip install 'ppx-train[mic]'"):
        Microphone()

    def broken(module: str, *, extra: str) -> ModuleType:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("ppx_train.inference.microphone.require", broken)
    with refused("missing-package", "PortAudio library not found", "libportaudio2"):
        Microphone()
