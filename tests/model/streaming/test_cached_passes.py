"""The cached passes of both transformers against their full forward passes."""

import pytest
import torch
from torch import Tensor

from model.duplex import DuplexLM
from model.streaming import temporal_stream
from model.streaming.depth_stream import DepthStream
from model.streaming.kv_cache import KVCache
from model.streaming.temporal_stream import TemporalStream
from tests.model.golden import greedy, language_model
from tests.model.tiny import TINY, tiny


@pytest.fixture
def model() -> DuplexLM:
    return tiny().requires_grad_(False)


def random_inputs(model: DuplexLM, batch: int, num_frames: int, seed: int = 1) -> Tensor:
    """Embedded positions, [B, T, D]."""
    codes_BKT = torch.randint(0, 32, (batch, 17, num_frames), generator=torch.Generator().manual_seed(seed))
    return model.embed(codes_BKT)


def full(model: DuplexLM, x_BTD: Tensor) -> Tensor:
    batch, frames, _ = x_BTD.shape
    return model.out_norm(model.temporal(x_BTD.flatten(0, 1), [frames] * batch)).unflatten(0, (batch, frames))


def stream_of(model: DuplexLM, batch: int) -> tuple[TemporalStream, KVCache]:
    stream = TemporalStream(model.temporal, model.out_norm)
    return stream, stream.init_cache(batch, device="cpu", dtype=model.text_emb.weight.dtype)


def feed(stream: TemporalStream, cache: KVCache, x_MTD: Tensor, rows: list[int] | None = None) -> Tensor:
    """The next frames of some rows: one frame of all rows as a step, anything else in one pass."""
    everyone = list(range(len(cache.positions)))
    rows = everyone if rows is None else rows
    if rows != everyone or x_MTD.shape[1] > 1:
        return stream.extend(x_MTD, cache, rows)
    y_BD = stream.step(x_MTD[:, 0], cache, cache.window(cache.live(rows), masked=not cache.all_visible(rows)))
    cache.offset_B += 1
    cache.positions = [position + 1 for position in cache.positions]
    return y_BD[:, None]


@pytest.mark.parametrize("chunks", [[60], [1] * 60, [5, 1, 1, 20, 3, 17, 13], [1, 16, 1, 42], [40, 20]])
def test_cached_chunks_equal_the_full_forward_past_the_window(model: DuplexLM, chunks: list[int]) -> None:
    x_BTD = random_inputs(model, 2, 60)
    stream, cache = stream_of(model, 2)
    pieces = [feed(stream, cache, chunk) for chunk in x_BTD.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(pieces, 1), full(model, x_BTD), atol=1e-5)
    assert cache.offset_B.tolist() == cache.positions == [60, 60]


def test_a_long_prompt_goes_in_pieces_that_bound_the_mask(model: DuplexLM, monkeypatch: pytest.MonkeyPatch) -> None:
    x_BTD = random_inputs(model, 2, 60)
    monkeypatch.setattr(temporal_stream, "PIECE_FRAMES", 7)
    masked, whole = [], KVCache.append_mask

    def append_mask(cache: KVCache, num_frames: int, rows_M: Tensor, live: int) -> Tensor | None:
        masked.append((num_frames, live))
        return whole(cache, num_frames, rows_M, live)

    monkeypatch.setattr(KVCache, "append_mask", append_mask)
    stream, cache = stream_of(model, 2)
    assert torch.allclose(feed(stream, cache, x_BTD), full(model, x_BTD), atol=1e-5)
    assert max(masked) == (7, TINY.context)


@pytest.mark.parametrize("sizes", [[1] * 50, [1, 4, 1, 20, 3, 1, 1, 19], [30, 20]])
def test_rows_at_different_positions_each_equal_their_own_full_forward(model: DuplexLM, sizes: list[int]) -> None:
    first_BTD, second_BTD = random_inputs(model, 3, 13), random_inputs(model, 3, 50, seed=5)
    stream, cache = stream_of(model, 3)
    feed(stream, cache, first_BTD[:, :7])
    cache.reset([1])
    feed(stream, cache, first_BTD[:, 7:])
    cache.reset([2])
    assert cache.offset_B.tolist() == cache.positions == [13, 6, 0]
    ours_BTD = torch.cat([feed(stream, cache, chunk) for chunk in second_BTD.split(sizes, dim=1)], 1)
    for row, before_TD in enumerate((first_BTD[0], first_BTD[1, 7:], first_BTD[2, :0])):
        expected_TD = full(model, torch.cat((before_TD, second_BTD[row]))[None])[0, -50:]
        assert torch.allclose(ours_BTD[row], expected_TD, atol=1e-5), row
    cache.reset()
    assert torch.allclose(feed(stream, cache, second_BTD), full(model, second_BTD), atol=1e-5)


def test_some_rows_extend_while_the_others_stay(model: DuplexLM) -> None:
    x_BTD = random_inputs(model, 3, 40)
    stream, cache = stream_of(model, 3)
    feed(stream, cache, x_BTD[:, :9])
    feed(stream, cache, x_BTD[[2, 0], 9:31], rows=[2, 0])
    assert cache.offset_B.tolist() == cache.positions == [31, 9, 31]
    feed(stream, cache, x_BTD[1:2, 9:31], rows=[1])
    rest_BTD = torch.cat([feed(stream, cache, frame) for frame in x_BTD[:, 31:].split(1, dim=1)], 1)
    assert torch.allclose(rest_BTD, full(model, x_BTD)[:, 31:], atol=1e-5)


def test_a_bf16_cache_serves_a_bf16_model(model: DuplexLM) -> None:
    model = model.to(torch.bfloat16)
    x_BTD = random_inputs(model, 1, 24)
    stream, cache = stream_of(model, 1)
    pieces = [feed(stream, cache, chunk) for chunk in x_BTD.split([9, 1, 1, 13], dim=1)]
    assert pieces[0].dtype == cache.kv.dtype == torch.bfloat16
    assert (torch.cat(pieces, 1) - full(model, x_BTD)).abs().max() < 0.1


@pytest.mark.parametrize("num_steps", [8, 16])
def test_greedy_depth_steps_are_the_argmax_of_the_teacher_forced_logits(num_steps: int) -> None:
    model = language_model("lm_small").requires_grad_(False)
    torch.manual_seed(4)
    hidden_NI, text_N = torch.randn(6, model.config.dim), torch.tensor([0, 3, 47, 48, 9, 5])
    stream = DepthStream(model.depth, num_steps)
    cache = stream.init_cache(6, device="cpu", dtype=torch.float32)
    tokens_NQ = torch.stack(stream.generate(hidden_NI, text_N, greedy, cache), 1)
    seen_QN = torch.cat((text_N[None], tokens_NQ.T[:-1]))
    forced_QNV = model.depth.heads(model.depth(hidden_NI, seen_QN))
    assert tokens_NQ.shape == (6, num_steps)
    assert torch.equal(forced_QNV.argmax(-1).T, tokens_NQ)
