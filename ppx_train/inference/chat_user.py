"""The user that `ppx-chat` is asked for, read or spoken once, for any number of conversations."""

# Shapes: S samples (at 24 kHz)

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.sound.audio import read_audio, to_mono_24k
from model.config import SAMPLE_RATE
from ppx_train.inference.chat_settings import ChatSettings
from ppx_train.inference.script import ScriptLine, read_script, speak_script
from ppx_train.inference.session import Audio
from ppx_train.inference.user_side import RecordedUser, ScriptedUser, UserSide, UserTurn


@dataclass(frozen=True, kw_only=True)
class ChatUser:
    """A recording, or turns and the seconds after the last one."""

    audio_S: Audio = field(default_factory=lambda: np.zeros(0, np.float32))
    turns: Sequence[UserTurn] = ()
    tail: float = 0.0

    def side(self) -> UserSide:
        """A user at the beginning of a conversation."""
        return ScriptedUser(self.turns, self.tail) if self.turns else RecordedUser(self.audio_S)

    @property
    def digest(self) -> str:
        """What tells apart two users: sound, order and times."""
        found = hashlib.sha256(f"{self.tail} {len(self.audio_S)}".encode() + self.audio_S.tobytes())
        for turn in self.turns:
            found.update(f"\n{turn.when} {turn.seconds} {len(turn.audio_S)} {turn.text}\n".encode())
            found.update(turn.audio_S.tobytes())
        return found.hexdigest()


def read_user(settings: ChatSettings) -> ChatUser:
    """Reads the recording or speaks the turns that are asked for.

    Raises: UserError for a file that cannot be read, a text that cannot be said, or a voice or engine that is missing.
    """
    if settings.input_wav is not None:
        user_S = to_mono_24k(*read_audio(settings.input_wav))
        return ChatUser(audio_S=np.pad(user_S, (0, round(settings.tail_seconds * SAMPLE_RATE))))
    lines = (
        [ScriptLine(text=text) for text in settings.say] if settings.script is None else read_script(settings.script)
    )
    return ChatUser(turns=speak_script(lines, settings.user_voice), tail=settings.tail_seconds)
