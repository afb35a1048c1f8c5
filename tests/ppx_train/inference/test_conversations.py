"""Many conversations in one batch: each gets what it gets alone, however the others join, talk and leave."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import FRAME_SAMPLES, UNGENERATED_ID
from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from ppx_train.inference.conversations import PART_FRAMES, Conversations
from ppx_train.inference.loading import Release
from ppx_train.inference.offline import chat
from ppx_train.inference.session import AgentFrame, Audio, Session, SessionSettings, TextPieces
from tests.ppx_train.inference.noise import CONFIG, noise
from tests.refusals import refused

MOST = Sampling(text_top_k=25, audio_top_k=64)
SAMPLINGS = [
    Sampling(text_top_k=5, audio_top_k=64, audio_temperature=1.1),
    Sampling(greedy=True),
    MOST,
    Sampling(text_temperature=1.2, text_top_k=25, audio_top_k=3),
]


def settings(release: Release, number: int) -> SessionSettings:
    """Voice, role, seed and sampling of a caller; every fourth has neither voice nor role."""
    generator = torch.Generator().manual_seed(number % 3)  # three voices
    voice = torch.randint(64, (8, 5 + number % 3), generator=generator)
    role = ("You are Jane.", "You work for CitySan.", "")[number % 2 if number % 5 else 2]
    prompt = None if number % 4 == 3 else release.prompt(voice, role)
    return SessionSettings(
        prompt_KP=prompt, voice_frames=voice.shape[1], sampling=SAMPLINGS[number % 4], seed=100 + number
    )


def audio(number: int, frames: int) -> Audio:
    return noise(frames * 0.08, seed=number)[:, 0].astype(np.float32).reshape(frames, FRAME_SAMPLES)


def alone(release: Release, of: SessionSettings, heard: list[Audio], slots: int = 1) -> list[AgentFrame]:
    conversations = Conversations(release, slots, most=MOST, cache_bytes=0)
    session = conversations.join(of)
    conversations.prompt(session)
    return [conversations.step({session: frame})[session] for frame in heard]


def test_conversations_that_come_and_go_at_random_get_what_each_gets_alone(release: Release) -> None:
    lm = DuplexLM(replace(CONFIG, context=40)).eval().requires_grad_(False)
    lm.load_state_dict(release.lm.state_dict())
    release = replace(release, lm=lm)
    conversations, luck = Conversations(release, 8, most=MOST), random.Random(0)
    seated: dict[Session, tuple[int, list[Audio], list[AgentFrame]]] = {}
    over, number = [], 0
    for tick in range(90):
        if conversations.free and luck.random() < 0.3:
            seated[conversations.join(settings(release, number))] = (number, [], [])
            number += 1
        conversations.feed_prompts(luck.choice((0, 5, 40)))
        talking = [session for session in seated if session.is_ready and luck.random() < 0.8]
        frames: list[Audio] = list(audio(tick, len(talking))) if talking else []
        heard = dict(zip(talking, frames, strict=True))
        for session, frame in (conversations.step(heard) if heard else {}).items():
            seated[session][1].append(heard[session])
            seated[session][2].append(frame)
        for session in list(seated):
            if luck.random() < 0.03:
                conversations.leave(session)
                over.append(seated.pop(session))
    over += seated.values()
    assert number > 12 and conversations.prefixes.hits > 2
    assert max(len(made) for _, _, made in over) > release.lm.config.context
    for caller, heard_frames, made in over:
        for frame, expected in zip(made, alone(release, settings(release, caller), heard_frames), strict=True):
            assert frame.tokens == expected.tokens and frame.text == expected.text
            np.testing.assert_allclose(frame.agent_S, expected.agent_S, rtol=1e-3, atol=1e-3)


def test_live_equals_offline(release: Release) -> None:
    of, heard = settings(release, 0), audio(3, 12)
    offline = chat(release, heard.reshape(-1), prompt_KP=of.prompt_KP, sampling=MOST, seed=of.seed)
    live = alone(release, SessionSettings(prompt_KP=of.prompt_KP, sampling=MOST, seed=of.seed), list(heard), slots=3)
    assert offline.codes_AT.T.tolist() == [list(frame.tokens) for frame in live]
    np.testing.assert_allclose(offline.agent_S, np.concatenate([frame.agent_S for frame in live]), rtol=1e-3, atol=1e-3)


def test_prompts_are_fed_in_parts_and_begun_where_another_one_was(release: Release) -> None:
    conversations = Conversations(release, 3, most=MOST)
    first = conversations.join(settings(release, 0))
    length = first.settings.prompt_frames
    fed = []
    while not first.is_ready:
        fed.append(conversations.feed_prompts(4))
    assert sum(fed) == length and max(fed) <= 4 and conversations.feed_prompts() == 0
    again = conversations.join(settings(release, 0))
    assert again.prompted == length - 1
    other = conversations.join(settings(release, 6))  # the same voice with the same role, another seed
    assert other.prompted in (length - 1, other.settings.voice_frames)
    conversations.feed_prompts(1)
    assert [again.is_ready, other.is_ready].count(True) == 1
    assert PART_FRAMES == 64


def test_a_cache_of_prefixes_drops_the_oldest(release: Release) -> None:
    conversations = Conversations(release, 1, most=MOST)
    for number in (0, 1, 2):
        session = conversations.join(settings(release, number))
        conversations.prompt(session)
        conversations.leave(session)
    kept = len(conversations.prefixes)
    assert kept >= 4
    conversations.prefixes.most_bytes = 1
    session = conversations.join(settings(release, 4))
    conversations.prompt(session)
    assert len(conversations.prefixes) in (0, kept)  # nothing larger than the bound is taken


def test_what_cannot_be_is_refused_and_others_go_on(release: Release) -> None:
    conversations = Conversations(release, 1, most=MOST)
    with refused("bad-value", "text_top_k=26", "25"):
        conversations.join(SessionSettings(sampling=Sampling(text_top_k=26)))
    session = conversations.join(settings(release, 0))
    with refused("in-use", "1 slots"):
        conversations.join(settings(release, 1))
    (frame,) = audio(0, 1)
    with refused("bad-combination", "prompt"):
        conversations.step({session: frame})
    conversations.prompt(session)
    with refused("bad-audio", "1919"):
        conversations.step({session: frame[:-1]})
    assert conversations.step({session: frame})[session].number == 0
    conversations.leave(session)
    with refused("bad-combination", "ended"):
        conversations.step({session: frame})
    with refused("bad-value", "0 slots"):
        Conversations(release, 0)


def test_without_a_prompt_the_first_frame_is_silent(release: Release) -> None:
    frames = alone(release, SessionSettings(sampling=MOST, seed=1), list(audio(1, 3)))
    assert frames[0].tokens == (UNGENERATED_ID,) * 9 and not frames[0].agent_S.any() and frames[0].kind == "PAD"
    assert frames[1].agent_S.any() and [frame.seconds for frame in frames] == pytest.approx([0, 0.08, 0.16])


def test_text_appears_once_its_bytes_are_whole(release: Release) -> None:
    tokenizer = release.tokenizer
    ids = tokenizer.encode("waste \u20ac \u4f60 waste")
    assert any(tokenizer.byte(i) is not None for i in ids)
    pieces = TextPieces(tokenizer)
    parts = [pieces.add(i) for i in [3, *ids, 0, 3]]
    assert "".join(parts).strip() == "waste \u20ac \u4f60 waste" and parts.count("") >= 3 + 2 + 2
    broken = [i for i in ids if tokenizer.byte(i) is not None][:1]
    assert TextPieces(tokenizer).add(broken[0]) == ""
    pieces = TextPieces(tokenizer)
    pieces.add(broken[0])
    assert pieces.add(tokenizer.encode("waste")[0]).startswith("\ufffd")
