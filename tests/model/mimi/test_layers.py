"""The codec's layers against the library's own operations, in one pass and in chunks."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.mimi import conv
from model.mimi.config import TransformerConfig
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d, ConvState
from model.mimi.transformer import MimiTransformer, TransformerState, window_mask


@pytest.fixture(params=[0, 32], ids=["library", "products"], autouse=True)
def few_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short inputs go to the library's convolutions, or to matrix products."""
    torch.manual_seed(0)
    monkeypatch.setattr(conv, "FEW_STEPS", request.param)
    monkeypatch.setattr(conv, "FEW_STRIDED_STEPS", request.param)


def in_chunks(layer: CausalConv1d | CausalConvTranspose1d, x_BCT: Tensor, sizes: list[int]) -> Tensor:
    state = ConvState()
    return torch.cat([layer(chunk, state) for chunk in x_BCT.split(sizes, dim=2)], dim=2)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(1, 1, 1), (7, 1, 1), (3, 1, 4), (8, 4, 1)])
def test_a_causal_convolution_is_the_librarys_with_zeros_in_front(kernel: int, stride: int, dilation: int) -> None:
    layer = CausalConv1d(3, 5, kernel, stride=stride, dilation=dilation)
    x_BCT = torch.randn(2, 3, 24)
    plain = layer.conv.conv
    left = (kernel - 1) * dilation + 1 - stride
    expected = F.conv1d(F.pad(x_BCT, (left, 0)), plain.weight, plain.bias, stride, 0, dilation)
    with torch.no_grad():
        torch.testing.assert_close(layer(x_BCT), expected)
        torch.testing.assert_close(in_chunks(layer, x_BCT, [4, 8, 12]), expected)


def test_a_replicating_convolution_begins_with_its_first_step() -> None:
    layer = CausalConv1d(3, 5, 4, stride=2, bias=False, replicate=True)
    x_BCT = torch.randn(2, 3, 12)
    expected = F.conv1d(F.pad(x_BCT, (2, 0), mode="replicate"), layer.conv.conv.weight, None, 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(x_BCT), expected)
        torch.testing.assert_close(in_chunks(layer, x_BCT, [2, 4, 6]), expected)


@pytest.mark.parametrize(("depthwise", "bias"), [(False, True), (True, False)])
def test_a_transposed_convolution_is_the_librarys_without_its_tail(depthwise: bool, bias: bool) -> None:
    layer = CausalConvTranspose1d(4, 4, 3, bias=bias, depthwise=depthwise)
    x_BCT = torch.randn(2, 4, 10)
    plain = layer.convtr.convtr
    expected = F.conv_transpose1d(x_BCT, plain.weight, plain.bias, 3, groups=4 if depthwise else 1)[..., :30]
    with torch.no_grad():
        torch.testing.assert_close(layer(x_BCT), expected)
        torch.testing.assert_close(in_chunks(layer, x_BCT, [1, 6, 3]), expected)


@pytest.mark.parametrize(("past", "steps", "context"), [(0, 5, 8), (7, 1, 8), (0, 12, 8), (7, 3, 8), (3, 4, 8)])
def test_a_query_sees_itself_and_the_steps_of_its_window(past: int, steps: int, context: int) -> None:
    seen = [[past + t - context < key <= past + t for key in range(past + steps)] for t in range(steps)]
    mask_TW = window_mask(past, steps, context, torch.device("cpu"))
    if mask_TW is not None:
        assert mask_TW.tolist() == seen
    elif steps == 1:
        assert all(seen[0])  # No mask at all is needed.
    else:
        assert past == 0 and seen == torch.ones(steps, steps, dtype=torch.bool).tril().tolist()  # A causal one does.


def test_steps_leave_the_window_but_not_the_state_before_its_room_is_full() -> None:
    config = TransformerConfig(
        d_model=16, num_heads=2, num_layers=2, layer_scale=1.0, context=4, dim_feedforward=32, max_period=100
    )
    model, x_BDT = MimiTransformer(config), torch.randn(2, 16, 30)
    state: TransformerState = model.init_state(2, most_steps=11)
    with torch.no_grad():
        pieces = [model(chunk, state) for chunk in x_BDT.split([1, 1, 5, 2, 9, 1, 11], dim=2)]
        torch.testing.assert_close(torch.cat(pieces, 2), model(x_BDT), atol=1e-5, rtol=1e-4)
    assert state.positions == [30, 30] == state.offset_B.tolist()
    assert state.room == 4 + 10


def test_rows_of_a_transformer_start_again_and_pause_on_their_own() -> None:
    config = TransformerConfig(
        d_model=16, num_heads=2, num_layers=2, layer_scale=1.0, context=4, dim_feedforward=32, max_period=100
    )
    model, rng = MimiTransformer(config), np.random.default_rng(0)
    state = model.init_state(3, most_steps=2)
    lines: list[list[Tensor]] = [[], [], []]
    made: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for _ in range(60):
            row = int(rng.integers(3))
            if rng.random() < 0.1:
                check_line(model, lines[row], made[row])
                state.forget([row])
                lines[row], made[row] = [], []
            goes = [bool(rng.random() < 0.7) for _ in range(3)]
            x_BDT = torch.randn(3, 16, int(rng.integers(1, 3)))
            out_BDT = model(x_BDT, state, goes)
            for n in range(3):
                if goes[n]:
                    lines[n].append(x_BDT[n])
                    made[n].append(out_BDT[n])
        for line, out in zip(lines, made, strict=True):
            check_line(model, line, out)


def check_line(model: MimiTransformer, line: list[Tensor], made: list[Tensor]) -> None:
    """What one row was given, in one pass, is what it returned."""
    if line:
        torch.testing.assert_close(torch.cat(made, 1), model(torch.cat(line, 1)[None])[0], atol=1e-5, rtol=1e-4)
