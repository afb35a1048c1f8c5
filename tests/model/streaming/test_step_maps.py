"""The maps of a frame against the layers that they stand for, by every kernel they may choose."""

import pytest
import torch
from torch import Tensor, nn

from model.adapters.lora import LoRALinear, LoRAStepLinear
from model.layers import Linear, RMSNorm, StepLinear
from model.streaming import step_maps as maps
from model.streaming.step_maps import linear_map, norm_map, shared_map, step_maps

KERNELS = {"a transposed copy": (10**9, 0), "oneDNN": (0, 0), "PyTorch": (0, 10**9), "as shipped": None}


@pytest.fixture(params=KERNELS, autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Limits of size under which even small weights go to each of the kernels."""
    torch.manual_seed(0)
    if limits := KERNELS[request.param]:
        monkeypatch.setattr(maps, "SMALL", limits[0])
        monkeypatch.setattr(maps, "ONEDNN", limits[1])
    return request.param


def adapted(base: Linear) -> LoRALinear:
    adapter = LoRALinear(base, 2, 0.5)
    nn.init.normal_(adapter.lora_B)
    return adapter


def adapted_steps(base: StepLinear) -> LoRAStepLinear:
    adapter = LoRAStepLinear(base, 2, 0.5)
    nn.init.normal_(adapter.lora_B)
    return adapter


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    tolerance = 1e-5 if ours.dtype == torch.float32 else 0.05
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (1, 1, 24), (2, 5, 24)])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "adapter"])
def test_a_linear_map_is_its_module(shape: tuple[int, ...], dtype: torch.dtype, lora: bool) -> None:
    base = Linear(24, 10, dtype=dtype)
    module = adapted(base) if lora else base
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        assert_close(linear_map(module)(x), module(x))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "adapter"])
def test_step_maps_are_the_steps_of_their_module(batch: int, lora: bool) -> None:
    base = StepLinear(4, 24, 10)
    module = adapted_steps(base) if lora else base
    x_BI = torch.randn(batch, 24)
    with torch.no_grad():
        expected = module(x_BI.expand(4, -1, -1))
        single, shared = step_maps(module, 3), shared_map(module, 3)(x_BI)
        assert len(single) == len(shared) == 3
        for k in range(3):
            assert_close(single[k](x_BI), expected[k])
            assert_close(shared[k], expected[k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24), (2, 5, 24)])
def test_a_norm_map_is_its_module(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm = RMSNorm(24, dtype=dtype)
    nn.init.uniform_(norm.alpha, 0.5, 2)
    x = 3 * torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        assert_close(norm_map(norm)(x), norm(x))


def test_the_norm_of_nothing_is_nothing() -> None:
    assert torch.equal(norm_map(RMSNorm(24))(torch.zeros(1, 24)), torch.zeros(1, 24))


def test_maps_give_no_gradient_to_the_weights() -> None:
    assert not linear_map(Linear(24, 10))(torch.randn(1, 24)).requires_grad
    assert not step_maps(StepLinear(2, 24, 10), 2)[1](torch.randn(1, 24)).requires_grad
    assert not norm_map(RMSNorm(24))(torch.randn(1, 24)).requires_grad
