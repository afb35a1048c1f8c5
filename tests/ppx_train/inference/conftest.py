"""A model of a few thousand random weights in the public layout, and noise to speak to it."""

from pathlib import Path

import pytest
import torch

from model.duplex import DuplexLM
from model.weights.checkpoint import save_native
from ppx_train.inference.loading import Release, load_release
from tests.ppx_train.fixtures import make_codec, make_tokenizer
from tests.ppx_train.inference.noise import CONFIG


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as public ones are: without personaplex.json, with 16 depth steps."""
    folder = tmp_path_factory.mktemp("release") / "tiny"
    torch.manual_seed(0)
    save_native(folder, DuplexLM(CONFIG))
    make_codec(folder / "mimi.safetensors")
    make_tokenizer(folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="session")
def release(folder: Path) -> Release:
    return load_release(folder)
