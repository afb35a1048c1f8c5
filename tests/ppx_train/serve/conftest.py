"""A small model with two voices."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppx_train.inference.loading import Release
from tests.ppx_train.inference.conftest import folder, release  # noqa: F401 - the fixtures of the engine's tests


@pytest.fixture(scope="session")
def voiced(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:  # noqa: F811
    """The model with the voices "ada" and "bob", and one whose name is no id."""
    voices = {}
    for n, name in enumerate(("ada", "bob", "no id")):
        codes = torch.randint(64, (8, 9 + n), generator=torch.Generator().manual_seed(n))
        voices[name] = tmp_path_factory.mktemp("voices") / f"{name}.safetensors"
        save_file({"codes": codes}, voices[name])
    return replace(release, voices=voices)


@pytest.fixture(scope="session")
def voice_paths(voiced: Release) -> list[Path]:
    return list(voiced.voices.values())
