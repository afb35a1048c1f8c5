"""What the tests of Fisher's import share."""

from pathlib import Path

import pytest

from tests.data_pipelines.recordings.fisher.calls import FakeAligner, talk, write_call


@pytest.fixture()
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake aligner instead of pocketsphinx."""
    pytest.importorskip("desphere_native")
    aligner = FakeAligner()
    monkeypatch.setattr("data_pipelines.recordings.fisher.placed.shared_aligner", lambda: aligner)
    monkeypatch.setattr("data_pipelines.recordings.fisher.importer.shared_aligner", lambda: aligner)


@pytest.fixture()
def corpus(tmp_path: Path, fake: None) -> Path:
    """A corpus of one call of 90 s without tables."""
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    return tmp_path / "corpus"
