"""GPUs that runs are planned for."""

import re
from dataclasses import dataclass

from model.errors import UserError
from ppx_train.training.flops import peak_flops


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU by its maker's data sheet: bytes of memory, bytes/s of its bandwidth, FLOP/s of dense bf16 products."""

    name: str
    memory: float
    bandwidth: float

    @property
    def peak(self) -> float:
        """FLOP/s of dense bf16 products."""
        peak = peak_flops(self.name)
        assert peak is not None
        return peak


GPUS = tuple(
    Gpu(name=name, memory=gigabytes * 1e9, bandwidth=terabytes * 1e12)
    for name, gigabytes, terabytes in (
        ("RTX 4090", 24, 1.008),
        ("A100 40GB", 40, 1.555),
        ("L40S", 48, 0.864),
        ("A100 80GB", 80, 2.039),
        ("H100", 80, 3.35),
        ("H200", 141, 4.8),
    )
)
"""One for each size of memory that is common, from small to large."""


def gpu_of(device_name: str, memory: float) -> Gpu | None:
    """Returns which of GPUS a device is, by the name that its driver gives it and its bytes; None for another one."""
    for gpu in GPUS:
        kind = re.sub(r" \d+GB$", "", gpu.name)
        # Of the maker's bytes the driver keeps some, and counts others in powers of two.
        if re.search(rf"\b{kind}\b", device_name) and 0.85 < memory / gpu.memory < 1.15 and peak_flops(device_name):
            return gpu
    return None


def find_gpu(name: str) -> Gpu:
    """Returns the GPU of this name, in any case. Raises: UserError for a name that is not known."""
    for gpu in GPUS:
        if gpu.name.lower() == name.lower():
            return gpu
    known = ", ".join(f"{gpu.name} ({gpu.memory / 1e9:.0f} GB)" for gpu in GPUS)
    raise UserError(f"--gpu {name}: choose one of {known}; for another, one with as much memory", code="unknown-name")
