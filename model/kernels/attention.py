"""Attention kernels for training: causal with a sliding window (temporal), and over the steps of a frame (depth).

On a GPU both are PyTorch's fused attention. On a CPU its kernels are slow for these shapes (they took a quarter of a
bf16 step), so that blocks of plain matrix products with an fp32 softmax stand in for them. The temporal kernel computes
its probabilities again for the gradient: no mask or score matrix larger than one block of queries exists at any time.
The depth kernel keeps them.
"""

# Shapes: H heads, T frames, D width, E head width, J rows x heads, N rows, Q codebooks (depth steps)
# Shapes: W window (keys that some query may see), X joined axes (query, key and value)

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUERY_BLOCK = 128
"""Queries of one block of the temporal attention on a CPU: its scores stay in the cache."""
STEP_GROUP = 512
"""Rows x heads of one group of the depth attention on a CPU."""
MAX_SDPA_BATCH = 2**12
"""Rows of one call of the fused depth attention: its gradient pads fp32 sums to 128 steps, 2 GB of them at 7B width."""


@torch.compiler.disable
def packed_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], context: int) -> Tensor:
    """`windowed_attention` within each of several sequences that lie one after another.

    Shapes: query, key, value and the result [H, N, E]; `lengths` add up to N.
    """
    if len(set(lengths)) == 1:  # One kernel call serves all sequences of one length: [H, B, T, E].
        query, key, value = (part.unflatten(1, (len(lengths), -1)) for part in (query, key, value))
        return windowed_attention(query, key, value, context).flatten(1, 2)
    sequences = zip(*(part.split(list(lengths), dim=1) for part in (query, key, value)), strict=True)
    return torch.cat([windowed_attention(q[None], k[None], v[None], context)[0] for q, k, v in sequences], dim=1)


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
    """Causal attention where a frame sees itself and the context - 1 frames before it.

    Shapes: query, key, value and the result [.., .., T, E].
    """
    if on_cpu(query):
        return _BlockAttention.apply(query, key, value, context)
    num_frames = query.shape[2]
    if num_frames <= context:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    blocks = []  # A block of `context` queries needs only the keys of its own block and of the one before.
    for start, stop, first in _blocks(num_frames, context, context):
        visible_TW = _visible(start, stop, first, context, query.device)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        blocks.append(F.scaled_dot_product_attention(query[:, :, start:stop], keys, values, attn_mask=visible_TW))
    return torch.cat(blocks, dim=2)


@torch.compiler.disable
def step_attention(qkv_QNX: Tensor, num_heads: int) -> Tensor:
    """Causal attention over the depth steps of every row: [Q, N, X] -> [Q, N, D].

    X joins query, key and value, each of width D.
    """
    if on_cpu(qkv_QNX):
        return _StepAttention.apply(qkv_QNX, num_heads)
    # The permuted view is seen as N sequences of Q steps, without a copy.
    query, key, value = qkv_QNX.unflatten(-1, (3, num_heads, -1)).permute(2, 1, 3, 0, 4)
    parts = zip(*(part.split(MAX_SDPA_BATCH) for part in (query, key, value)), strict=True)
    y_NHQE = torch.cat([F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts])
    return y_NHQE.permute(2, 0, 1, 3).flatten(2)


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
    """Works on a copy that has the steps of a row together, in groups of rows that fit the cache.

    It keeps the copy and the probabilities (16 x 16 a row and head) for the gradient, instead of the input.
    """

    @staticmethod
    def forward(ctx: Any, qkv_QNX: Tensor, num_heads: int) -> Tensor:
        steps, num_rows, width = qkv_QNX.shape
        visible_QQ = torch.ones(steps, steps, dtype=torch.bool).tril()
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
    return zip(*(tensor.split(STEP_GROUP, dim=-3) for tensor in tensors), strict=True)


def _steps_first(x_QNX: Tensor, parts: int, num_heads: int) -> Tensor:
    """View of [Q, N, parts x H x E] as [parts, N, H, Q, E]."""
    return x_QNX.unflatten(-1, (parts, num_heads, -1)).permute(2, 1, 3, 0, 4)


def _rows_first(x_QNX: Tensor, parts: int, num_heads: int) -> Tensor:
    """Copy of [Q, N, parts x H x E] as [parts, J, Q, E]."""
    return _steps_first(x_QNX, parts, num_heads).flatten(1, 2)
