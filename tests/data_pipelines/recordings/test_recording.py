"""Names of recordings and fields of their records."""

import numpy as np
import pytest

from data_pipelines.recordings.recording import at_24k, field_of, recording_id


def test_ids_can_name_folders_and_never_meet() -> None:
    names = ["a/b.wav", "a_b.wav", "a.b", "a b", "\u00e9", "x" * 300, "x" * 301, "plain-1", "a/b"]
    ids = [recording_id("src", name) for name in names]
    assert len(set(ids)) == len(ids) and ids[7] == "src-plain-1"
    assert all(len(id) < 110 and id.isascii() and set(id) <= set(map(chr, range(128))) for id in ids)


def test_fields_are_found_by_dotted_paths() -> None:
    metadata = {"people": [{"id": "x1"}, {"id": 2}], "topic": "cats"}
    assert field_of(metadata, "people.0.id") == "x1" and field_of(metadata, "people.1.id") == 2
    assert [field_of(metadata, path) for path in ("people.2.id", "topic.id", "nothing")] == [None, None, None]


def test_very_hot_audio_is_lowered_and_other_audio_is_not() -> None:
    hot = np.ones((2, 480), np.float32)
    lowered, gain = at_24k(hot, 24000)
    assert gain == 0.98 and float(np.abs(lowered).max()) == pytest.approx(0.98)
    assert at_24k(hot * np.float32(0.5), 24000)[1] == 1.0
