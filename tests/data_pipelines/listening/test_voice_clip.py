"""The two most different parts of a clip, against a plain search."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

from data_pipelines.listening.speaker import RATE_HZ
from data_pipelines.listening.voice_clip import likeness, stretches_apart
from data_pipelines.sound.audio import Audio


@pytest.mark.parametrize("count", [5, 9, 14])
def test_all_stretches_are_compared_with_all_windows_that_share_nothing_with_them(count: int) -> None:
    apart = 4
    windows = np.random.default_rng(count).standard_normal((count, 6)).astype(np.float32)
    least = 1.0
    for first, last in combinations_with_replacement(range(count), 2):
        inside = range(first, last + 1)
        others = [n for n in range(count) if all(abs(n - k) >= apart for k in inside)]
        if others:
            a, b = windows[list(inside)].sum(0), windows[others].sum(0)
            least = min(least, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert stretches_apart(windows, apart) == pytest.approx(least, abs=1e-5)


class ByLevel:
    """An embedder that takes loud speech for one person and soft speech for another."""

    name = "level"

    def embed(self, voiced: Audio) -> Audio:
        is_loud = np.abs(voiced).mean() > 0.1
        return np.array([is_loud, not is_loud], np.float32)

    def identity(self) -> dict[str, str]:
        return {}


def test_a_part_of_another_speaker_is_found_wherever_it_is_and_short_speech_is_left_undecided() -> None:
    loud, soft = (np.full(3 * RATE_HZ, level, np.float32) for level in (0.5, 0.05))
    for parts in ((loud, soft), (loud, soft, loud), (soft, loud, loud, soft)):
        heard = likeness(np.concatenate(parts), ByLevel())
        assert heard is not None and heard < 0.3
    assert likeness(np.concatenate([loud, loud]), ByLevel()) == pytest.approx(1)
    assert likeness(loud, ByLevel()) is None
