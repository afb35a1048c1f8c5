"""Attention kernels for training: causal with a sliding window (temporal), and over the steps of a frame (depth).

On a GPU both are PyTorch's fused attention. On a CPU its kernels are slow for these shapes (a quarter of a bf16 step),
so that blocks of plain matrix products with an fp32 softmax stand in; their gradients recompute the probabilities.
No mask or score matrix larger than one block of queries exists at any time.
"""

# Shapes: B batch, H heads, T frames, d head width, K depth steps, N rows

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUERY_BLOCK = 128  # on a CPU: a block's scores stay in the cache
STEP_ROWS = 64
MAX_SDPA_BATCH = 2**15  # CUDA launches at most 65535 blocks along the batch


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
    """Causal attention where a frame sees itself and the context - 1 frames before it. All [B, H, T, d]."""
    if on_cpu(query):
        return _BlockAttention.apply(query, key, value, context)
    num_frames = query.shape[2]
    if num_frames <= context:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # blocks of `context` queries: each needs only the keys of its own block and of the one before
    blocks = []
    for start, stop, first in _blocks(num_frames, context, context):
        visible_TS = _visible(start, stop, first, context, query.device)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        blocks.append(F.scaled_dot_product_attention(query[:, :, start:stop], keys, values, attn_mask=visible_TS))
    return torch.cat(blocks, dim=2)


def step_attention(qkv_KNX: Tensor, num_heads: int) -> Tensor:
    """Causal attention over the K steps of every row; X = 3 x width: query, key, value. -> [K, N, width]"""
    if on_cpu(qkv_KNX):
        return _StepAttention.apply(qkv_KNX, num_heads)
    # seen as N sequences of K steps, without a copy
    query, key, value = qkv_KNX.unflatten(-1, (3, num_heads, -1)).permute(2, 1, 3, 0, 4)
    parts = zip(*(part.split(MAX_SDPA_BATCH) for part in (query, key, value)), strict=True)
    y_NHKd = torch.cat([F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts])
    return y_NHKd.permute(2, 0, 1, 3).flatten(2)


def on_cpu(x: Tensor) -> bool:
    """Whether the CPU's own kernels are to be used: not while compiling, when Inductor fuses the plain operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _blocks(num_frames: int, size: int, context: int) -> list[tuple[int, int, int]]:
    """(first query, end, first visible key) of each block of queries."""
    starts = range(0, num_frames, size)
    return [(start, min(start + size, num_frames), max(0, start - context + 1)) for start in starts]


def _visible(start: int, stop: int, first: int, context: int, device: torch.device) -> Tensor:
    frames = torch.arange(first, stop, device=device)
    age_TS = frames[start - first :, None] - frames
    return (age_TS >= 0) & (age_TS < context)


def _probabilities(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) of [X, T, d] and [X, S, d], where `hidden` [T, S] is false; fp32 inside."""
    scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(query.shape[-1] ** -0.5)
    return scores.masked_fill_(hidden, float("-inf")).softmax(-1).to(query.dtype)


def _grad_scores(grad_y: Tensor, value: Tensor, probabilities: Tensor) -> Tensor:
    """Gradient of query key^T, [X, T, S]."""
    grad_p, p = torch.bmm(grad_y, value.transpose(1, 2)).float(), probabilities.float()
    grad = torch.ops.aten._softmax_backward_data(grad_p, p, -1, torch.float32)
    return grad.mul_(value.shape[-1] ** -0.5).to(grad_y.dtype)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, context: int) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.context, shape = context, query.shape
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        y = torch.empty_like(query)
        for start, stop, first in _blocks(query.shape[1], QUERY_BLOCK, context):
            hidden = ~_visible(start, stop, first, context, query.device)
            p = _probabilities(query[:, start:stop], key[:, first:stop], hidden)
            y[:, start:stop] = torch.bmm(p, value[:, first:stop])
        return y.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        shape = grad.shape
        query, key, value, grad = (part.flatten(0, 1) for part in (*ctx.saved_tensors, grad))
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start, stop, first in _blocks(query.shape[1], QUERY_BLOCK, ctx.context):
            hidden = ~_visible(start, stop, first, ctx.context, query.device)
            q, k, v, g = query[:, start:stop], key[:, first:stop], value[:, first:stop], grad[:, start:stop]
            p = _probabilities(q, k, hidden)
            grad_s = _grad_scores(g, v, p)
            grad_q[:, start:stop] = torch.bmm(grad_s, k)
            grad_k[:, first:stop] += torch.bmm(grad_s.transpose(1, 2), q)
            grad_v[:, first:stop] += torch.bmm(p.transpose(1, 2), g)
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), None


class _StepAttention(torch.autograd.Function):
    """Rows are taken in groups whose query, key and value fit the cache."""

    @staticmethod
    def forward(ctx: Any, qkv_KNX: Tensor, num_heads: int) -> Tensor:
        ctx.save_for_backward(qkv_KNX)
        ctx.num_heads = num_heads
        steps, num_rows, width = qkv_KNX.shape
        hidden = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        y_KNd = qkv_KNX.new_empty(steps, num_rows, width // 3)
        for start in range(0, num_rows, STEP_ROWS):
            query, key, value = _rows_first(qkv_KNX[:, start : start + STEP_ROWS], 3, num_heads)
            y = torch.bmm(_probabilities(query, key, hidden), value)
            _steps_first(y_KNd[:, start : start + STEP_ROWS], 1, num_heads).copy_(y.view(1, -1, num_heads, *y.shape[1:]))
        return y_KNd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_KNd: Tensor) -> tuple[Tensor, None]:
        (qkv_KNX,) = ctx.saved_tensors
        steps, num_rows, _ = qkv_KNX.shape
        hidden = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        grad_qkv_KNX = torch.empty_like(qkv_KNX)
        for start in range(0, num_rows, STEP_ROWS):
            rows = slice(start, start + STEP_ROWS)
            query, key, value = _rows_first(qkv_KNX[:, rows], 3, ctx.num_heads)
            (grad_y,) = _rows_first(grad_KNd[:, rows], 1, ctx.num_heads)
            p = _probabilities(query, key, hidden)
            grad_s = _grad_scores(grad_y, value, p)
            grads = torch.empty(3, *query.shape, dtype=query.dtype)
            torch.bmm(grad_s, key, out=grads[0])
            torch.bmm(grad_s.transpose(1, 2), query, out=grads[1])
            torch.bmm(p.transpose(1, 2), grad_y, out=grads[2])
            _steps_first(grad_qkv_KNX[:, rows], 3, ctx.num_heads).copy_(
                grads.view(3, -1, ctx.num_heads, *query.shape[1:])
            )
        return grad_qkv_KNX, None


def _steps_first(x_KNX: Tensor, parts: int, num_heads: int) -> Tensor:
    """View of [K, N, parts x H x d] as [parts, N, H, K, d]."""
    return x_KNX.unflatten(-1, (parts, num_heads, -1)).permute(2, 1, 3, 0, 4)


def _rows_first(x_KNX: Tensor, parts: int, num_heads: int) -> Tensor:
    """Copy of [K, N, parts x H x d] as [parts, N x H, K, d]."""
    return _steps_first(x_KNX, parts, num_heads).flatten(1, 2)
