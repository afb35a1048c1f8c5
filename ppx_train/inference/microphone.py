"""The user at this machine: microphone in, loudspeaker out, through PortAudio."""

# Shapes: S samples (at 24 kHz)

import signal
from types import FrameType, TracebackType
from typing import Any, NoReturn

import numpy as np

from model.config import FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from model.extras import require
from ppx_train.inference.session import Audio
from ppx_train.inference.user_side import SILENCE_S, SaidTurn


class Microphone:
    """A user who speaks into the microphone until Ctrl-C, and hears the agent.

    The frame that the agent hears is the newest; one that the model is too slow for is lost and counted in `missed`.
    Raises: UserError if sounddevice, PortAudio, a microphone or a loudspeaker is missing.
    """

    length = None

    def __init__(self) -> None:
        self.said: list[SaidTurn] = []
        self.missed = 0
        """How often the microphone's buffer ran over."""
        self._over = False
        try:
            self._sound: Any = require("sounddevice", extra="mic")
        except OSError as why:  # The package is there, but on Linux the library is not part of it.
            raise UserError(
                f"sounddevice finds no library ({why}): install libportaudio2, or give --input-wav, --say or --script",
                code="missing-package",
            ) from why
        try:
            self._stream = self._sound.Stream(
                samplerate=SAMPLE_RATE, blocksize=FRAME_SAMPLES, channels=1, dtype="float32"
            )
        except (self._sound.PortAudioError, ValueError) as why:
            _no_device(why)

    def __enter__(self) -> "Microphone":
        """Begins to record; from now on the first Ctrl-C ends the conversation, a second one the program."""
        try:
            self._stream.start()
        except self._sound.PortAudioError as why:
            _no_device(why)
        self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the recording."""
        signal.signal(signal.SIGINT, self._before)
        self.close()

    def close(self) -> None:
        """Lets the devices go."""
        self._stream.close()

    def next(self, agent_S: Audio | None) -> Audio | None:
        """Plays the agent's frame and returns the user's next one; see UserSide."""
        if self._over:
            return None
        try:
            self._stream.write((SILENCE_S if agent_S is None else np.clip(agent_S, -1.0, 1.0))[:, None])
            heard_S1, is_late = self._stream.read(FRAME_SAMPLES)
        except self._sound.PortAudioError as why:
            _no_device(why)
        self.missed += bool(is_late)
        return np.ascontiguousarray(heard_S1[:, 0], np.float32)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._over = True
        signal.signal(signal.SIGINT, self._before)


def _no_device(why: Exception) -> NoReturn:
    raise UserError(
        f"no microphone and loudspeaker for mono at {SAMPLE_RATE} Hz ({why}): connect them, or give --input-wav, "
        "--say or --script",
        code="no-device",
    ) from why
