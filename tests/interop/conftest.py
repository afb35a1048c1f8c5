"""The public runtimes, where they are at hand: Kyutai's package installed beside the project, NVIDIA's as a checkout.

    pip install --no-deps moshi==0.2.13
    PPX_PERSONAPLEX=path/to/personaplex  (a clone of NVIDIA/personaplex; it imports sphn)

Both packages are called `moshi`: NVIDIA's is imported under another name, its imports are relative.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("NO_TORCH_COMPILE", "1")
CHECKOUT = "PPX_PERSONAPLEX"
PERSONAPLEX = "moshi_of_personaplex"


@pytest.fixture(scope="session")
def kyutai() -> Any:
    """Kyutai's `moshi.models` package."""
    pytest.importorskip("moshi", reason="Kyutai's package is not installed: pip install --no-deps moshi==0.2.13")
    models = importlib.import_module("moshi.models")
    if not hasattr(models.loaders, "CheckpointInfo"):
        pytest.skip("the installed package `moshi` is not Kyutai's")
    return models


@pytest.fixture(scope="session")
def personaplex() -> Any:
    """NVIDIA's `moshi.models` package."""
    folder = os.environ.get(CHECKOUT)
    if not folder:
        pytest.skip(f"{CHECKOUT} names no checkout of NVIDIA/personaplex")
    for package in (Path(folder) / "moshi" / "moshi", Path(folder) / "moshi"):
        if (package / "models" / "lm.py").is_file():
            break
    else:
        pytest.fail(f"{CHECKOUT}={folder}: no package moshi there")
    pytest.importorskip("sphn", reason="NVIDIA's package imports sphn: pip install sphn")
    if PERSONAPLEX not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PERSONAPLEX, package / "__init__.py", submodule_search_locations=[str(package)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[PERSONAPLEX] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{PERSONAPLEX}.models")
