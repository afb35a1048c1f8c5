"""Whether a device that the user named can be used."""

import platform

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
