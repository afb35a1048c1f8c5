"""Whether a device that the user named can be used, and how much memory it has left."""

import platform
from pathlib import Path

import torch

from model.errors import UserError


def check_device(device: str) -> None:
    """Raises UserError with code "no-device" if torch cannot put a tensor on `device` on this machine."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as why:
        reason = str(why).splitlines()[0]
        raise UserError(
            f"device {device!r} is not usable on {platform.node()} ({reason}): choose cpu, cuda or cuda:N",
            code="no-device",
        ) from why


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is not in use; what caches hold may be had, and counts as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/meminfo names no MemAvailable: this system cannot be measured", code="no-device")
