"""A streaming step captured as CUDA graphs: one launch instead of a thousand."""

# Shapes: B batch

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_STEPS = 3
"""Steps before a capture, in which libraries allocate what they need."""


class StepGraphs:
    """Graphs of `advance(live)`, one per length `live` of the ring that is read, captured when first needed.

    advance: works on static buffers alone and returns a static tensor. active_B: which rows it advances; all are
    switched off while warming up, so that the conversations do not move.
    """

    def __init__(self, advance: Callable[[int], Tensor], active_B: Tensor) -> None:
        self._advance = advance
        self._active_B = active_B
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def replay(self, live: int) -> Tensor:
        """Runs one step and returns its result, which the next step overwrites."""
        if live not in self._graphs:
            self._graphs[live] = self._capture(live)
        graph, result = self._graphs[live]
        graph.replay()
        return result

    def _capture(self, live: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        active_B, device = self._active_B.clone(), self._active_B.device
        self._active_B.fill_(False)
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.device(device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # Libraries allocate their workspaces here, outside of the capture.
                for _ in range(WARM_UP_STEPS):
                    self._advance(live)
            torch.cuda.current_stream().wait_stream(side)
            # All graphs share one pool: each starts from the state's buffers alone, not from what another left behind.
            with torch.cuda.graph(graph, pool=pool):  # Nothing runs while it is captured.
                result = self._advance(live)
        self._active_B.copy_(active_B)
        return graph, result
