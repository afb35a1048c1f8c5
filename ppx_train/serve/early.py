"""Sound that comes before the agent is ready."""

# Shapes: S samples

import numpy as np

from model.config import SAMPLE_RATE
from ppx_train.inference.session import Audio


class EarlySound:
    """Sound from before the handshake: the newest few seconds."""

    def __init__(self, seconds: float) -> None:
        self._most = int(seconds * SAMPLE_RATE)
        self._kept_S: Audio = np.zeros(0, np.float32)

    def add(self, wav_S: Audio) -> None:
        """Adds samples and drops the oldest."""
        self._kept_S = np.concatenate([self._kept_S, wav_S])[-self._most :] if self._most else self._kept_S

    def take(self) -> Audio:
        """Returns what is kept, and forgets it."""
        kept_S, self._kept_S = self._kept_S, np.zeros(0, np.float32)
        return kept_S
