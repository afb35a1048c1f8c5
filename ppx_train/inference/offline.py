"""A conversation with recorded audio: the user's samples in, the agent's out, frame by frame as in a live call."""

# Shapes: A agent streams, K streams, P prompt frames, S samples, T frames

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import FRAME_RATE, FRAME_SAMPLES, UNGENERATED_ID
from model.errors import UserError
from model.streaming.sample import Sampling
from model.text import SPECIAL_NAMES, TextTokenizer
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.loading import Release
from ppx_train.inference.session import Audio, SessionSettings
from ppx_train.inference.timeline import AgentWord


@dataclass(kw_only=True)
class AgentSide:
    """The agent's side of a conversation.

    Shapes: agent_S mono samples at 24 kHz, as long as the user's audio; codes_AT the agent's tokens [9, T], text first.
    Frame 0 of a conversation without a prompt is UNGENERATED_ID.
    Units: prompt_seconds and step_seconds are seconds of computing, for the prompt and for all frames.
    """

    agent_S: Audio
    codes_AT: Tensor
    prompt_seconds: float
    step_seconds: float

    @property
    def text_ids(self) -> list[int]:
        """The text token of each frame."""
        return self.codes_AT[0].tolist()

    @property
    def real_time_factor(self) -> float:
        """Time of computing over time of speech: below 1 is faster than real time."""
        return self.step_seconds / (self.codes_AT.shape[1] / FRAME_RATE)

    @property
    def clipped_share(self) -> float:
        """Share of the samples beyond full scale, which a WAV file cuts off."""
        return float(np.mean(np.abs(self.agent_S) > 1.0))

    def pieces(self, tokenizer: TextTokenizer) -> list[str]:
        """Returns one entry a frame: a piece of text with a space for the word mark, or EPAD, BOS, EOS, PAD."""
        return [tokenizer.piece(i) if i != UNGENERATED_ID else "PAD" for i in self.text_ids]

    def words(self, tokenizer: TextTokenizer) -> list[AgentWord]:
        """Returns the words at the time of their first piece."""
        groups: list[tuple[int, list[int]]] = []
        for frame, i in enumerate(self.text_ids):
            if i < len(SPECIAL_NAMES):
                continue
            if not groups or tokenizer.piece(i).startswith(" "):
                groups.append((frame, []))
            groups[-1][1].append(i)
        words = [AgentWord(text=tokenizer.decode(ids), seconds=frame / FRAME_RATE) for frame, ids in groups]
        return [word for word in words if word.text]


def chat(
    release: Release,
    user_S: Audio,
    *,
    prompt_KP: Tensor | None = None,
    sampling: Sampling,
    seed: int | None = None,
    show_progress: bool = False,
) -> AgentSide:
    """Streams the user's audio (mono 24 kHz) through the model and returns the agent's side.

    The codec state is fresh: the prompt's audio does not leak into the user's. A last partial frame is filled with
    zeros and the output cut to the input's length.
    Raises: UserError for empty audio.
    """
    num_frames = -(-len(user_S) // FRAME_SAMPLES)
    if not num_frames:
        raise UserError("the user's audio is empty: give a recording", code="bad-audio")
    padded_S = np.pad(user_S.astype(np.float32), (0, num_frames * FRAME_SAMPLES - len(user_S)))
    conversations = Conversations(release, 1, most=most_of(sampling))
    session = conversations.join(SessionSettings(prompt_KP=prompt_KP, sampling=sampling, seed=seed))
    started = time.perf_counter()
    conversations.prompt(session)
    prompted = time.perf_counter()
    user_TS = padded_S.reshape(num_frames, FRAME_SAMPLES)
    bar = tqdm(user_TS, desc="chat", unit="frame", disable=not show_progress, dynamic_ncols=True)
    frames = [conversations.step({session: frame_S})[session] for frame_S in bar]
    return AgentSide(
        agent_S=np.concatenate([frame.agent_S for frame in frames])[: len(user_S)],
        codes_AT=torch.tensor([frame.tokens for frame in frames]).T,
        prompt_seconds=prompted - started,
        step_seconds=time.perf_counter() - prompted,
    )


def most_of(sampling: Sampling) -> Sampling:
    """The bounds of a stream for conversations with one sampling."""
    return Sampling() if sampling.greedy else sampling
