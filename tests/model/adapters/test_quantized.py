"""Frozen weights in 8 and 4 bits: published levels, exact products, no dense copy kept for the backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.adapters.lora import (
    LoRALinear,
    LoRAStepLinear,
    adapter_state_dict,
    adapters,
    inject,
    load_adapter,
    merge,
    merged,
)
from model.adapters.quantized import BLOCK, HEADS, KINDS, QuantizedLinear, QuantizedStepLinear, quantize_base
from model.duplex import DuplexLM
from model.kernels.recompute import MODES
from model.layers import Linear, StepLinear
from model.weights.checkpoint import save_native
from tests.model.golden import language_model, metadata, tensors
from tests.refusals import refused

pytest.importorskip("bitsandbytes")

NF4 = torch.tensor(  # Dettmers et al. 2023, appendix E
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
LEVELS = {"nf4": NF4, "int8": torch.arange(-127, 128) / 127}
ERRORS = {"nf4": (0.08, 0.11), "int8": (0.004, 0.008)}  # relative error of normal weights


def frozen(steps: int, in_features: int, out_features: int, kind: str | None = None) -> StepLinear:
    """Normal weights; with a kind, rounded to its levels by hand, so that quantizing them again loses nothing."""
    torch.manual_seed(0)
    linear = StepLinear(steps, in_features, out_features).requires_grad_(False)
    if kind:
        linear.weight.copy_(by_hand(linear.weight, kind))
    return linear


def by_hand(weight_QOI: Tensor, kind: str) -> Tensor:
    """Every value replaced by the nearest level times the largest magnitude of its block of 64 in its step."""
    result = []
    for step in weight_QOI:
        blocks = []
        for block in step.flatten().split(BLOCK):
            scale = block.abs().max()
            nearest = (block[:, None] / scale - LEVELS[kind]).abs().argmin(1)
            blocks.append(LEVELS[kind][nearest] * scale)
        result.append(torch.cat(blocks).view_as(step))
    return torch.stack(result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 10, 7), (4, 64, 32)], ids=["ragged blocks", "whole blocks"])
def test_weights_are_the_nearest_levels_of_their_block(kind: str, shape: tuple[int, int, int]) -> None:
    base = frozen(*shape)
    dense = QuantizedStepLinear(base, kind).dense(slice(None), torch.float32)
    nearest = by_hand(base.weight, kind)
    # half way between two levels either is right
    error, least = (dense - base.weight).abs(), (nearest - base.weight).abs()
    assert ((dense - nearest).abs() > 1e-6).float().mean() < 5e-3
    assert (error - least).max() < 0.02 * least.max()
    low, high = ERRORS[kind]
    assert low < error.norm() / base.weight.norm() < high


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_written_out_weights(kind: str) -> None:
    base = frozen(4, 24, 10, kind)
    small, weight_QOI = QuantizedStepLinear(base, kind), base.weight
    x_QNI = torch.randn(3, 5, 24)  # the first 3 of 4 steps
    torch.testing.assert_close(small(x_QNI), torch.einsum("kni,koi->kno", x_QNI, weight_QOI[:3]))
    torch.testing.assert_close(small.step(2, x_QNI[0]), x_QNI[0] @ weight_QOI[2].T)
    torch.testing.assert_close(small.shared(x_QNI[0], 3), torch.einsum("ni,koi->kno", x_QNI[0], weight_QOI[:3]))
    ((same, dense_QOI),) = small.terms(x_QNI)
    assert same is x_QNI
    torch.testing.assert_close(dense_QOI, weight_QOI[:3], atol=1e-6, rtol=1e-5)
    single = QuantizedLinear(_single(base.weight[1]), kind)
    torch.testing.assert_close(single(x_QNI), x_QNI @ weight_QOI[1].T)
    ((x_1NI, dense_1OI),) = single.terms(x_QNI[0])
    torch.testing.assert_close((x_1NI @ dense_1OI.transpose(1, 2))[0], x_QNI[0] @ weight_QOI[1].T)


def _single(weight_OI: Tensor) -> Linear:
    linear = Linear(weight_OI.shape[1], weight_OI.shape[0])
    linear.weight = nn.Parameter(weight_OI.clone(), requires_grad=False)
    return linear


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["forward", "shared", "step", "single"])
def test_gradients_of_input_and_adapter_equal_those_of_plain_autograd(kind: str, way: str) -> None:
    base = frozen(3, 24, 10, kind)
    weight_QOI = base.weight
    single = LoRALinear(QuantizedLinear(_single(base.weight[0]), kind), 2, 0.5)
    stacked = LoRAStepLinear(QuantizedStepLinear(base, kind), 2, 0.5)
    adapter = single if way == "single" else stacked
    nn.init.normal_(adapter.lora_B)
    x = torch.randn((3, 5, 24) if way == "forward" else (5, 24), requires_grad=True)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "forward": stacked,
        "single": single,
        "shared": lambda x: stacked.shared(x, 3),
        "step": lambda x: stacked.step(1, x),
    }
    y = ways[way](x)
    probe = torch.randn_like(y)
    grads = torch.autograd.grad((y * probe).sum(), [x, adapter.lora_A, adapter.lora_B])

    full = weight_QOI[0] if way == "single" else weight_QOI
    full = full + 0.5 * adapter.lora_B @ adapter.lora_A  # W + scaling B A, as autograd knows it
    rule = {"forward": "kni,koi->kno", "shared": "ni,koi->kno", "step": "ni,oi->no", "single": "ni,oi->no"}[way]
    plain = torch.einsum(rule, x, full[1] if way == "step" else full)
    torch.testing.assert_close(y, plain, atol=1e-5, rtol=1e-4)
    expected = torch.autograd.grad((plain * probe).sum(), [x, adapter.lora_A, adapter.lora_B])
    for our, their in zip(grads, expected, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in adapter.base.parameters())


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.55), ("nf4", 0.3)])
def test_bytes_against_bf16_and_no_dense_weight_waits_for_the_backward_pass(kind: str, share: float) -> None:
    base = frozen(4, 128, 256)
    small = QuantizedStepLinear(base, kind)
    bf16 = 2 * base.weight.numel()
    assert sum(p.numel() * p.element_size() for p in small.parameters()) <= share * bf16
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        small(torch.randn(4, 2, 128, dtype=torch.bfloat16, requires_grad=True))
    assert saved
    assert sum(t.numel() * t.element_size() for t in saved) <= share * bf16


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_under_autocast_is_the_bf16_product(kind: str) -> None:
    base = frozen(2, 64, 32)
    small = QuantizedStepLinear(base.to(torch.bfloat16), kind)
    x = torch.randn(2, 3, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = small(x)
    assert y.dtype == torch.bfloat16
    weight = small.dense(slice(None), torch.bfloat16)
    assert torch.equal(y, torch.bmm(x.bfloat16(), weight.transpose(1, 2)))
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def quantized(kind: str) -> DuplexLM:
    model = language_model("lora_small")
    pairs = {k.removeprefix("lora."): v for k, v in tensors("lora_small").items() if k.startswith("lora.")}
    load_adapter(model, pairs, metadata("lora_small")["scaling"])
    quantize_base(model, kind)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_model_trains_its_adapters_as_on_dense_copies_of_its_weights(kind: str, mode: str) -> None:
    codes = tensors("lora_small")["forward.codes"]
    weights = torch.ones(codes.shape)
    model, dense = quantized(kind), quantized(kind)
    model.set_activation_checkpointing(mode)
    for _, module in adapters(dense):  # the same numbers in plain layers
        if isinstance(module.base, QuantizedStepLinear):
            stacked = StepLinear(module.base.steps, module.base.in_features, module.base.out_features)
            stacked.weight = nn.Parameter(module.base.dense(slice(None), torch.float32), requires_grad=False)
            module.base = stacked
        elif isinstance(module.base, QuantizedLinear):
            module.base = _single(module.base.dense(slice(None), torch.float32)[0])
    ours, theirs = model(codes, weights), dense(codes, weights)
    torch.testing.assert_close(ours.loss_K, theirs.loss_K)
    ours.loss_K.sum().backward()
    theirs.loss_K.sum().backward()
    for (path, our), (_, their) in zip(adapters(model), adapters(dense), strict=True):
        for a, b in ((our.lora_A.grad, their.lora_A.grad), (our.lora_B.grad, their.lora_B.grad)):
            assert a is not None and b is not None
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=path)


def test_all_maps_but_the_heads_are_quantized_and_adapters_keep_their_names() -> None:
    model = quantized("nf4")
    dense = [path for path, m in model.named_modules() if isinstance(m, Linear | StepLinear)]
    assert dense == [f"{head}.base" for head in HEADS]
    assert adapter_state_dict(model).keys() == adapter_state_dict(_dense_model()).keys()
    assert not [name for name, _ in model.named_buffers()]  # DDP would broadcast them with every pass


def _dense_model() -> DuplexLM:
    model = language_model("lora_small")
    inject(model, 4, 2.0, [".*"])
    return model


@pytest.mark.parametrize(("kind", "worst"), [("int8", 1e-3), ("nf4", 0.2)])
def test_logits_stay_near_those_of_the_full_weights(kind: str, worst: float) -> None:
    codes = tensors("lm_small")["forward.codes"]
    model, full = language_model("lm_small").requires_grad_(False), language_model("lm_small")
    quantize_base(model, kind)
    with torch.no_grad():
        ours, theirs = model.logits(codes), full.logits(codes)
    mask = theirs.audio_mask_BQT
    ours_NV, theirs_NV = ours.audio_BQTV[mask].log_softmax(-1), theirs.audio_BQTV[mask].log_softmax(-1)
    divergence = F.kl_div(ours_NV, theirs_NV, log_target=True, reduction="batchmean")
    assert 0 < divergence < worst


def test_what_quantized_weights_cannot_do_is_an_error() -> None:
    with refused("bad-combination", "temporal.layers.0.attention.in_proj", "load them into the full weights"):
        merge(quantized("int8"))
    with refused("bad-combination", "temporal.layers.0.attention.in_proj"), merged(quantized("nf4")):
        pass
    with refused("bad-combination", "temporal.layers.0.attention.in_proj", "nf4"):
        quantize_base(language_model("lora_small"), "nf4")
    with refused("bad-combination", "temporal.layers.0.attention.in_proj"):
        save_native("nowhere.safetensors", quantized("nf4"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_quantizes_and_multiplies_like_the_cpu(kind: str) -> None:
    base = frozen(3, 64, 32, kind)
    here, there = QuantizedStepLinear(base, kind), QuantizedStepLinear(base, kind, torch.device("cuda"))
    assert there.codes.device.type == "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        torch.testing.assert_close(there.dense(slice(None), dtype), here.dense(slice(None), dtype))
        on_gpu = there.cuda().dense(slice(None), dtype)
        torch.testing.assert_close(on_gpu.cpu(), here.dense(slice(None), dtype))
        there.cpu()
    x_QNI = torch.randn(3, 5, 64, requires_grad=True)
    far_QNI = x_QNI.detach().cuda().requires_grad_()
    here(x_QNI).square().sum().backward()
    there.cuda()(far_QNI).square().sum().backward()
    assert x_QNI.grad is not None and far_QNI.grad is not None
    torch.testing.assert_close(far_QNI.grad.cpu(), x_QNI.grad, rtol=1e-3, atol=1e-3)
