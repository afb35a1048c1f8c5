"""Cross-entropy of a linear head, computed in chunks together with its gradient.

The logits of 16 codebooks or of 32000 text pieces are the largest tensors of a training step. Here no more than one
chunk of them exists at a time: its gradient is taken on the spot and only the gradients of the head's input and weight
are kept. That costs no second matmul (unlike recomputing) and, on a CPU, stays in the cache.
"""

# Shapes: K heads (one per depth step; 1 for text), N rows, n rows of a chunk, V vocabulary, I input width

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.kernels.matmul import autocast_to_one_type, product, weight_gradient

CHUNK_LOGITS = {"cpu": 2**26, "cuda": 2**27}
"""Logits that exist at a time: 2048 or 4096 rows of 32000 text pieces. Their matmuls want many rows."""
CACHED_LOGITS = {"cpu": 2**19, "cuda": 2**27}
"""Logits whose softmax is taken at a time: on a CPU 2 MB of fp32, which stay in the cache."""


def head_loss(terms: Sequence[tuple[Tensor, Tensor]], targets_KN: Tensor, weights_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the K heads and their hits, summed over the rows, both fp32 [K].

    terms: pairs (input [K, N, I], weight [K, V, I]); the logits are the sum of input @ weight^T over the pairs.
    Rows of weight 0 add nothing, whatever their target (even ZERO_ID). A hit is argmax == target at weight > 0.
    The logits are made in the type of the inputs (autocast's type inside autocast), all else is fp32.
    """
    tensors = [tensor for x, weight in terms for tensor in autocast_to_one_type(x, weight)]
    needs_grad = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)
    with torch.autocast(targets_KN.device.type, enabled=False):
        return _HeadLoss.apply(targets_KN, weights_KN, needs_grad, *tensors)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, targets_KN: Tensor, weights_KN: Tensor, needs_grad: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, weights = tensors[0::2], tensors[1::2]
        num_heads, num_rows = targets_KN.shape
        chunks = _slices(num_rows, CHUNK_LOGITS, weights[0])
        grads = [
            _grad_buffer(t, len(chunks)) if needed else None for needed, t in zip(needs_grad, tensors, strict=True)
        ]
        loss_K, correct_K = torch.zeros(2, num_heads, device=targets_KN.device).unbind(0)
        for k in range(num_heads):
            for rows in chunks:
                logits_nV = product(inputs[0][k, rows], weights[0][k])
                for x, weight in zip(inputs[1:], weights[1:], strict=True):
                    logits_nV += product(x[k, rows], weight[k])
                target_n, weight_n = targets_KN[k, rows].clamp(min=0), weights_KN[k, rows]
                for part in _slices(len(logits_nV), CACHED_LOGITS, weights[0]):
                    loss, hits = _rows_loss(logits_nV[part], target_n[part], weight_n[part])
                    loss_K[k] += loss
                    correct_K[k] += hits
                if any(needs_grad):
                    _add_grads(grads, tensors, logits_nV, weight_n, k, rows)
        ctx.save_for_backward(*(grad.to(t.dtype) for grad, t in zip(grads, tensors, strict=True) if grad is not None))
        ctx.needs_grad = needs_grad
        ctx.mark_non_differentiable(correct_K)
        return loss_K, correct_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_K: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return (None, None, None, *(_scaled(next(saved), grad_K) if needed else None for needed in ctx.needs_grad))


def _scaled(grad_KXI: Tensor, factor_K: Tensor) -> Tensor:
    """In place. On a CPU by plain numbers, because a product of two types starts with a copy there."""
    if grad_KXI.device.type != "cpu":
        return grad_KXI.mul_(factor_K[:, None, None])
    for grad_XI, factor in zip(grad_KXI, factor_K.tolist(), strict=True):
        grad_XI.mul_(factor)
    return grad_KXI


def _slices(num_rows: int, budget: Mapping[str, int], weight_KVI: Tensor) -> list[slice]:
    size = max(1, budget.get(weight_KVI.device.type, 2**27) // weight_KVI.shape[1])
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _rows_loss(logits_nV: Tensor, target_n: Tensor, weight_n: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted loss and hits of some rows; the gradient of each row's own loss (not weighted) replaces the logits."""
    scores_nV = logits_nV.float()
    maximum_n1, target_n1 = scores_nV.amax(-1, keepdim=True), target_n[:, None]
    right_n1 = scores_nV.gather(1, target_n1)
    has_loss_n = weight_n > 0
    is_hit_n = _hits(scores_nV, target_n, (right_n1 == maximum_n1)[:, 0] & has_loss_n)
    p_nV = torch.softmax(scores_nV, -1)
    # the largest probability is 1 / sum(exp(score - maximum)): no further pass over the scores
    loss_n1 = maximum_n1 - p_nV.amax(-1, keepdim=True).log() - right_n1
    logits_nV.copy_(p_nV.scatter_add_(1, target_n1, torch.full_like(right_n1, -1)))
    return torch.where(has_loss_n, loss_n1[:, 0] * weight_n, 0).sum(), is_hit_n.sum()


def _hits(scores_nV: Tensor, target_n: Tensor, is_best_n: Tensor) -> Tensor:
    """Rows of `is_best_n` whose target is the first of the best scores."""
    if scores_nV.device.type != "cpu":
        return (scores_nV.argmax(-1) == target_n) & is_best_n
    rows = is_best_n.nonzero()[:, 0]  # argmax takes as long as a softmax on a CPU: only for those that may be hits
    return scores_nV.index_select(0, rows).argmax(-1) == target_n[rows]


def _grad_buffer(tensor: Tensor, num_chunks: int) -> Tensor:
    # sums over chunks are fp32, whatever the type of the weight
    return torch.empty_like(tensor) if num_chunks == 1 else torch.zeros_like(tensor, dtype=torch.float32)


def _add_grads(
    grads: Sequence[Tensor | None], tensors: Sequence[Tensor], grad_nV: Tensor, weight_n: Tensor, k: int, rows: slice
) -> None:
    """Adds the chunk's gradients; the rows' weights are applied to the narrow factors, not to the vocabulary."""
    is_whole = rows.start == 0 and rows.stop == tensors[0].shape[1]
    for i in range(0, len(tensors), 2):
        grad_input, grad_weight = grads[i], grads[i + 1]
        if grad_input is not None:
            torch.mul(product(grad_nV, tensors[i + 1][k].t()), weight_n[:, None], out=grad_input[k, rows])
        if grad_weight is not None:
            weighted_nI = (tensors[i][k, rows] * weight_n[:, None]).to(grad_nV.dtype)
            if is_whole:
                weight_gradient(grad_nV, weighted_nI, out=grad_weight[k])
            else:
                grad_weight[k] += weight_gradient(grad_nV, weighted_nI)
