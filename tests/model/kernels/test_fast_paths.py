"""Without fast paths the model computes the same: plain formulas, differentiated by autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.duplex import DuplexLM
from model.kernels.attention import plain_attention, windowed_attention
from model.kernels.cross_entropy import head_loss
from model.kernels.fast_paths import COMPILED, NAMES, is_on, only, switch_all_on, switch_off
from model.kernels.recompute import MODES
from tests.model.tiny import assert_same_gradients, gradients, random_codes, random_weights, tiny


def passed(model: DuplexLM) -> dict[str, Tensor]:
    """The gradients of a pass over some random codes."""
    codes_BKT = random_codes(model.config, 2, 20)
    model.zero_grad()
    model(codes_BKT, random_weights(codes_BKT)).loss_K.sum().backward()
    return gradients(model)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_fast_paths_has_the_same_loss_and_gradients(mode: str) -> None:
    model = tiny(context=6)
    model.set_activation_checkpointing(mode)
    fast = passed(model)
    with only():
        plain = passed(model)
    assert_same_gradients(fast, plain, 1e-4)


def test_attention_sees_the_window_and_no_more() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 12, 4, dtype=torch.float64)
    y = plain_attention(query, key, value, 3)
    for frame in range(12):
        seen = slice(max(0, frame - 2), frame + 1)
        p = (query[:, :, frame, None] @ key[:, :, seen].transpose(2, 3) / 2).softmax(-1)
        torch.testing.assert_close(y[:, :, frame, None], p @ value[:, :, seen])


@pytest.mark.parametrize("off", [("attention in blocks",), ("fused attention",)])
def test_one_kind_of_attention_stands_in_for_another(off: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 12, 4)
    with only(*(name for name in NAMES if name not in off)):
        torch.testing.assert_close(windowed_attention(query, key, value, 5), plain_attention(query, key, value, 5))


def test_hits_are_counted_without_fast_paths_too() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 5), torch.randn(2, 7, 5)
    targets, weights = torch.randint(7, (2, 9)), (torch.rand(2, 9) > 0.3).float()
    fast = head_loss([(x, weight)], targets, weights)
    with only():
        plain = head_loss([(x, weight)], targets, weights)
    torch.testing.assert_close(plain, fast)


def test_a_block_that_is_compiled_runs_eagerly_without_this_path() -> None:
    model = tiny()
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        calls.append(graph)
        return graph.forward

    model.compile_blocks(backend=backend)  # type: ignore[arg-type]
    with only(*(name for name in NAMES if name != COMPILED)):
        eager = passed(model)
    assert not calls
    assert_same_gradients(eager, passed(model), 1e-4)
    assert calls


def test_a_path_stays_off_until_all_are_switched_on() -> None:
    try:
        switch_off(NAMES[0])
        with only(NAMES[1]):
            assert [name for name in NAMES if is_on(name)] == [NAMES[1]]
        assert [name for name in NAMES if not is_on(name)] == [NAMES[0]]
    finally:
        switch_all_on()
    assert all(map(is_on, NAMES))
