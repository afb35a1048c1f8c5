from pathlib import Path

import pytest

from tests.ppx_train.fixtures import make_shards


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a codec, a tokenizer and shards of 16 short samples."""
    folder = tmp_path_factory.mktemp("prepared")
    make_shards(folder)
    return folder
