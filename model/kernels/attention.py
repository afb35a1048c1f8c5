"""Attention kernels for training: causal with a sliding window (temporal), and over the steps of a frame (depth).

On a GPU the temporal one is PyTorch's flash attention of packed sequences, or its fused attention where torch has
none. On a CPU these are slow for our shapes (they took a quarter of a bf16 step), so that blocks of plain matrix
products with an fp32 softmax stand in for them. They compute their probabilities again for the gradient: no mask or
score matrix larger than one block of queries exists at any time. The depth kernel keeps them, and is made of plain
products on every device: a fused kernel pads the 16 steps of a frame to 128.
"""

# Shapes: B batch, H heads, T frames, D width, E head width, J rows x heads, N rows, Q codebooks (depth steps)
# Shapes: W window (keys that some query may see), X joined axes (query, key and value)

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from model.kernels.fast_paths import BLOCKS, FLASH, FUSED, STEPS, is_on

QUERY_BLOCK = 128
"""Queries of one block of the temporal attention on a CPU: its scores stay in the cache."""
STEP_GROUP = {"cpu": 512, "cuda": 2**15}
"""Rows x heads of one group of the depth attention: on a GPU as many products as one call of its library may take."""
NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The fused kernels that serve any shape at once. cuDNN's, which PyTorch prefers on new GPUs, begins with a plan for
each shape (23 to 37 ms are reported), and every length is a shape here."""
PACKED_FLASH = "window_size" in inspect.signature(varlen_attn).parameters
"""Whether this version of torch has flash attention of packed sequences with a window."""


@torch.compiler.disable
def packed_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], context: int) -> Tensor:
    """`windowed_attention` within each of several sequences that lie one after another.

    Shapes: query, key, value and the result [H, N, E]; `lengths` add up to N.
    """
    if is_on(FLASH) and has_packed_flash(query.device, query.dtype):
        return _packed_flash(query, key, value, lengths, context)
    if len(set(lengths)) == 1:  # One kernel call serves all sequences of one length: [H, B, T, E].
        query, key, value = (part.unflatten(1, (len(lengths), -1)) for part in (query, key, value))
        return windowed_attention(query, key, value, context).flatten(1, 2)
    sequences = zip(*(part.split(list(lengths), dim=1) for part in (query, key, value)), strict=True)
    return torch.cat([windowed_attention(q[None], k[None], v[None], context)[0] for q, k, v in sequences], dim=1)


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
    """Causal attention where a frame sees itself and the context - 1 frames before it.

    Shapes: query, key, value and the result [.., .., T, E].
    """
    if on_cpu(query) or not is_on(FUSED):
        if is_on(BLOCKS):
            return _BlockAttention.apply(query, key, value, context)
        return plain_attention(query, key, value, context)
    num_frames = query.shape[2]
    if num_frames <= context:
        return fused_attention(query, key, value, is_causal=True)
    blocks = []  # A block of `context` queries needs only the keys of its own block and of the one before.
    for start, stop, first in _blocks(num_frames, context, context):
        visible_TW = _visible(start, stop, first, context, query.device)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        blocks.append(fused_attention(query[:, :, start:stop], keys, values, attn_mask=visible_TW))
    return torch.cat(blocks, dim=2)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    """`F.scaled_dot_product_attention` for tensors of ever new shapes: on a GPU without cuDNN's kernel."""
    if query.device.type == "cpu":
        return F.scaled_dot_product_attention(query, key, value, **how)
    with sdpa_kernel(NOT_CUDNN):
        return F.scaled_dot_product_attention(query, key, value, **how)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
    """`windowed_attention` by its formula, whose gradient is autograd's: it keeps all scores."""
    num_frames = query.shape[-2]
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    visible_TT = _visible(0, num_frames, 0, context, query.device)
    return wide(scores).masked_fill(~visible_TT, float("-inf")).softmax(-1).to(value.dtype) @ value


def wide(x: Tensor) -> Tensor:
    """x in the type in which sums and exponentials are computed: fp32, or fp64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def has_packed_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is flash attention of packed sequences on a device, in a type."""
    has_type = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    return PACKED_FLASH and has_type and _has_flash(device)


@cache
def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _packed_flash(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], context: int) -> Tensor:
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    # The ends are made on the GPU: to copy them there the host would wait.
    ends = [0, *accumulate(lengths)]
    ends_B = torch.cat([torch.full((1,), end, dtype=torch.int32, device=query.device) for end in ends])
    longest = max(lengths)
    window = (-1, 0) if longest <= context else (context - 1, 0)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        y_NHE = varlen_attn(query, key, value, ends_B, ends_B, longest, longest, window_size=window)
    assert isinstance(y_NHE, Tensor)  # It returns more only if asked to.
    return y_NHE.transpose(0, 1)


@torch.compiler.disable
def step_attention(qkv_QNX: Tensor, num_heads: int) -> Tensor:
    """Causal attention over the depth steps of every row: [Q, N, X] -> [Q, N, D].

    X joins query, key and value, each of width D.
    """
    if is_on(STEPS):
        return _StepAttention.apply(qkv_QNX, num_heads)
    query, key, value = qkv_QNX.unflatten(-1, (3, num_heads, -1)).permute(2, 1, 3, 0, 4)  # [N, H, Q, E] each
    return plain_attention(query, key, value, len(qkv_QNX)).permute(2, 0, 1, 3).flatten(2)


def on_cpu(x: Tensor) -> bool:
    """Whether the kernels for CPUs serve this tensor: not while compiling, when Inductor fuses the plain operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _blocks(num_frames: int, size: int, context: int) -> list[tuple[int, int, int]]:
    """For each block of queries: the first query, the end, the first key that the block may see."""
    starts = range(0, num_frames, size)
    return [(start, min(start + size, num_frames), max(0, start - context + 1)) for start in starts]


def _visible(start: int, stop: int, first: int, context: int, device: torch.device) -> Tensor:
    frames = torch.arange(first, stop, device=device)
    age_TW = frames[start - first :, None] - frames
    return (age_TW >= 0) & (age_TW < context)


def _probabilities(query: Tensor, key: Tensor, visible_TW: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(E)) of [J, T, E] and [J, W, E] where `visible_TW` is true, fp32 [J, T, W]."""
    mask_TW = torch.zeros_like(visible_TW, dtype=query.dtype).masked_fill_(~visible_TW, float("-inf"))
    scores = torch.baddbmm(mask_TW, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return scores.float().softmax(-1)


def _grad_scores(grad_y: Tensor, value: Tensor, p: Tensor) -> Tensor:
    """Gradient of query key^T / sqrt(E), [J, T, W]."""
    grad_p = torch.bmm(grad_y, value.transpose(1, 2)).float()
    return torch.ops.aten._softmax_backward_data(grad_p, p, -1, torch.float32).to(grad_y.dtype)


def _scaled_bmm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b / sqrt(E), where E is the last axis of b; the factor costs nothing inside the product."""
    zero = b.new_zeros(())
    return torch.baddbmm(zero, a, b, beta=0, alpha=b.shape[-1] ** -0.5, out=out)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
        shape = query.shape
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        ctx.save_for_backward(query, key, value)
        ctx.context = context
        y = torch.empty_like(query)
        for start, stop, first in _blocks(query.shape[1], QUERY_BLOCK, context):
            visible_TW = _visible(start, stop, first, context, query.device)
            p = _probabilities(query[:, start:stop], key[:, first:stop], visible_TW)
            y[:, start:stop] = torch.bmm(p.to(value.dtype), value[:, first:stop])
        return y.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        shape, grad = grad.shape, grad.flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start, stop, first in _blocks(query.shape[1], QUERY_BLOCK, ctx.context):
            q, k, v, g = query[:, start:stop], key[:, first:stop], value[:, first:stop], grad[:, start:stop]
            p = _probabilities(q, k, _visible(start, stop, first, ctx.context, query.device))
            grad_s = _grad_scores(g, v, p)
            grad_q[:, start:stop] = _scaled_bmm(grad_s, k)
            grad_k[:, first:stop] += _scaled_bmm(grad_s.transpose(1, 2), q)
            grad_v[:, first:stop] += torch.bmm(p.to(g.dtype).transpose(1, 2), g)
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), None


class _StepAttention(torch.autograd.Function):
    """Works on a copy that has the steps of a row together, in groups of rows; on a CPU they fit the cache.

    It keeps the copy and the probabilities (16 x 16 a row and head) for the gradient, instead of the input.
    """

    @staticmethod
    def forward(ctx: Any, qkv_QNX: Tensor, num_heads: int) -> Tensor:
        steps, num_rows, width = qkv_QNX.shape
        visible_QQ = torch.ones(steps, steps, dtype=torch.bool, device=qkv_QNX.device).tril()
        qkv = _rows_first(qkv_QNX, 3, num_heads)
        y = torch.empty_like(qkv[0])
        p = qkv.new_empty(num_rows * num_heads, steps, steps)
        for (query, key, value), p_part, y_part in _parts(qkv, p, y):
            p_part.copy_(_probabilities(query, key, visible_QQ))
            torch.bmm(p_part, value, out=y_part)
        ctx.save_for_backward(qkv, p)
        ctx.num_heads = num_heads
        y_QND = qkv_QNX.new_empty(steps, num_rows, width // 3)
        _steps_first(y_QND, 1, num_heads)[0].copy_(y.unflatten(0, (num_rows, num_heads)))
        return y_QND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_QND: Tensor) -> tuple[Tensor, None]:
        qkv, p = ctx.saved_tensors
        steps, num_rows, width = grad_QND.shape
        grads = torch.empty_like(qkv)
        grad_y = _rows_first(grad_QND, 1, ctx.num_heads)[0]
        for (query, key, value), p_part, grad_part, out in _parts(qkv, p, grad_y, grads):
            grad_s = _grad_scores(grad_part, value, p_part.float())
            _scaled_bmm(grad_s, key, out[0])
            _scaled_bmm(grad_s.transpose(1, 2), query, out[1])
            torch.bmm(p_part.transpose(1, 2), grad_part, out=out[2])
        grad_QNX = grad_QND.new_empty(steps, num_rows, 3 * width)
        _steps_first(grad_QNX, 3, ctx.num_heads).copy_(grads.unflatten(1, (num_rows, ctx.num_heads)))
        return grad_QNX, None


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cuts the tensors into groups along their axis of rows and heads, the third from the end."""
    size = STEP_GROUP.get(tensors[0].device.type, 2**15)
    return zip(*(tensor.split(size, dim=-3) for tensor in tensors), strict=True)


def _steps_first(x_QNX: Tensor, parts: int, num_heads: int) -> Tensor:
    """View of [Q, N, parts x H x E] as [parts, N, H, Q, E]."""
    return x_QNX.unflatten(-1, (parts, num_heads, -1)).permute(2, 1, 3, 0, 4)


def _rows_first(x_QNX: Tensor, parts: int, num_heads: int) -> Tensor:
    """Copy of [Q, N, parts x H x E] as [parts, J, Q, E]."""
    return _steps_first(x_QNX, parts, num_heads).flatten(1, 2)
