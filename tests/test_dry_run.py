"""Steps of the 7B model on a GPU that computes nothing: no mixed devices, no work on the host, bounded memory."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.dry_run.fake_gpu import build
from tests.dry_run.run import NAMES, run_dry


class StepLimits(NamedTuple):
    """What a step may take: figures of the dry run with a margin of some percent."""

    peak_gb: float
    waits: int
    """How often the host may wait for the GPU in a step."""
    kernels: int
    """Of a micro-batch, forward and backward."""
    executed: float
    """FLOPs over useful ones."""
    unfused_kb: float
    """Bytes a frame that operators without a matrix product or attention move."""


LIMITS = {
    "mix_real_synth, 8 ranks": StepLimits(68.5, 2, 3800, 1.05, 9.2e4),
    "mix_real_synth_4gpu, 2 passes": StepLimits(63, 2, 3600, 1.05, 1.26e5),
    "mix_real_synth_2nodes": StepLimits(42, 2, 3500, 1.05, 1.17e5),
    "lora_voice": StepLimits(53.5, 2, 5150, 1.05, 7.6e4),
    "lora_voice, int8 base": StepLimits(44, 2, 5300, 1.05, 8.8e4),
    "lora_voice_24gb": StepLimits(15.2, 2, 6600, 1.55, 1.2e5),
    "streaming, 1 call": StepLimits(17.2, 0, 1300, 1.05, 3e5),
    "streaming, 32 calls": StepLimits(66.5, 0, 1300, 1.15, 2.3e4),
}


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return build()
    except RuntimeError as why:
        pytest.skip(str(why))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_7b_model_is_one_a_gpu_can_run(name: str, library: Path) -> None:
    if "base" in name or "24gb" in name:  # A base in fewer bits.
        pytest.importorskip("bitsandbytes")
    found = run_dry(name, library)
    assert not found["faults"]
    limits, row = LIMITS[name], found["table"]
    assert row["host waits"] == limits.waits
    assert 0.5 * limits.peak_gb < row["peak GB"] < limits.peak_gb
    assert 0 < row["kernels a pass"] < limits.kernels
    assert 1 <= row["executed / useful"] < limits.executed
    assert 0 < row["unfused kB a frame"] < limits.unfused_kb
    assert found.get("padding", 0) < 0.001
    if planned := found.get("planned"):  # Two ways to the same figures: counted, and in closed form.
        assert planned["peak GB"] == pytest.approx(row["peak GB"], rel=0.05)
        assert planned["ms"] == pytest.approx(row["ms, estimated"], rel=0.1)


def test_each_kind_of_fault_is_found(library: Path) -> None:
    found = run_dry("faults", library)
    assert [fault.partition(" at ")[0] for fault in found["faults"]] == [
        "index mixes devices",
        "mul runs on the host",
        "the host waits for a copy",
        "the host asks for a value",
    ]
