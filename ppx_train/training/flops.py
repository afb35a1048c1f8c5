"""The work that training needs, and how fast devices can do it at best: what model FLOP use (MFU) is made of.

Only useful work counts, as usual: what the backward pass computes again is left out, and so are the heads and the depth
transformer where no target has a loss.
"""

# Shapes: K streams

import re
from collections.abc import Sequence

import torch

from model.duplex import DuplexLM

DENSE_BF16 = {
    "A10": 125, "A30": 165, "A40": 149.7, "A100": 312, "L4": 121, "L40": 181, "L40S": 362, "RTX A6000": 154.8,
    "RTX 4090": 165.2, "H100": 989, "H100 PCIe": 756, "H100 NVL": 835, "H200": 989, "H200 NVL": 835, "GH200": 989,
    "B200": 2250, "MI300X": 1307,
}  # fmt: skip
"""TFLOP/s of dense bf16 products, by names of devices, from their makers' data sheets."""


def peak_flops(device_name: str) -> float | None:
    """Returns the peak in FLOP/s of the longest name that `device_name` holds; None if it holds none, or is a slice."""
    known = [name for name in DENSE_BF16 if re.search(rf"\b{name}\b", device_name)]
    if not known or "MIG" in device_name:
        return None
    return DENSE_BF16[max(known, key=len)] * 1e12


def device_peak(device: torch.device, precision: str) -> float | None:
    """Returns the peak in FLOP/s of what a run computes on; None on a CPU, and where it is not known."""
    if device.type != "cuda" or precision != "bf16-mixed":
        return None
    return peak_flops(torch.cuda.get_device_name(device))


def keys_seen(frames: int, context: int) -> float:
    """Returns how many keys the queries of a sequence see in all, as `DuplexLM.flops_per_frame` counts them."""
    beyond = max(0, frames - context)
    return (frames - beyond) ** 2 / 2 + beyond * context


class TrainingFlops:
    """FLOPs of the forward and backward passes of a model: 2 for each weight and row, and twice that backward.

    Frozen weights under adapters need no gradient of their own, so that they count once backward.
    """

    def __init__(self, lm: DuplexLM) -> None:
        """`lm` may be without values, on the meta device."""
        self.lm_config = lm.config
        config, dim, depth_dim = lm.config, lm.config.dim, lm.config.depformer_dim
        temporal = config.num_layers * (4 * dim**2 + 3 * dim * config.feedforward_hidden)
        step = config.depformer_num_layers * (4 * depth_dim**2 + 3 * depth_dim * config.depformer_hidden)
        step += dim * depth_dim + config.card * depth_dim
        self.weights = {"temporal": float(temporal), "text_head": float(config.text_card * dim), "depth": float(step)}
        self.adapters = dict.fromkeys(self.weights, 0.0)
        for name, parameter in lm.named_parameters():
            if "lora_" in name:
                part = name.partition(".")[0]
                self.adapters[part] += parameter.numel() / (config.dep_q if part == "depth" else 1)
        self.has_adapters = any(self.adapters.values())

    def __call__(self, frames: float, keys: float, count_K: Sequence[float]) -> float:
        """Returns the FLOPs of some sequences.

        frames: of all sequences; keys: their `keys_seen`, summed; count_K: targets with a loss, of each stream.
        """
        config = self.lm_config
        rows = {"temporal": frames, "text_head": count_K[0], "depth": sum(count_K[1 : 1 + config.dep_q])}
        passes = 2 if self.has_adapters else 3
        per_row = {part: passes * weights + 3 * self.adapters[part] for part, weights in self.weights.items()}
        products = sum(2.0 * per_row[part] * rows[part] for part in rows)
        return products + 3 * 4.0 * config.dim * config.num_layers * keys
