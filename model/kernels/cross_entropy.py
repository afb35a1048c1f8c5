"""Cross-entropy of a linear head, computed in chunks together with its gradient.

The logits of 16 codebooks or of 32000 text pieces are the largest tensors of a training step. Here no more than one
chunk of them exists at a time: its gradient is taken on the spot, and only the gradients of the head's input and weight
are kept. Unlike recomputing, that costs no second matmul, and on a CPU it stays in the cache.
"""

# Shapes: Q codebooks (one head each; 1 for text), N rows, M some rows (a chunk), V vocabulary, I input width

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.kernels.attention import wide
from model.kernels.fast_paths import HEADS, is_on
from model.kernels.matmul import autocast_to_one_type, product, weight_gradient

CHUNK_LOGITS = {"cpu": 2**26, "cuda": 2**27}
"""Logits that exist at a time, 2048 or 4096 rows of 32000 text pieces: their matmuls are faster with many rows."""
CACHED_LOGITS = {"cpu": 2**19, "cuda": 2**27}
"""Logits whose softmax is taken at a time. On a CPU they are 2 MB of fp32, which stay in the cache."""


def head_loss(terms: Sequence[tuple[Tensor, Tensor]], targets_QN: Tensor, weights_QN: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of Q heads, and their hits, both summed over the rows.

    The logits are the sum of input @ weight^T over the pairs of `terms`. Rows of weight 0 add nothing, whatever their
    target (even ZERO_ID, or an id beyond the vocabulary). A hit is a row of weight > 0 whose target is the argmax. The
    logits have the type of the inputs (autocast's type inside autocast), and all else is fp32.
    Shapes: terms: pairs (input [Q, N, I], weight [Q, V, I]); the results are fp32 [Q].
    """
    tensors = [tensor for x, weight in terms for tensor in autocast_to_one_type(x, weight)]
    needs_grad = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)
    with torch.autocast(targets_QN.device.type, enabled=False):
        if not is_on(HEADS):
            return _plain_head_loss(tensors[0::2], tensors[1::2], targets_QN, weights_QN)
        return _HeadLoss.apply(targets_QN, weights_QN, needs_grad, *tensors)


def _plain_head_loss(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], targets_QN: Tensor, weights_QN: Tensor
) -> tuple[Tensor, Tensor]:
    """`head_loss` by its formula, whose gradient is autograd's: it keeps all logits."""
    logits_QNV = sum(torch.bmm(x, weight.transpose(1, 2)) for x, weight in zip(inputs, weights, strict=True))
    assert isinstance(logits_QNV, Tensor)
    has_loss_QN = weights_QN > 0
    target_QN = torch.where(has_loss_QN, targets_QN, 0)
    loss_QN = F.cross_entropy(wide(logits_QNV).transpose(1, 2), target_QN, reduction="none")
    correct_QN = (logits_QNV.argmax(-1) == target_QN) & has_loss_QN
    return torch.where(has_loss_QN, loss_QN * weights_QN, 0).sum(1), correct_QN.sum(1).float()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, targets_QN: Tensor, weights_QN: Tensor, needs_grad: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, weights = tensors[0::2], tensors[1::2]
        num_heads, num_rows = targets_QN.shape
        chunks = _slices(num_rows, CHUNK_LOGITS, weights[0])
        grads = [
            _grad_buffer(t, len(chunks)) if needed else None for needed, t in zip(needs_grad, tensors, strict=True)
        ]
        loss_Q, correct_Q = torch.zeros(2, num_heads, device=targets_QN.device).unbind(0)
        for k in range(num_heads):
            for rows in chunks:
                logits_MV = product(inputs[0][k, rows], weights[0][k])
                for x, weight in zip(inputs[1:], weights[1:], strict=True):
                    logits_MV += product(x[k, rows], weight[k])
                weight_M = weights_QN[k, rows]
                target_M = torch.where(weight_M > 0, targets_QN[k, rows], 0)
                for part in _slices(len(logits_MV), CACHED_LOGITS, weights[0]):
                    loss, hits = _rows_loss(logits_MV[part], target_M[part], weight_M[part])
                    loss_Q[k] += loss
                    correct_Q[k] += hits
                if any(needs_grad):
                    _add_grads(grads, tensors, logits_MV, weight_M, k, rows)
        ctx.save_for_backward(*(grad.to(t.dtype) for grad, t in zip(grads, tensors, strict=True) if grad is not None))
        ctx.needs_grad = needs_grad
        ctx.mark_non_differentiable(correct_Q)
        return loss_Q, correct_Q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Q: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return (None, None, None, *(_scaled(next(saved), grad_Q) if needed else None for needed in ctx.needs_grad))


def _scaled(grads: Tensor, factor_Q: Tensor) -> Tensor:
    """Multiplies the gradient of each head, [Q, .., I], in place.

    On a CPU the factors are plain numbers, because a product of two types starts with a copy there.
    """
    if grads.device.type != "cpu":
        return grads.mul_(factor_Q[:, None, None])
    for grad, factor in zip(grads, factor_Q.tolist(), strict=True):
        grad.mul_(factor)
    return grads


def _slices(num_rows: int, budget: Mapping[str, int], weight_QVI: Tensor) -> list[slice]:
    size = max(1, budget.get(weight_QVI.device.type, 2**27) // weight_QVI.shape[1])
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _rows_loss(logits_MV: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted loss and hits of some rows; the gradient of each row's own loss, not weighted, replaces the logits."""
    scores_MV = logits_MV.float()
    maximum_M1, target_M1 = scores_MV.amax(-1, keepdim=True), target_M[:, None]
    right_M1 = scores_MV.gather(1, target_M1)
    has_loss_M = weight_M > 0
    hits = _count_hits(scores_MV, target_M, (right_M1 == maximum_M1)[:, 0] & has_loss_M)
    p_MV = torch.softmax(scores_MV, -1)
    # The largest probability is 1 / sum(exp(score - maximum)), which saves a further pass over the scores.
    loss_M1 = maximum_M1 - p_MV.amax(-1, keepdim=True).log() - right_M1
    logits_MV.copy_(p_MV.scatter_add_(1, target_M1, torch.full_like(right_M1, -1)))
    return torch.where(has_loss_M, loss_M1[:, 0] * weight_M, 0).sum(), hits


def _count_hits(scores_MV: Tensor, target_M: Tensor, is_best_M: Tensor) -> Tensor:
    """Number of rows of `is_best_M` whose target is the first of the best scores."""
    if scores_MV.device.type != "cpu":
        return ((scores_MV.argmax(-1) == target_M) & is_best_M).sum()
    # On a CPU argmax takes as long as a softmax, so that only rows that may be hits get one.
    rows = is_best_M.nonzero()[:, 0]
    return (scores_MV.index_select(0, rows).argmax(-1) == target_M[rows]).sum()


def _grad_buffer(tensor: Tensor, num_chunks: int) -> Tensor:
    # Sums over several chunks are fp32, whatever the type of the weight.
    return torch.empty_like(tensor) if num_chunks == 1 else torch.zeros_like(tensor, dtype=torch.float32)


def _add_grads(
    grads: Sequence[Tensor | None], tensors: Sequence[Tensor], grad_MV: Tensor, weight_M: Tensor, k: int, rows: slice
) -> None:
    """Adds the chunk's gradients; the rows' weights multiply the narrow factors, not the wide vocabulary."""
    is_whole = rows.start == 0 and rows.stop == tensors[0].shape[1]
    for i in range(0, len(tensors), 2):
        grad_input, grad_weight = grads[i], grads[i + 1]
        if grad_input is not None:
            torch.mul(product(grad_MV, tensors[i + 1][k].t()), weight_M[:, None], out=grad_input[k, rows])
        if grad_weight is not None:
            weighted_MI = (tensors[i][k, rows] * weight_M[:, None]).to(grad_MV.dtype)
            if is_whole:
                weight_gradient(grad_MV, weighted_MI, out=grad_weight[k])
            else:
                grad_weight[k] += weight_gradient(grad_MV, weighted_MI)
