"""A streaming step captured as CUDA graphs: one launch instead of a thousand."""

# Shapes: B batch

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP_STEPS = 3
"""Steps before a capture, in which libraries allocate what they need."""


class StepGraphs:
    """Graphs of `advance(live)`, one for each length `live` of the ring that is read, captured at once.

    advance: works on static buffers alone and returns a static tensor; it is not kept. active_B: which rows it
    advances; all are switched off while warming up, so that the conversations do not move.
    """

    def __init__(self, advance: Callable[[int], Tensor], active_B: Tensor, lengths: Sequence[int]) -> None:
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        kept_B = active_B.clone()
        active_B.fill_(False)
        collects = gc.isenabled()
        gc.disable()  # A collection during a capture may free memory of the device, which ends the capture.
        try:
            # The longest first: all graphs share one pool, which it makes large enough.
            for live in sorted(lengths, reverse=True):
                self._graphs[live] = self._capture(advance, live, active_B.device)
        finally:
            active_B.copy_(kept_B)
            if collects:
                gc.enable()

    def replay(self, live: int) -> Tensor:
        """Runs one step and returns its result, which the next step overwrites."""
        graph, result = self._graphs[live]
        graph.replay()
        return result

    def _capture(
        self, advance: Callable[[int], Tensor], live: int, device: torch.device
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.device(device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # Libraries allocate their workspaces here, outside of the capture.
                for _ in range(WARM_UP_STEPS):
                    advance(live)
            torch.cuda.current_stream().wait_stream(side)
            # Each graph starts from the state's buffers alone, not from what another left behind. Other threads may
            # allocate meanwhile. Nothing runs while it is captured.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                result = advance(live)
        return graph, result
