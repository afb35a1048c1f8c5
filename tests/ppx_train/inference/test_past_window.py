"""Calls that outlast the window: what becomes of their prompt."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from ppx_train.inference import refresh
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.loading import Release
from ppx_train.inference.session import Session, SessionSettings
from tests.ppx_train.inference.noise import CONFIG
from tests.ppx_train.inference.test_conversations import audio
from tests.refusals import refused

CONTEXT, PROMPT, AHEAD, FRAMES = 72, 10, 12, 100
MOST = Sampling(text_top_k=25, audio_top_k=64)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh begins a second before the prompt leaves, so that short windows do for it."""
    monkeypatch.setattr(refresh, "AHEAD_FRAMES", AHEAD)


@pytest.fixture(scope="module")
def long(release: Release) -> Release:
    torch.manual_seed(8)
    lm = DuplexLM(replace(CONFIG, context=CONTEXT)).eval().requires_grad_(False)
    return replace(release, lm=lm)


def prompt(frames: int = PROMPT) -> torch.Tensor:
    return torch.randint(64, (17, frames), generator=torch.Generator().manual_seed(2))


def talk(
    release: Release, past_window: Literal["forget", "pin", "refresh"], feeds: int = 7
) -> tuple[list[tuple[int, ...]], list[int], Any]:
    """Tokens of all frames of one call beside another, the frames after which it went on refreshed, and the slots."""
    conversations = Conversations(release, 2, most=MOST, past_window=past_window, cache_bytes=0)
    other = conversations.join(SessionSettings(prompt_KP=prompt(14), sampling=MOST, seed=3))
    session = conversations.join(SessionSettings(prompt_KP=prompt(), sampling=MOST, seed=4))
    for each in (other, session):
        conversations.prompt(each)
    said, refreshed, was = [], [], None
    for number, frame in enumerate(audio(1, FRAMES)):
        heard: dict[Session, Any] = {session: frame} | ({other: frame} if number % 3 else {})
        said.append(conversations.step(heard)[session].tokens)
        if was is not None and session.refresh is None:
            refreshed.append(number)
        was = session.refresh
        conversations.feed_prompts(feeds)
    return said, refreshed, conversations


def test_a_refreshed_call_goes_on_as_if_what_it_forgot_had_never_been(long: Release) -> None:
    said, refreshed, conversations = talk(long, "refresh")
    assert len(refreshed) >= 2
    begun = CONTEXT - AHEAD - PROMPT  # The frame after which the refresh begins, from 1.
    assert begun + AHEAD // 2 <= refreshed[0] + 1 <= begun + AHEAD
    codec, user = long.codec, torch.from_numpy(audio(1, FRAMES).reshape(1, 1, -1))
    codes_QT = codec.encode(user)[0]
    line = torch.cat([torch.tensor(said).T, codes_QT], dim=0)
    kept = (CONTEXT - PROMPT) // 2
    now = refreshed[0] + 1
    behind = torch.cat([prompt(), line[:, begun - kept : now]], dim=1)

    stream = DuplexStream(long.lm, MOST, by_row=True)
    first = stream.init_state(1, [4])
    stream.reset(first, [0], [4], [MOST])
    stream.prefill(first, prompt()[None])
    for n in range(now):
        assert tuple(stream.step(first, codes_QT[None, :, n])[0].tolist()) == said[n]
    second = stream.init_state(1, [4])
    stream.reset(second, [0], [4], [MOST])
    stream.prefill(second, behind[None], ends=False)
    second.agent_BA, second.user_BQ, second.generators = first.agent_BA, first.user_BQ, first.generators
    then = [tuple(stream.step(second, codes_QT[None, :, n])[0].tolist()) for n in range(now, refreshed[1] + 1)]
    assert then == said[now : refreshed[1] + 1]
    assert conversations.free == 0


def test_when_parts_are_fed_changes_nothing(long: Release) -> None:
    slow, fast = talk(long, "refresh", feeds=0), talk(long, "refresh", feeds=64)
    assert slow[:2] == fast[:2]


def test_prompts_are_forgotten_pinned_or_fed_anew(long: Release) -> None:
    lines = {kind: talk(long, kind)[0] for kind in ("forget", "pin", "refresh")}
    inside = CONTEXT - PROMPT
    assert lines["forget"][:inside] == lines["pin"][:inside]
    assert lines["forget"][inside:] != lines["pin"][inside:]
    assert lines["refresh"][-20:] not in (lines["pin"][-20:], lines["forget"][-20:])


def test_a_prompt_that_cannot_be_kept_is_refused(long: Release) -> None:
    for kind, frames in (("pin", 37), ("refresh", 24)):
        conversations = Conversations(long, 1, most=MOST, past_window=kind)  # type: ignore[arg-type]
        conversations.join(SessionSettings(prompt_KP=prompt(frames - 1), sampling=MOST))
        with refused("bad-combination", f"{frames} frames", "72"):
            conversations.join(SessionSettings(prompt_KP=prompt(frames), sampling=MOST))
    Conversations(long, 1, most=MOST).join(SessionSettings(prompt_KP=prompt(71), sampling=MOST))
