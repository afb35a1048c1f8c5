"""One conversation of a folder: its WAV with both sides, and its JSON with words, times and faults."""

# Shapes: C channels, S samples (at 24 kHz)

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from data_pipelines.files import write_json
from data_pipelines.records.typed import record
from data_pipelines.sound.audio import read_audio
from model.config import SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file
from ppx_train.inference.session import Audio
from ppx_train.inference.timeline import AgentWord
from ppx_train.inference.user_side import SaidTurn
from ppx_train.inference.verdicts import Judgement


@dataclass(frozen=True, kw_only=True)
class ChatRecord:
    """What a chat's JSON holds. user: turns whose text is known. pieces: the text stream, one entry a frame."""

    number: int
    role: str
    voice: str
    seed: int
    seconds: float
    user: tuple[SaidTurn, ...]
    words: tuple[AgentWord, ...]
    pieces: tuple[str, ...]
    judgement: Judgement


def names_of(number: int) -> tuple[str, str]:
    """The names of a chat's WAV and JSON."""
    return f"chat-{number:03d}.wav", f"chat-{number:03d}.json"


def write_chat(out: Path, chat: ChatRecord, agent_S: Audio, user_S: Audio) -> None:
    """Writes a chat: left the agent, right the user, as in the data. Each file appears whole, the JSON last."""
    wav, text = names_of(chat.number)
    both_CS = np.clip(np.stack([agent_S, user_S]), -1.0, 1.0)
    with whole_file(out / wav) as path:
        soundfile.write(path, both_CS.T, SAMPLE_RATE, "PCM_16", format="WAV")
    write_json(out / text, asdict(chat))


def read_chat(out: Path, number: int) -> ChatRecord | None:
    """Reads a chat's JSON; None if it was not finished. Raises: UserError if it is damaged."""
    path = out / names_of(number)[1]
    if not path.is_file():
        return None
    try:
        chat = record(ChatRecord, path.read_bytes())
    except ValueError as why:
        raise UserError(f"{path}: {why}; remove it, and run the same command again", code="bad-record") from why
    if chat.number != number:
        raise UserError(f"{path} is of chat {chat.number}: remove it, and run the same command again", "bad-record")
    return chat


def read_sound(out: Path, number: int) -> Audio:
    """Reads a chat's WAV, [2, samples] at 24 kHz: agent and user. Raises: UserError if it is damaged or missing."""
    path = out / names_of(number)[0]
    both_CS, rate = read_audio(path)
    if both_CS.shape[0] != 2 or rate != SAMPLE_RATE:
        raise UserError(f"{path}: no stereo at {SAMPLE_RATE} Hz: remove its JSON, and run it again", code="bad-audio")
    return both_CS
