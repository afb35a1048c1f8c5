"""Devices by name: the CPU is there, others are refused with the reason."""

import pytest

from model.devices import check_device
from tests.refusals import refused


def test_the_cpu_is_usable() -> None:
    check_device("cpu")


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "nowhere"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with refused("no-device", device, "choose cpu"):
        check_device(device)
