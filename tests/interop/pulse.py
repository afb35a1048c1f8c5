"""A PulseAudio daemon of a test's own: its speaker and its microphone are null sinks, which only programs hear.

apt-get install pulseaudio pulseaudio-utils
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("pulseaudio", "pactl", "paplay", "parec")
NEEDS_PULSE = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="no PulseAudio: apt-get install pulseaudio pulseaudio-utils"
)
RATE = 48000


class Pulse:
    """A running daemon. environment: what makes a program use it, and its speaker and microphone by default."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def control(self, *words: str) -> bool:
        """Whether `pactl` could do it."""
        command = ["pactl", *words]
        return not subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode

    def say(self, path: Path) -> None:
        """Plays a WAV file into the microphone, to its end."""
        subprocess.run(["paplay", "--device=words", str(path)], env=self.environment, check=True, timeout=120)

    @contextmanager
    def recorded(self, path: Path) -> Iterator[None]:
        """Writes what the speaker plays meanwhile to a file: float32, mono, RATE, without a header."""
        command = ["parec", "--device=speaker.monitor", "--raw", "--format=float32le", "--channels=1", f"--rate={RATE}"]
        with path.open("wb") as file:
            recorder = subprocess.Popen(command, env=self.environment, stdout=file)
            try:
                yield
            finally:
                recorder.terminate()
                recorder.wait(10)


@contextmanager
def pulse() -> Iterator[Pulse]:
    """Starts the daemon, with a folder of its own in the place of the user's, and ends it."""
    with tempfile.TemporaryDirectory(prefix="ppx-") as folder:  # short: a socket's path has at most 107 bytes
        folders = ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "PULSE_RUNTIME_PATH", "PULSE_STATE_PATH")
        environment = {**os.environ, **dict.fromkeys(folders, folder), "PULSE_SERVER": f"unix:{folder}/socket"}
        modules = [f"module-native-protocol-unix socket={folder}/socket auth-anonymous=1"]
        modules += [f"module-null-sink sink_name={name} rate={RATE}" for name in ("speaker", "words")]
        modules += ["module-remap-source source_name=microphone master=words.monitor"]
        command = ["pulseaudio", "-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1"]
        command += ["--disable-shm=yes", "--log-target=stderr", *(f"--load={module}" for module in modules)]
        log = Path(folder, "log")
        with log.open("wb") as file:
            daemon = subprocess.Popen(command, env=environment, stderr=file)
        try:
            one = Pulse(environment)
            ends = time.monotonic() + 30
            while not one.control("info"):
                assert daemon.poll() is None and time.monotonic() < ends, log.read_text()
                time.sleep(0.1)
            assert one.control("set-default-sink", "speaker") and one.control("set-default-source", "microphone")
            yield one
        finally:
            daemon.terminate()
            daemon.wait(10)
