"""Cross-entropy of a linear head, computed in chunks together with its gradient.

The logits of 16 codebooks or of 32000 text pieces are the largest tensors of a training step. Here no more than one
chunk of them exists at a time: its gradient is taken on the spot and only the gradients of the head's input and weight
are kept. That costs no second matmul (unlike recomputing) and, on a CPU, stays in the cache.
"""

# Shapes: K heads (one per depth step; 1 for text), N rows, V vocabulary, I input width

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MIN_CHUNK_ROWS = 256  # fewer rows make the matmul wait for the weights
CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**27}  # 4 MB fit the cache; 512 MB is 4096 rows of 32000 text pieces


def head_loss(terms: Sequence[tuple[Tensor, Tensor]], targets_KN: Tensor, weights_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the K heads and their hits, summed over the rows, both fp32 [K].

    terms: pairs (input [K, N, I], weight [K, V, I]); the logits are the sum of input @ weight^T over the pairs.
    Rows of weight 0 add nothing, whatever their target (even ZERO_ID). A hit is argmax == target at weight > 0.
    The logits are made in the type of the inputs (autocast's type inside autocast), all else is fp32.
    """
    device = targets_KN.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        terms = [(x.to(dtype), weight.to(dtype)) for x, weight in terms]
    tensors = [tensor for term in terms for tensor in term]
    needs_grad = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)
    with torch.autocast(device, enabled=False):
        return _HeadLoss.apply(targets_KN, weights_KN, needs_grad, *tensors)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, targets_KN: Tensor, weights_KN: Tensor, needs_grad: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, weights = tensors[0::2], tensors[1::2]
        grads = [_grad_buffer(t, is_weight=i % 2 == 1) if needs_grad[i] else None for i, t in enumerate(tensors)]
        num_heads, num_rows = targets_KN.shape
        vocabulary = weights[0].shape[1]
        chunk = max(MIN_CHUNK_ROWS, CHUNK_LOGITS.get(targets_KN.device.type, 2**27) // vocabulary)
        loss_K = torch.zeros(num_heads, device=targets_KN.device)
        correct_K = torch.zeros(num_heads, device=targets_KN.device)
        for k in range(num_heads):
            for start in range(0, num_rows, chunk):
                rows = slice(start, start + chunk)
                target_N1, weight_N1 = targets_KN[k, rows, None].clamp(min=0), weights_KN[k, rows, None]
                logits_NV = inputs[0][k, rows] @ weights[0][k].T
                for x, weight in zip(inputs[1:], weights[1:], strict=True):
                    logits_NV += x[k, rows] @ weight[k].T
                logits_NV = logits_NV.float()
                maximum_N1, predicted_N1 = logits_NV.max(-1, keepdim=True)
                right_N1 = logits_NV.gather(1, target_N1)
                grad_NV = torch.softmax(logits_NV, -1)
                # the largest probability is 1 / sum(exp(logits - maximum)): no further pass over the logits
                entropy_N1 = maximum_N1 - grad_NV.amax(-1, keepdim=True).log() - right_N1
                has_loss_N1 = weight_N1 > 0
                loss_K[k] += torch.where(has_loss_N1, entropy_N1 * weight_N1, 0).sum()
                correct_K[k] += ((predicted_N1 == target_N1) & has_loss_N1).sum()
                if any(needs_grad):
                    grad_NV *= weight_N1
                    grad_NV.scatter_add_(1, target_N1, -weight_N1)
                    _add_grads(grads, tensors, grad_NV.to(inputs[0].dtype), k, rows)
        ctx.save_for_backward(*(grad.to(t.dtype) for grad, t in zip(grads, tensors, strict=True) if grad is not None))
        ctx.needs_grad = needs_grad
        ctx.mark_non_differentiable(correct_K)
        return loss_K, correct_K

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        scaled = []
        for needed in ctx.needs_grad:
            grad = next(saved) if needed else None
            scaled.append(None if grad is None else grad * grad_K[:, None, None].to(grad.dtype))
        return (None, None, None, *scaled)


def _grad_buffer(tensor: Tensor, is_weight: bool) -> Tensor:
    # a weight's gradient is summed over the chunks: in fp32, whatever the weight's type
    return torch.zeros_like(tensor, dtype=torch.float32) if is_weight else torch.empty_like(tensor)


def _add_grads(grads: Sequence[Tensor | None], tensors: Sequence[Tensor], grad_NV: Tensor, k: int, rows: slice) -> None:
    for i in range(0, len(tensors), 2):
        grad_input, grad_weight = grads[i], grads[i + 1]
        if grad_input is not None:
            grad_input[k, rows] = grad_NV @ tensors[i + 1][k]
        if grad_weight is not None:
            grad_weight[k] += grad_NV.T @ tensors[i][k, rows]
