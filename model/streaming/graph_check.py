"""Captured steps against plain ones, before a conversation: what differs is not used."""

# Shapes: B batch, A agent streams (9: text and 8 codebooks), Q codebooks (8)

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.streaming.state import StreamState

STEPS = 2
"""Steps that are compared: the second one sees what the first has written."""


@torch.no_grad()
def graph_fault(state: StreamState, advance: Callable[[int], Tensor], lengths: Sequence[int]) -> str:
    """Returns how the captured steps of a state that nothing has happened to differ from `advance`; empty if nowhere.

    The state is afterwards as it was. lengths: those of the ring that were captured.
    """
    assert state.graphs is not None
    agent_BA, user_BQ = state.agent_BA.clone(), state.user_BQ.clone()
    for live in lengths:
        outcomes = []
        for step in (advance, state.graphs.replay):
            for _ in range(STEPS):
                step(live)
            outcomes.append((state.cache.kv[:, :, :, :, :STEPS].clone().float(), state.agent_BA.clone()))
            state.cache.kv[:, :, :, :, :STEPS] = 0
            state.cache.reset()
            state.agent_BA.copy_(agent_BA)
            state.user_BQ.copy_(user_BQ)
        (plain_kv, plain_BA), (captured_kv, captured_BA) = outcomes
        off = float((captured_kv - plain_kv).norm() / plain_kv.norm())
        # The same kernels run both times, so that only sums in another order may differ.
        if not off <= 4 * torch.finfo(state.cache.kv.dtype).eps:
            return f"keys and values of {live} slots are {off:.1e} off"
        if not torch.equal(plain_BA, captured_BA):
            return f"tokens of {live} slots differ"
    return ""
