"""Which updates are skipped, by the norm of their gradient."""

import math
from collections import deque
from statistics import median
from typing import Any

HISTORY = 100
"""Gradient norms whose median a spike is compared with."""
MIN_HISTORY = 20
"""Norms that must be known first: the median of a few steps says little."""
MAX_SKIPPED = 5
"""A run ends after this many skipped updates in a row."""


class SpikeGuard:
    """Counts updates that are skipped: their gradient norm is not finite, or above `factor` times the running median.

    Spikes belong to the median too, so that a lasting change of the norm becomes the rule. Every rank has the same
    norms and so decides alike.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=HISTORY)
        self.skipped = 0
        self.in_a_row = 0

    def objection(self, norm: float) -> str:
        """Returns why an update with this gradient norm is skipped, and counts it; empty if it is not."""
        why = ""
        if not math.isfinite(norm):
            why = f"its gradient norm is {norm}"
        else:
            if self.factor is not None and len(self.norms) >= MIN_HISTORY:
                usual = median(self.norms)
                if norm > self.factor * usual:
                    why = f"its gradient norm {norm:.4g} is {norm / usual:.1f} times the median"
            self.norms.append(norm)
        self.skipped += bool(why)
        self.in_a_row = self.in_a_row + 1 if why else 0
        return why

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to decide as an unbroken one."""
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self.norms = deque(state["norms"], maxlen=HISTORY)
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
