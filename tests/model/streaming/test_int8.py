"""Weights in 8 bits: the maps are those of the rounded weights, and a model says nearly what it says in full."""

import copy
from dataclasses import replace

import pytest
import torch

from model.config import LMConfig
from model.duplex import DuplexLM
from model.layers import Linear, StepLinear
from model.streaming.int8 import Int8Linear, Int8StepLinear, check_int8, hold_in_int8, quantize_rows
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from tests.refusals import refused

CONFIG = LMConfig(
    dim=64, num_heads=4, num_layers=2, text_card=300, card=64, depformer_dim=32, depformer_num_heads=2,
    depformer_num_layers=2, depformer_dim_feedforward=96, context=40,
)  # fmt: skip


def rounded(weight: torch.Tensor) -> torch.Tensor:
    codes, scales = quantize_rows(weight)
    return codes.double() * scales.double()[:, None]


def test_rows_are_rounded_to_the_nearest_of_their_levels() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 96) * torch.logspace(-4, 3, 50)[:, None]
    weight[7] = 0
    codes, scales = quantize_rows(weight)
    assert codes.abs().max() <= 127 and codes.dtype == torch.int8
    error = (rounded(weight) - weight).abs()
    # Half a level, and where the scale was rounded down by up to 1/256, what the largest values lose.
    assert (error <= scales.double()[:, None] * (0.5 + 127 / 256 + 1e-6)).all()
    assert (error.mean(1) <= scales.double() * 0.3).all()


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_maps_are_those_of_the_rounded_weights(rows: int) -> None:
    torch.manual_seed(1)
    one, steps = Linear(64, 96), StepLinear(5, 64, 32)
    x = torch.randn(rows, 64).bfloat16().float()
    expected = x.double() @ rounded(one.weight.detach()).T
    got = Int8Linear(one)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=2e-2)
    small = Int8StepLinear(steps)
    each = torch.stack([x.double() @ rounded(weight).T for weight in steps.weight.detach()])
    torch.testing.assert_close(small.shared(x, 4).double(), each[:4], rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(small.step(3, x).double(), each[3], rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(small(x.expand(2, -1, -1)).double(), each[:2], rtol=1e-2, atol=2e-2)


def test_a_model_in_int8_streams_and_its_logits_are_near() -> None:
    torch.manual_seed(3)
    model = DuplexLM(CONFIG).requires_grad_(False)
    small = copy.deepcopy(model)
    hold_in_int8(small, "cpu")
    assert not any(isinstance(m, Linear) for p, m in small.named_modules() if p != "text_head")
    codes = torch.randint(min(model.config.card, model.config.text_card), (1, 17, 12))
    with torch.no_grad():
        full, less = model.logits(codes), small.logits(codes)
    error = (full.text_BTV - less.text_BTV)[full.text_mask_BT].norm() / full.text_BTV[full.text_mask_BT].norm()
    assert 0 < error < 0.05
    stream = DuplexStream(small, Sampling(greedy=True))
    state = stream.init_state(2)
    stream.prefill(state, codes.expand(2, -1, -1))
    said = torch.stack([stream.step(state, torch.full((2, 8), n)) for n in range(10)])
    assert torch.equal(said[:, 0], said[:, 1]) and (said[1:] >= 0).all()


def test_what_the_product_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("bad-combination", "input width 24", "multiples of 16"):
        hold_in_int8(DuplexLM(replace(CONFIG, dim=24, num_heads=2)), "cpu")
    check_int8("cpu")

    def missing(*_: object) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(torch, "_weight_int8pack_mm", missing)
    with refused("no-device", "int8 on cpu"):
        hold_in_int8(DuplexLM(CONFIG), "cpu")
