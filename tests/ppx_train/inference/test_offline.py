"""A conversation with recorded audio, on a model of a few thousand random weights."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from model.config import FRAME_SAMPLES, UNGENERATED_ID
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from ppx_train.inference.loading import Release
from ppx_train.inference.offline import AgentSide, chat
from ppx_train.inference.timeline import AgentWord
from tests.ppx_train.inference.noise import noise

GREEDY = Sampling(greedy=True)


def test_a_conversation_is_codec_and_stream_frame_by_frame(release: Release) -> None:
    user = noise(2.0)[:, 0]
    prompt = release.prompt(torch.randint(64, (8, 20)), "You are Jane.")
    assert prompt is not None
    conversation = chat(release, user, prompt_KP=prompt, sampling=GREEDY)

    stream = DuplexStream(release.lm, GREEDY)
    state = stream.init_state(1)
    stream.prefill(state, prompt[None])
    user_codes = release.codec.encode(torch.from_numpy(user)[None, None])
    agent = torch.stack([stream.step(state, user_BQ) for user_BQ in user_codes.unbind(2)], dim=2)
    assert torch.equal(conversation.codes_AT, agent[0])
    wave = release.codec.decode(agent[:, 1:])[0, 0, : len(user)]
    np.testing.assert_allclose(conversation.agent_S, wave.numpy(), rtol=1e-4, atol=1e-3)


def test_the_answer_is_as_long_as_the_question_and_a_part_of_a_frame_counts(release: Release) -> None:
    for samples in (1, FRAME_SAMPLES, FRAME_SAMPLES * 3 + 777):
        conversation = chat(release, noise(1.0)[:samples, 0], sampling=GREEDY)
        assert len(conversation.agent_S) == samples
        assert conversation.codes_AT.shape == (9, -(-samples // FRAME_SAMPLES))


def test_without_a_prompt_the_first_frame_is_silence_and_pad(release: Release) -> None:
    conversation = chat(release, noise(1.0)[:, 0], sampling=GREEDY)
    assert conversation.text_ids[0] == UNGENERATED_ID and UNGENERATED_ID not in conversation.text_ids[1:]
    assert not conversation.agent_S[:FRAME_SAMPLES].any() and conversation.agent_S[FRAME_SAMPLES:].any()
    assert conversation.pieces(release.tokenizer)[0] == "PAD"


def test_a_seed_repeats_a_conversation(release: Release) -> None:
    first, again, other = (chat(release, noise(1.0)[:, 0], sampling=Sampling(), seed=n) for n in (1, 1, 2))
    assert torch.equal(first.codes_AT, again.codes_AT) and np.array_equal(first.agent_S, again.agent_S)
    assert not torch.equal(first.codes_AT, other.codes_AT)


def test_words_are_put_together_and_timed_by_their_first_piece(release: Release) -> None:
    tokenizer = release.tokenizer
    hello, april = tokenizer.encode("hello"), tokenizer.encode("april")  # "hello" is spelt in letters
    assert len(hello) > 1
    ids = [3, 3, 0, *hello, 3, 0, *april, 3]
    codes = torch.tensor([ids] + [[0] * len(ids)] * 8)
    conversation = AgentSide(
        agent_S=np.zeros(1, np.float32),
        user_S=np.zeros(1, np.float32),
        codes_AT=codes,
        prompt_seconds=0,
        step_seconds=1,
    )
    april_frame = 3 + len(hello) + 2
    assert conversation.words(tokenizer) == [
        AgentWord(text="hello", seconds=3 * 0.08),
        AgentWord(text="april", seconds=april_frame * 0.08),
    ]
    pieces = conversation.pieces(tokenizer)
    assert pieces[:3] == ["PAD", "PAD", "EPAD"] and "".join(pieces[3 : 3 + len(hello)]) == " hello"
    assert conversation.real_time_factor == pytest.approx(1 / (len(ids) * 0.08))


def test_the_codec_hears_the_user_afresh_after_the_prompt(release: Release) -> None:
    """The same user audio gives the same codes whatever voice was encoded before."""
    user = noise(1.0)[:, 0]
    before = release.codec.encode(torch.from_numpy(user)[None, None])
    release.codec.encode(torch.randn(1, 1, 48000))
    assert torch.equal(before, release.codec.encode(torch.from_numpy(user)[None, None]))


def test_inference_does_not_load_the_training_stack() -> None:
    code = "import sys, ppx_train.inference.offline; print([m for m in ('lightning', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
