"""The kernels of training against plain formulas differentiated by autograd, in every mode the blocks have."""

import contextlib
import shutil
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.duplex import DuplexLM, loss_rows
from model.kernels import attention, pointwise
from model.kernels.attention import packed_attention, step_attention
from model.kernels.matmul import linear, step_linear
from model.kernels.pointwise import gated, rotary_angles, rotate
from model.kernels.recompute import MODES
from model.layers import RMSNorm
from tests.model.golden import language_model
from tests.model.tiny import assert_same_gradients, gradients, random_codes, random_weights, tiny
from tests.refusals import refused

# torch's compiler imports it, which fails in a process where the standard library's distutils came first.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

DTYPES = [torch.float32, torch.bfloat16]


def check(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients of `ours` equal those of `plain`, which computes in fp64."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    y, expected = ours(*leaves), plain(*exact)
    assert y.dtype == inputs[0].dtype
    grad = torch.randn(y.shape)
    y.backward(grad.to(y.dtype))
    expected.backward(grad.double())
    rtol, atol = (1e-5, 1e-5) if y.dtype == torch.float32 else (0.05, 0.08)
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=atol)
    for leaf, x in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and x.grad is not None and leaf.grad.dtype == leaf.dtype
        assert leaf.grad.is_contiguous()
        torch.testing.assert_close(leaf.grad.double(), x.grad, rtol=rtol, atol=atol)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups and blocks even for small inputs, the last one not full."""
    torch.manual_seed(0)
    monkeypatch.setattr(pointwise, "CACHED_VALUES", 64)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)
    monkeypatch.setattr(attention, "STEP_GROUP", {"cpu": 6})


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_the_formula(dtype: torch.dtype) -> None:
    norm = RMSNorm(16)

    def ours(x: Tensor, alpha: Tensor) -> Tensor:
        return pointwise._RMSNorm.apply(x, alpha, x.dtype)

    def plain(x: Tensor, alpha: Tensor) -> Tensor:
        return x * alpha * torch.rsqrt(1e-8 + x.square().mean(-1, keepdim=True))

    x, alpha = torch.randn(3, 7, 16, dtype=dtype), torch.rand(1, 1, 16) + 0.5
    check(ours, plain, x, alpha.to(dtype))
    norm.alpha.data.copy_(alpha)
    torch.testing.assert_close(norm(x).double(), plain(x.double(), alpha.double()), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate_is_the_formula(dtype: torch.dtype) -> None:
    check(gated, lambda x: F.silu(x[..., :6]) * x[..., 6:], torch.randn(3, 5, 12, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_one_and_with_stacked_weights(dtype: torch.dtype) -> None:
    check(linear, lambda x, w: x @ w.T, torch.randn(2, 5, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype))
    check(linear, lambda x, w: x @ w.T, torch.randn(9, 4, dtype=dtype), torch.randn(6, 4, dtype=dtype))
    for steps in (3, 4):  # the first of the stack, or all
        check(
            step_linear,
            lambda x, w: x @ w[: len(x)].transpose(1, 2),
            torch.randn(steps, 5, 8, dtype=dtype),
            torch.randn(4, 6, 8, dtype=dtype),
        )


@pytest.mark.parametrize("product", [linear, step_linear])
def test_a_frozen_weight_keeps_no_input(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 6, 8) if product is step_linear else None
    frozen = torch.randn(6, 8) if weight is None else weight
    inner = x * 2
    kept = weakref.ref(inner.untyped_storage())
    y = product(inner, frozen)
    del inner
    assert kept() is None
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * frozen.sum(-2)[..., None, :].expand(2, 5, 8))


def test_inside_autocast_products_are_bf16_and_gradients_of_masters_fp32() -> None:
    x, weight = torch.randn(5, 8), torch.randn(6, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == RMSNorm(8)(x).dtype == torch.bfloat16
        step_linear(x[None], weight[None]).float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_the_steps_of_a_frame(dtype: torch.dtype) -> None:
    def plain(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unflatten(-1, (3, 2, -1)).permute(2, 1, 3, 0, 4)
        y = dense_attention(query, key, value, context=100)
        return y.permute(2, 0, 1, 3).flatten(2)

    check(lambda qkv: step_attention(qkv, 2), plain, torch.randn(4, 10, 3 * 12, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[14], [7, 7], [3, 10, 1]])
def test_packed_sequences_attend_to_their_own_window_alone(lengths: list[int], dtype: torch.dtype) -> None:
    def plain(*qkv: Tensor) -> Tensor:
        parts = zip(*(part.split(lengths, 1) for part in qkv), strict=True)
        return torch.cat([dense_attention(q, k, v, context=4) for q, k, v in parts], 1)

    inputs = [torch.randn(2, sum(lengths), 8, dtype=dtype) for _ in range(3)]
    check(lambda q, k, v: packed_attention(q, k, v, lengths, 4).contiguous(), plain, *inputs)


@pytest.mark.parametrize("context", [4, 20])
def test_a_gpus_kernel_is_handed_the_ends_of_the_sequences_and_their_window(
    context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 10, 1]

    def flash(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, same: Tensor, longest: int, *_: int,
              window_size: tuple[int, int]) -> Tensor:  # fmt: skip
        assert ends.dtype == torch.int32 and ends is same and longest == max(lengths)
        before, after = window_size
        assert after == 0
        parts = zip(*(part.transpose(0, 1).split(ends.diff().tolist(), 1) for part in (query, key, value)), strict=True)
        rows = [dense_attention(q, k, v, before + 1 if before >= 0 else len(query)) for q, k, v in parts]
        return torch.cat(rows, 1).transpose(0, 1)

    query, key, value = (torch.randn(2, sum(lengths), 8) for _ in range(3))
    plain = packed_attention(query, key, value, lengths, context)
    monkeypatch.setattr(attention, "varlen_attn", flash)
    monkeypatch.setattr(attention, "has_packed_flash", lambda *_: True)
    torch.testing.assert_close(packed_attention(query, key, value, lengths, context), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu  # Not yet run: no GPU was at hand.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("context", [64, 3000])
def test_flash_attention_of_packed_sequences_is_the_plain_one(context: int) -> None:
    """In bf16 against fp32 on the CPU: outputs and gradients, and that nothing comes from beyond the window."""
    lengths = [700, 1, 130, 257]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, sum(lengths), 128, generator=generator) for _ in range(3)]
    grad = torch.randn(4, sum(lengths), 128, generator=generator)

    def run(device: str, dtype: torch.dtype, values: list[Tensor]) -> list[Tensor]:
        leaves = [x.to(device, dtype).requires_grad_() for x in values]
        y = packed_attention(*leaves, lengths, context)
        y.backward(grad.to(device, dtype))
        return [y.detach().float().cpu(), *(x.grad.float().cpu() for x in leaves if x.grad is not None)]

    assert attention.has_packed_flash(torch.device("cuda"), torch.bfloat16)
    inputs = [x.bfloat16().float() for x in inputs]
    ours = run("cuda", torch.bfloat16, inputs)
    for got, expected in zip(ours, run("cpu", torch.float32, inputs), strict=True):
        assert (got - expected).norm() < 0.01 * expected.norm()
    changed = [x.clone() for x in inputs]
    for x in changed[1:]:
        x[:, 0] += 100  # The first frame of the first sequence: only queries within its window may see it.
    moved = (run("cuda", torch.bfloat16, changed)[0] - ours[0]).abs().amax((0, 2)) > 0
    assert moved[: min(context, 700)].all() and not moved[min(context, 700) :].any()


def dense_attention(query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
    frames = torch.arange(query.shape[-2])
    age = frames[:, None] - frames
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return scores.masked_fill((age < 0) | (age >= context), float("-inf")).softmax(-1) @ value


def test_rotation_turns_interleaved_pairs_by_position() -> None:
    angles = torch.arange(5)[:, None] * 10000 ** (-torch.arange(0, 8, 2).double() / 8)

    def plain(x: Tensor) -> Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1).flatten(-2)

    check(lambda x: rotate(x, *rotary_angles(torch.arange(5), 8, 10000)), plain, torch.randn(2, 3, 5, 8))


# -- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_checkpointing_mode_gives_the_same_losses_and_gradients(mode: str) -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 40)
    weights_BKT = random_weights(codes_BKT)
    expected_K = model(codes_BKT, weights_BKT).loss_K
    expected_K.sum().backward()
    expected = gradients(model)
    model.zero_grad()
    model.set_activation_checkpointing(mode)
    loss_K = model(codes_BKT, weights_BKT).loss_K
    loss_K.sum().backward()
    assert torch.equal(loss_K, expected_K)
    assert_same_gradients(gradients(model), expected, 1e-7)


def test_checkpointing_modes_keep_less_and_less() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 40)
    kept: list[tuple[str, weakref.ref]] = []

    def watch(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: kept.append((name, weakref.ref(output.untyped_storage())))

    block = model.depth.layers[0]
    for name, module in (("norm", block.norm1), ("product", block.gating.linear_in)):
        module.register_forward_hook(watch(name))
    alive = {}
    for mode in MODES:
        kept.clear()
        model.set_activation_checkpointing(mode)
        loss = model(codes_BKT, random_weights(codes_BKT)).loss_K.sum()
        alive[mode] = [name for name, output in kept if output() is not None]
        del loss
    assert alive == {"none": ["norm", "product"], "selective": ["product"], "full": []}


def test_an_unknown_checkpointing_mode_is_refused() -> None:
    with refused("unknown-name", "'some'", "none, selective, full"):
        tiny().set_activation_checkpointing("some")


def test_packed_rows_of_different_lengths_have_the_losses_they_have_alone() -> None:
    model = tiny()
    lengths = [40, 23, 31]
    codes_BKT = random_codes(model.config, 3, 40)
    weights_BKT = random_weights(codes_BKT)
    for row, length in enumerate(lengths):
        weights_BKT[row, :, length - 1 :] = 0  # the delayed targets of a last frame are beyond its row
    together = model(codes_BKT, weights_BKT, lengths)
    together.loss_K.sum().backward()
    packed = gradients(model)
    model.zero_grad()
    alone = [
        model(codes_BKT[row : row + 1, :, :length], weights_BKT[row : row + 1, :, :length])
        for row, length in enumerate(lengths)
    ]
    loss_K = torch.stack([sums.loss_K for sums in alone]).sum(0)
    loss_K.sum().backward()
    torch.testing.assert_close(together.loss_K, loss_K, rtol=1e-6, atol=1e-6)
    assert_same_gradients(packed, gradients(model), 1e-5)


@pytest.mark.parametrize("streams", [range(17), range(9), [0], [3], []])
def test_rows_that_were_found_before_change_nothing(streams: range | list[int]) -> None:
    model, lengths = tiny(), [30, 12]
    codes_BKT = random_codes(model.config, 2, 30)
    kept_K = torch.tensor([stream in streams for stream in range(17)])
    weights_BKT = random_weights(codes_BKT) * kept_K[:, None]
    rows = loss_rows(model.config, codes_BKT, weights_BKT, lengths)
    assert rows.num_steps == {17: 16, 9: 8}.get(len(streams), 3 if streams == [3] else 1)
    found, here = model(codes_BKT, weights_BKT, lengths, rows), model(codes_BKT, weights_BKT, lengths)
    assert all(torch.equal(one, other) for one, other in zip(found, here, strict=True))


def test_what_lies_behind_a_rows_length_is_not_computed() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 30)
    weights_BKT = random_weights(codes_BKT)
    positions = []
    model.temporal.layers[0].register_forward_hook(lambda module, inputs, output: positions.append(len(output)))
    model(codes_BKT, weights_BKT, [30, 10])
    assert positions == [40]


@pytest.mark.parametrize("lengths", [[30], [31, 2], [0, 30]])
def test_lengths_that_do_not_fit_the_batch_are_refused(lengths: list[int]) -> None:
    codes_BKT = random_codes(tiny().config, 2, 30)
    with pytest.raises(ValueError, match="lengths"):
        tiny()(codes_BKT, random_weights(codes_BKT), lengths)


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_blocks_give_the_same_losses_and_gradients(backend: str, mode: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    model = language_model("lm_small")
    compiled = DuplexLM(model.config)
    compiled.load_state_dict(model.state_dict())
    compiled.compile_blocks(backend=backend)
    assert list(compiled.state_dict()) == list(model.state_dict())
    compiled.set_activation_checkpointing(mode)
    for batch, frames in ((2, 20), (3, 13)):
        codes_BKT = random_codes(model.config, batch, frames)
        weights_BKT = random_weights(codes_BKT)
        results = []
        for each in (model, compiled):
            each.zero_grad()
            loss_K = each(codes_BKT, weights_BKT).loss_K
            loss_K.sum().backward()
            results.append((loss_K, gradients(each)))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
        assert_same_gradients(results[1][1], results[0][1], 1e-4)
