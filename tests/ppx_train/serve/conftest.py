"""A small model with two voices, and browsers that talk to it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ppx_train.inference.loading import Release
from tests.browser import speak
from tests.ppx_train.inference.conftest import folder, release  # noqa: F401 - the fixtures of the engine's tests
from tests.ppx_train.voices.conftest import spoken  # noqa: F401 - a fixture of the tests of voices


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


@pytest.fixture(scope="package")
def stage(voiced: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server and browsers with and without a microphone, which hears spoken words."""
    from tests.ppx_train.serve.page_stage import open_stage

    with open_stage(voiced, speak(tmp_path_factory.mktemp("speech") / "words.wav")) as stage:
        yield stage


@pytest.fixture(scope="package")
def js() -> Iterator[Any]:
    """Runs the body of a function in a browser, beside the page's modules."""
    from tests.ppx_train.serve.page_stage import open_js

    with open_js() as run:
        yield run
