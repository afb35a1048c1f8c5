"""The shape of the small model, and audio for it."""

import numpy as np
import numpy.typing as npt

from model.config import LMConfig

CONFIG = LMConfig(
    dim=32, num_layers=2, num_heads=2, depformer_dim=16, depformer_dim_feedforward=66, depformer_num_heads=2,
    depformer_num_layers=1, text_card=320, card=64, context=1500,
)  # fmt: skip


def noise(seconds: float, rate: int = 24000, channels: int = 1, seed: int = 0) -> npt.NDArray[np.float32]:
    """White noise [samples, channels]."""
    samples = 0.2 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    return samples.astype(np.float32)
