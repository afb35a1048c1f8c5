"""Measures of a clip against their closed forms, and what is said of clips that are no voice."""

import numpy as np
import pytest

from data_pipelines.sound.clip_faults import ClipFacts, faults
from data_pipelines.sound.levels import flat_tops, level_spread

RATE = 24_000
GOOD = ClipFacts(seconds=5.0, lufs=-24.0, clipped=0, spread_db=30.0, speech_share=0.9, likeness=0.9)


def tone(gain: float, seconds: float = 1.0) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_the_spread_is_the_ratio_of_two_levels_and_little_in_steady_noise() -> None:
    assert level_spread(np.concatenate([tone(0.5), tone(0.005)]), RATE) == pytest.approx(40, abs=0.1)
    assert level_spread(np.random.default_rng(0).standard_normal(RATE * 3).astype(np.float32), RATE) < 2


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.1])
def test_tops_that_were_cut_off_are_found_at_any_level(gain: float) -> None:
    cut = np.clip(tone(1.3), -1, 1) * np.float32(gain)
    assert flat_tops(cut[None]) > 100
    assert flat_tops(tone(0.9)[None] * np.float32(gain)) == 0


def test_a_soft_clip_in_coarse_steps_is_not_clipped() -> None:
    assert flat_tops(np.round(tone(5)) / np.float32(32768)) == 0
    assert flat_tops(np.zeros(1000, np.float32)) == 0


@pytest.mark.parametrize(
    ("check", "facts", "said"),
    [
        ("level", {"lufs": -np.inf, "spread_db": 0.0}, "silent"),
        ("level", {"lufs": -55.0}, "too quiet (-55 LUFS)"),
        ("clipping", {"clipped": 7}, "clipped at 7 places"),
        ("noise", {"spread_db": 9.0}, "differ by 9.0 dB"),
        ("speech", {"speech_share": 0.2}, "only 20% of it is speech"),
        ("speakers", {"likeness": 0.5}, "more than one person"),
    ],
)
def test_each_fault_is_named_and_may_be_skipped(check: str, facts: dict[str, float], said: str) -> None:
    bad = ClipFacts(**(vars(GOOD) | facts))
    found = faults(bad)
    assert list(found) == [check] and said in found[check]
    assert faults(GOOD) == {}
    if check != "level" or facts["lufs"] > -60:
        assert faults(bad, [check]) == {}


def test_several_faults_are_named_together() -> None:
    assert list(faults(ClipFacts(**(vars(GOOD) | {"clipped": 1, "spread_db": 1.0})))) == ["clipping", "noise"]
