"""`ppx-chat --server`: a recording through a server that runs, with the outputs of a chat from file to file."""

# Shapes: S samples (mono, at 24 kHz)

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from model.config import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from ppx_train.inference.chat_files import read_input, write_outputs
from ppx_train.inference.chat_settings import NO_VOICE, ChatSettings
from ppx_train.inference.session import Audio
from ppx_train.inference.timeline import AgentWord
from ppx_train.serve.client import CallOptions, LiveCall, Received, connect

LEAD_FRAMES = 1
"""Silence before the user's sound: a server may cut the beginning of a call to fit its clock."""
WITHOUT_EFFECT = ("revision", "device", "precision", "past_window", "voice_prompt_dir")
"""Settings of a model that is loaded here."""


class FrameTexts:
    """The text of each frame: from the events of protocol 2, or else from where texts come between sounds."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._timed: dict[int, str] = {}
        self._states: dict[int, str] = {}

    def add(self, message: Received, samples: int) -> None:
        """Takes a message that comes after this number of samples."""
        event = message.event
        if message.kind == "text":
            frame = max(0, -(-samples // FRAME_SAMPLES) - 1)  # The text of a frame comes after its sound.
            self._texts[frame] = self._texts.get(frame, "") + message.text
        elif event.get("type") == "text":
            self._timed[round(event["at"] * FRAME_RATE)] = str(event["text"])
        elif event.get("type") == "state":
            self._states[round(event["at"] * FRAME_RATE)] = str(event["state"])

    def pieces(self, frames: int) -> list[str]:
        """The text of each frame, or what the text stream holds instead; "PAD" if the server does not tell."""
        texts, pieces, state = self._timed or self._texts, list[str](), "PAD"
        for frame in range(frames):
            state = self._states.get(frame, state)
            pieces.append(texts.get(frame, "" if state == "text" else state))
        return pieces


@dataclass(frozen=True, kw_only=True)
class AgentCall:
    """What came of a recording that was sent to a server.

    agent_S: the agent's samples, as many as the user's, or fewer if the server ended the call. pieces: the text of each
    frame, "PAD" for a frame without text, or EPAD, BOS, EOS from servers that tell. goodbye: why the server ended it.
    ready_seconds: from the request until the server was ready.
    """

    agent_S: Audio
    pieces: list[str]
    goodbye: str
    ready_seconds: float

    @property
    def seconds(self) -> float:
        """How long the agent's sound is."""
        return len(self.agent_S) / SAMPLE_RATE

    def words(self) -> list[AgentWord]:
        """Returns the words at the time of their first piece."""
        groups: list[tuple[int, str]] = []
        for frame, piece in enumerate(self.pieces):
            if piece in ("PAD", "EPAD", "BOS", "EOS"):
                continue
            if groups and not piece.startswith(" "):
                groups[-1] = (groups[-1][0], groups[-1][1] + piece)
            else:
                groups.append((frame, piece))
        return [AgentWord(text=text.strip(), seconds=at / FRAME_RATE) for at, text in groups if text.strip()]


async def talk(call: LiveCall, user_S: Audio, *, speed: float = 1.0, show_progress: bool = False) -> AgentCall:
    """Sends the user's samples in the time that they last, and then silence until the agent's are as many.

    speed: 2 sends twice as fast. This server follows up to 1.25 and drops what is more; one that has no clock of its
    own follows as fast as it computes.
    Raises: UserError if the call breaks off, or no sound comes for 10 s.
    """
    sender = asyncio.create_task(_send(call, user_S, speed))
    heard: list[Audio] = []
    transcript = FrameTexts()
    frames, samples = -(-len(user_S) // FRAME_SAMPLES), 0
    bar = tqdm(total=frames, desc="chat", unit="frame", disable=not show_progress, dynamic_ncols=True)
    try:
        async for message in call:
            if message.kind == "audio":
                if samples >= len(user_S):  # One more than needed: the text of a frame comes after its sound.
                    break
                heard.append(message.agent_S)
                samples += len(message.agent_S)
                bar.update(min(samples // FRAME_SAMPLES, frames) - bar.n)
            else:
                transcript.add(message, samples)
    finally:
        bar.close()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
    agent_S = np.concatenate([np.zeros(0, np.float32), *heard])[: len(user_S)]
    return AgentCall(
        agent_S=agent_S, pieces=transcript.pieces(frames), goodbye=call.goodbye, ready_seconds=call.ready_seconds
    )


async def _send(call: LiveCall, user_S: Audio, speed: float) -> None:
    started = time.monotonic()
    for number, frame_S in enumerate(_frames(user_S)):
        await asyncio.sleep(started + number / FRAME_RATE / speed - time.monotonic())
        await call.send(frame_S)


def _frames(user_S: Audio) -> Iterator[Audio]:
    """The frames to send, without end."""
    silence_S = np.zeros(FRAME_SAMPLES, np.float32)
    for _ in range(LEAD_FRAMES):
        yield silence_S
    padded_S = np.pad(user_S.astype(np.float32), (0, -len(user_S) % FRAME_SAMPLES))
    yield from padded_S.reshape(-1, FRAME_SAMPLES)
    while True:
        yield silence_S


def converse_with_server(settings: ChatSettings, *, show_progress: bool = False) -> AgentCall:
    """Streams the user's audio through the server, writes WAV, text and picture, and returns what came.

    Raises: UserError for an option without effect, an input that cannot be used, and whatever the server refuses.
    """
    assert settings.server is not None
    for name in WITHOUT_EFFECT:
        if getattr(settings, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} {getattr(settings, name)}: no effect with --server, which has its own model; leave it out",
                code="bad-combination",
            )
    sampling, user_S = read_input(settings)
    options = CallOptions(
        voice="" if settings.voice_prompt == NO_VOICE else settings.voice_prompt,
        role=settings.text_prompt,
        seed=None if settings.seed == -1 else settings.seed,
        sampling=sampling,
        token=settings.token,
    )

    async def call_and_talk(server: str) -> AgentCall:
        async with connect(server, options) as call:
            return await talk(call, user_S, show_progress=show_progress)

    found = asyncio.run(call_and_talk(settings.server))
    write_outputs(
        settings,
        user_S,
        found.agent_S,
        found.pieces,
        found.words(),
        voice=settings.voice_prompt or "of the server",
        name=settings.server,
    )
    return found
