"""Conversations without a clock: the user's samples in, the agent's out, frame by frame as in a live call."""

# Shapes: A agent streams, K streams, P prompt frames, S samples, T frames

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import FRAME_RATE, SAMPLE_RATE, UNGENERATED_ID
from model.errors import UserError
from model.streaming.sample import Sampling
from model.text import SPECIAL_NAMES, TextTokenizer
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.loading import Release
from ppx_train.inference.model_options import PastWindow
from ppx_train.inference.session import AgentFrame, Audio, Session, SessionSettings
from ppx_train.inference.timeline import AgentWord
from ppx_train.inference.user_side import RecordedUser, UserSide


@dataclass(kw_only=True)
class AgentSide:
    """The agent's side of a conversation, and what the agent heard.

    Shapes: agent_S and user_S mono samples at 24 kHz, equally long; codes_AT the agent's tokens [9, T], text first.
    Frame 0 of a conversation without a prompt is UNGENERATED_ID.
    Units: prompt_seconds and step_seconds are seconds of computing, for the prompt and for all frames.
    """

    agent_S: Audio
    user_S: Audio
    codes_AT: Tensor
    prompt_seconds: float
    step_seconds: float

    @property
    def seconds(self) -> float:
        """How long the conversation is."""
        return len(self.agent_S) / SAMPLE_RATE

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


@dataclass(frozen=True, kw_only=True)
class PlannedChat:
    """A conversation that is to be held: what the agent is, and who speaks to it."""

    settings: SessionSettings
    user: UserSide


class _Ongoing:
    """One conversation of the batch while it goes on."""

    def __init__(self, number: int, user: UserSide) -> None:
        self.number, self.user = number, user
        self.user_frames: list[Audio] = []
        self.agent_frames: list[AgentFrame] = []
        self.prompt_seconds = 0.0
        self.started = time.perf_counter()

    def listen(self) -> Audio | None:
        """The user's next frame; None at the end."""
        frame_S = self.user.next(self.agent_frames[-1].agent_S if self.agent_frames else None)
        if frame_S is not None:
            self.user_frames.append(frame_S)
        return frame_S

    def result(self) -> "AgentSide":
        """What came of it."""
        if not self.agent_frames:
            raise UserError("the conversation ended before its first frame: let the user say something", code="no-data")
        return AgentSide(
            agent_S=np.concatenate([frame.agent_S for frame in self.agent_frames]),
            user_S=np.concatenate(self.user_frames),
            codes_AT=torch.tensor([frame.tokens for frame in self.agent_frames]).T,
            prompt_seconds=self.prompt_seconds,
            step_seconds=time.perf_counter() - self.started,
        )


def chats(
    release: Release,
    planned: Sequence[PlannedChat],
    *,
    slots: int,
    sampling: Sampling,
    past_window: PastWindow = "forget",
    show_progress: bool = False,
) -> Iterator[tuple[int, AgentSide]]:
    """Holds conversations in one batch, and yields the number and the result of each as it ends.

    Each gets, token for token, what it gets alone (on a GPU, alone in a batch of as many slots). slots: conversations
    at a time; the next one begins when one ends. sampling: bounds of all. past_window: what becomes of prompts in
    conversations that outlast the window. step_seconds are those of the whole batch.
    Raises: UserError for sampling beyond the bounds, or a prompt that cannot be kept in sight.
    """
    conversations = Conversations(release, slots, most=most_of(sampling), past_window=past_window)
    waiting = list(enumerate(planned))
    seated: dict[Session, _Ongoing] = {}
    lengths = [chat.user.length for chat in planned]
    total = None if None in lengths else sum(length for length in lengths if length is not None)
    name = "chat" if len(planned) == 1 else f"{len(planned)} chats"
    with tqdm(total=total, desc=name, unit="frame", disable=not show_progress, dynamic_ncols=True) as bar:
        while waiting or seated:
            while waiting and conversations.free:
                number, chat = waiting.pop(0)
                began, session = time.perf_counter(), conversations.join(chat.settings)
                conversations.prompt(session)
                seated[session] = _Ongoing(number, chat.user)
                seated[session].prompt_seconds = time.perf_counter() - began
            heard: dict[Session, Audio] = {}
            for session, ongoing in list(seated.items()):
                frame_S = ongoing.listen()
                if frame_S is not None:
                    heard[session] = frame_S
                    continue
                conversations.leave(session)
                del seated[session]
                yield ongoing.number, ongoing.result()
            for session, frame in (conversations.step(heard) if heard else {}).items():
                seated[session].agent_frames.append(frame)
            bar.update(len(heard))


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
    settings = SessionSettings(prompt_KP=prompt_KP, sampling=sampling, seed=seed)
    planned = PlannedChat(settings=settings, user=RecordedUser(user_S))
    ((_, agent),) = chats(release, [planned], slots=1, sampling=sampling, show_progress=show_progress)
    return replace(agent, agent_S=agent.agent_S[: len(user_S)], user_S=agent.user_S[: len(user_S)])


def most_of(sampling: Sampling) -> Sampling:
    """The bounds of a stream for conversations with one sampling."""
    return Sampling() if sampling.greedy else sampling
