"""A pinned prompt stays in sight, and in its place, however long a call lasts."""

import copy

import pytest
import torch
from torch import Tensor

from model.duplex import DuplexLM
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.streaming.temporal_stream import TemporalStream
from tests.model.golden import language_model
from tests.refusals import refused

PROMPT, FRAMES = 5, 45


@pytest.fixture(scope="module")
def model() -> DuplexLM:
    return language_model("lm_window")  # a window of 16 frames


def rotated(x_HE: Tensor, position: int, model: DuplexLM) -> Tensor:
    """One vector for each head, its pairs turned by a position: written with sines and cosines."""
    half = x_HE.shape[-1] // 2
    angles = position * model.config.max_period ** (-torch.arange(half) / half)
    even, odd = x_HE[:, 0::2], x_HE[:, 1::2]
    pair = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(pair, -1).flatten(-2)


@torch.no_grad()
def dense(model: DuplexLM, x_TD: Tensor, pinned: int) -> Tensor:
    """All positions, one query at a time, each with the keys it may see at the places where it must see them."""
    window, heads = model.config.context, model.config.num_heads
    for block in model.temporal.layers:
        qkv = block.attention.in_proj(block.norm1(x_TD)).unflatten(-1, (3, heads, -1))
        attended = []
        for p in range(len(x_TD)):
            first = max(0, p - window + 1)
            seen = {j: j for j in range(first, p + 1)}
            if p >= window:
                seen = {j: j for j in range(p - (window - pinned) + 1, p + 1)}
                seen |= {j: j + p - (window - 1) for j in range(pinned)}
            query = rotated(qkv[p, 0], p, model)
            keys = torch.stack([rotated(qkv[j, 1], place, model) for j, place in seen.items()])
            weights = torch.einsum("he,jhe->hj", query, keys).div(query.shape[-1] ** 0.5).softmax(-1)
            attended.append(torch.einsum("hj,jhe->he", weights, qkv[list(seen), 2]).flatten())
        x_TD = x_TD + block.attention.out_proj(torch.stack(attended))
        x_TD = x_TD + block.gating(block.norm2(x_TD))
    return model.out_norm(x_TD)


def streamed(model: DuplexLM, x_TD: Tensor, pinned: int) -> Tensor:
    stream = TemporalStream(model.temporal, model.out_norm)
    cache = stream.init_cache(2, device="cpu", dtype=x_TD.dtype, most_pinned=7)
    outputs = [stream.extend(x_TD[None, :PROMPT], cache, [1])[0]]
    if pinned:
        cache.pin(1)
    for x in x_TD[PROMPT:]:
        live = cache.live([1])
        outputs.append(stream.step(torch.stack([x, x]), cache, cache.window(live, masked=True))[1:])
        cache.offset_B += torch.tensor([0, 1])
        cache.positions[1] += 1
    return torch.cat(outputs)


@pytest.mark.parametrize("pinned", [0, PROMPT])
def test_a_step_sees_what_the_dense_computation_sees(model: DuplexLM, pinned: int) -> None:
    x_TD = torch.randn(FRAMES, model.config.dim, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(streamed(model, x_TD, pinned), dense(model, x_TD, pinned), atol=2e-4, rtol=2e-4)


def test_the_fused_kernel_of_bf16_sees_the_same(model: DuplexLM) -> None:
    x_TD = torch.randn(FRAMES, model.config.dim, generator=torch.Generator().manual_seed(4))
    lower = copy.deepcopy(model).bfloat16()
    expected, wrong = dense(model, x_TD, PROMPT), dense(model, x_TD, 0)
    near = (streamed(lower, x_TD.bfloat16(), PROMPT).float() - expected).norm() / expected.norm()
    assert near < 0.02 < (wrong - expected).norm() / expected.norm()


def test_only_a_pinned_prompt_still_matters_beyond_the_window(model: DuplexLM) -> None:
    """Two layers of 16 frames reach 31 frames back; of that nothing is left after 45."""
    one = torch.randn(FRAMES, model.config.dim, generator=torch.Generator().manual_seed(5))
    other = one.clone()
    other[:PROMPT] += 1
    reach = (model.config.context - 1) * model.config.num_layers
    later = slice(PROMPT + reach + 1, None)
    assert later.start < FRAMES
    assert torch.equal(streamed(model, one, 0)[later], streamed(model, other, 0)[later])
    assert (streamed(model, one, PROMPT)[later] - streamed(model, other, PROMPT)[later]).abs().max() > 1e-3


def test_rows_pin_reset_and_begin_again_on_their_own(model: DuplexLM) -> None:
    stream = DuplexStream(model, Sampling(), most_pinned=10)
    generator = torch.Generator().manual_seed(6)
    card = min(model.config.card, model.config.text_card)
    prompts = torch.randint(card, (3, 17, 8), generator=generator)
    user = torch.randint(model.config.card, (50, 3, 8), generator=generator)

    def alone(row: int, pins: bool, start: int, stop: int) -> Tensor:
        state = stream.init_state(1, [row])
        stream.prefill(state, prompts[row : row + 1])
        if pins:
            stream.pin(state, 0)
        return torch.cat([stream.step(state, frame[row : row + 1]) for frame in user[start:stop]])

    state = stream.init_state(3, [0, 1, 2])
    stream.prefill(state, prompts)
    stream.pin(state, 0)
    stream.pin(state, 2)
    said = []
    for number, frame in enumerate(user):
        if number == 25:
            stream.reset(state, [0], [0])
            stream.prefill(state, prompts[:1], [0])
        said.append(stream.step(state, frame))
    got = torch.stack(said)
    assert torch.equal(got[:25, 0], alone(0, True, 0, 25)) and torch.equal(got[25:, 0], alone(0, False, 25, 50))
    assert torch.equal(got[:, 1], alone(1, False, 0, 50)) and torch.equal(got[:, 2], alone(2, True, 0, 50))


def test_what_cannot_be_pinned_is_refused(model: DuplexLM) -> None:
    stream = DuplexStream(model, Sampling(), most_pinned=4)
    state = stream.init_state(1)
    stream.prefill(state, torch.zeros(1, 17, 6, dtype=torch.long))
    with refused("bad-value", "6 frames", "at most 4"):
        stream.pin(state, 0)
    wide = DuplexStream(model, Sampling(), most_pinned=100)
    state = wide.init_state(1)
    wide.prefill(state, torch.zeros(1, 17, 15, dtype=torch.long))
    wide.pin(state, 0)
    with refused("bad-combination", "pinned"):
        wide.prefill(state, torch.zeros(1, 17, 2, dtype=torch.long))
    with refused("bad-value", "rows=[3]"):
        wide.pin(state, 3)
