"""Streaming against the public runtimes (golden vectors), against the full forward pass, and against itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import UNGENERATED_ID, LMConfig
from model.duplex import DuplexLM
from model.prompt import hybrid_prompt, training_sequence
from model.streaming.sample import Sampling, choose_top_k, draw_uniform, row_generators
from model.streaming.stream import DuplexStream
from tests.model.golden import language_model, tensors
from tests.model.tiny import tiny
from tests.refusals import refused

GREEDY = Sampling(greedy=True)


def golden(name: str) -> tuple[DuplexLM, dict[str, Tensor]]:
    return language_model(name), tensors(name)


@pytest.fixture(scope="module")
def small() -> tuple[DuplexLM, dict[str, Tensor]]:
    return golden("lm_small")


def run(stream: DuplexStream, prompt_BKP: Tensor | None, user_BQT: Tensor, seeds: list[int] | None = None) -> Tensor:
    """Agent tokens [B, 9, T] of a conversation."""
    state = stream.init_state(user_BQT.shape[0], seeds)
    if prompt_BKP is not None:
        stream.prefill(state, prompt_BKP)
    return torch.stack([stream.step(state, user_BQ) for user_BQ in user_BQT.unbind(2)], dim=2)


def golden_prompt(model: DuplexLM, vectors: dict[str, Tensor]) -> Tensor:
    return hybrid_prompt(
        model.config,
        vectors["stream.voice_codes"][0],
        vectors["stream.text_prompt_ids"].tolist(),
        vectors["prompt.silence_codes"].tolist(),
        vectors["prompt.sine_codes"].tolist(),
    )


def random_codes(config: LMConfig, batch: int, streams: int, frames: int, seed: int) -> Tensor:
    return torch.randint(config.card, (batch, streams, frames), generator=torch.Generator().manual_seed(seed))


def random_prompts(config: LMConfig, batch: int, frames: int, seed: int) -> Tensor:
    prompts = random_codes(config, batch, 17, frames, seed)
    prompts[:, 0] %= config.text_card
    return prompts


def test_a_prompted_conversation_equals_the_personaplex_runtime_one_call_earlier(
    small: tuple[DuplexLM, dict[str, Tensor]],
) -> None:
    model, vectors = small
    agent = run(DuplexStream(model, GREEDY), golden_prompt(model, vectors)[None], vectors["stream.user_codes"])
    assert torch.equal(agent[:, :, :-1], vectors["stream.personaplex_returns"][:, :, 1:])


def test_an_unprompted_conversation_equals_the_moshi_runtime(small: tuple[DuplexLM, dict[str, Tensor]]) -> None:
    model, vectors = small
    agent = run(DuplexStream(model, GREEDY), None, vectors["stream.user_codes"])
    assert vectors["stream.moshi_first_call"].item() == 1
    assert torch.equal(agent[:, :, 1:], vectors["stream.moshi_returns"])
    assert torch.equal(agent[:, :, 0], torch.full((1, 9), UNGENERATED_ID))


def test_streaming_goes_on_past_the_window_as_the_moshi_runtime_does() -> None:
    model, vectors = golden("lm_window")
    assert model.config.context < vectors["stream.user_codes"].shape[2] // 3
    agent = run(DuplexStream(model, GREEDY), None, vectors["stream.user_codes"])
    assert torch.equal(agent[:, :, 1:], vectors["stream.moshi_returns"])


@pytest.mark.parametrize("is_prompted", [True, False])
def test_streamed_tokens_are_the_argmax_of_the_full_forward_on_the_training_sequence(
    small: tuple[DuplexLM, dict[str, Tensor]], is_prompted: bool
) -> None:
    model, vectors = small
    prompt, user = golden_prompt(model, vectors), vectors["stream.user_codes"]
    agent = run(DuplexStream(model, GREEDY), prompt[None] if is_prompted else None, user)
    dialogue = torch.cat([agent, user], dim=1)[0]
    codes, has_loss = training_sequence(model.config, prompt if is_prompted else prompt[:, :0], dialogue)
    with torch.no_grad():
        logits = model.logits(codes[None])
    scored = has_loss.clone()
    scored[-1] = False  # the delayed codebooks of the last frame are past the end
    heard = agent[0, :, 0 if is_prompted else 1 : -1]  # a call without a prompt says nothing in frame 0
    assert scored.sum() == heard.shape[1]
    assert torch.equal(logits.text_BTV[0].argmax(-1)[scored], heard[0])
    assert torch.equal(logits.audio_BQTV[0, :8].argmax(-1)[:, scored], heard[1:])


@pytest.mark.parametrize("text_delay", [0, 1])
def test_a_model_that_delays_all_codebooks_streams_what_its_full_forward_predicts(text_delay: int) -> None:
    model = tiny(context=64, delays=[text_delay] + [1] * 16)
    prompts, user = random_prompts(model.config, 2, 12, seed=0), random_codes(model.config, 2, 8, 20, seed=1)
    agent = run(DuplexStream(model, GREEDY), prompts, user)
    with torch.no_grad():  # Frame 0 of a prompt stands for the start ids, with which a sequence begins anyway.
        logits = model.logits(torch.cat([prompts[:, :, 1:], torch.cat([agent, user], dim=1)], dim=2))
    assert torch.equal(logits.text_BTV.argmax(-1)[:, 11:-1], agent[:, 0, :-1])
    assert torch.equal(logits.audio_BQTV[:, :8].argmax(-1)[:, :, 11:-1], agent[:, 1:, :-1])


@pytest.mark.parametrize("cuts", [[1] * 24, [7, 1, 16], [20, 4]])
def test_a_prompt_in_one_pass_equals_the_prompt_in_pieces(cuts: list[int]) -> None:
    model, _ = golden("lm_window")  # the prompt of 24 frames is longer than the window of 16
    stream = DuplexStream(model, GREEDY)
    prompts = random_prompts(model.config, 2, 24, seed=0)
    user = random_codes(model.config, 2, 8, 30, seed=1)
    state = stream.init_state(2)
    for piece in prompts.split(cuts, dim=2):
        stream.prefill(state, piece)
    pieces = torch.stack([stream.step(state, user_BQ) for user_BQ in user.unbind(2)], dim=2)
    assert torch.equal(pieces, run(stream, prompts, user))


@pytest.mark.parametrize("frames", [9, 24], ids=["within the window", "past the window"])
def test_a_prompt_in_one_pass_leaves_the_state_of_prompting_frame_by_frame(frames: int) -> None:
    model, _ = golden("lm_window")
    stream, prompts = DuplexStream(model, GREEDY), random_prompts(model.config, 2, frames, seed=0)
    at_once, one_by_one = stream.init_state(2), stream.init_state(2)
    stream.prefill(at_once, prompts)
    for piece in prompts.split(1, dim=2):
        stream.prefill(one_by_one, piece)
    assert torch.allclose(at_once.cache.kv, one_by_one.cache.kv, atol=1e-5)
    assert at_once.cache.positions == one_by_one.cache.positions == at_once.cache.offset_B.tolist() == [frames] * 2
    assert torch.equal(at_once.agent_BA, one_by_one.agent_BA) and torch.equal(at_once.user_BQ, one_by_one.user_BQ)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(text_top_k=0, audio_top_k=5)])
def test_a_batch_gives_each_row_the_tokens_it_has_alone(
    small: tuple[DuplexLM, dict[str, Tensor]], sampling: Sampling
) -> None:
    model, _ = small
    stream = DuplexStream(model, sampling)
    prompts = random_prompts(model.config, 3, 12, seed=2)
    user = random_codes(model.config, 3, 8, 40, seed=3)
    together = run(stream, prompts, user, seeds=[5, 6, 7])
    for row, seed in enumerate([5, 6, 7]):
        alone = run(stream, prompts[row : row + 1], user[row : row + 1], seeds=[seed])
        assert torch.equal(together[row], alone[0])


def test_a_seed_repeats_a_conversation_and_no_seed_does_not(small: tuple[DuplexLM, dict[str, Tensor]]) -> None:
    model, vectors = small
    stream, user = DuplexStream(model, Sampling()), vectors["stream.user_codes"]
    assert torch.equal(run(stream, None, user, [1]), run(stream, None, user, [1]))
    assert not torch.equal(run(stream, None, user, [1]), run(stream, None, user, [2]))
    assert not torch.equal(run(stream, None, user), run(stream, None, user))


def test_the_model_hears_the_user_at_once(small: tuple[DuplexLM, dict[str, Tensor]]) -> None:
    model, vectors = small
    stream, prompt = DuplexStream(model, Sampling()), golden_prompt(model, vectors)[None]
    user = vectors["stream.user_codes"]
    changed = user.clone()
    changed[:, :, 15] = (changed[:, :, 15] + 1) % model.config.card
    before, after = run(stream, prompt, user, [0]), run(stream, prompt, changed, [0])
    assert torch.equal(before[:, :, :15], after[:, :, :15])
    assert torch.equal(before[:, :2, 15], after[:, :2, 15])  # text and codebook 0 of frame 15 were said already
    assert not torch.equal(before[:, :, 15:17], after[:, :, 15:17])


def test_rows_may_stand_at_different_positions(small: tuple[DuplexLM, dict[str, Tensor]]) -> None:
    model, _ = small
    stream = DuplexStream(model, GREEDY)
    user = random_codes(model.config, 2, 8, 30, seed=4)
    state = stream.init_state(2)
    for user_BQ in user[:, :, :10].unbind(2):
        stream.step(state, user_BQ)
    stream.reset(state, [1])  # row 1 hangs up, another caller takes its place
    rest = torch.stack([stream.step(state, user_BQ) for user_BQ in user[:, :, 10:].unbind(2)], dim=2)
    assert torch.equal(rest[0], run(stream, None, user[:1])[0, :, 10:])
    assert torch.equal(rest[1], run(stream, None, user[1:, :, 10:])[0])


def test_sampled_tokens_follow_the_softmax_of_the_top_k() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, 3.0]).expand(20000, -1)
    uniform = torch.empty(1, 20000)
    draw_uniform(row_generators(1, [0]), uniform, [0])
    counts = torch.bincount(choose_top_k(logits, 0.7, 3, uniform.T), minlength=5) / 20000
    wanted = torch.softmax(torch.tensor([2.0, 1.0, float("-inf"), float("-inf"), 3.0]) / 0.7, dim=0)
    assert (counts - wanted).abs().max() < 0.01  # 3 standard deviations


def test_the_ends_of_the_random_interval_choose_tokens_of_the_top_k() -> None:
    logits = torch.tensor([[-9.0, 1.0, 2.0, 1.5, -9.0]])
    below_one = torch.tensor([[1 - 2**-24]])
    assert choose_top_k(logits, 0.7, 3, torch.zeros(1, 1)) == 1
    assert choose_top_k(logits, 0.7, 3, below_one) == 3
    assert choose_top_k(logits, 0.7, 5, below_one) == 3  # token 4 has less than a millionth


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"text_temperature": 0.0}, "text_temperature=0.0"),
        ({"audio_temperature": float("nan")}, "audio_temperature=nan"),
        ({"audio_top_k": -1}, "audio_top_k=-1"),
    ],
)
def test_impossible_sampling_is_refused(values: dict[str, Any], named: str) -> None:
    with refused("bad-value", named):
        Sampling(**values)


def test_wrong_shapes_and_seed_counts_are_refused(small: tuple[DuplexLM, dict[str, Tensor]]) -> None:
    stream = DuplexStream(small[0], GREEDY)
    state = stream.init_state(1)
    with refused("bad-value", "prompt", "(1, 17, 0)"):
        stream.prefill(state, torch.zeros(1, 17, 0))
    with refused("bad-value", "user codes", "(1, 16, 1)", "[1, 8"):
        stream.step(state, torch.zeros(1, 16))
    with refused("bad-combination", "2 seeds", "3"):
        stream.init_state(3, [1, 2])
