"""Optional packages that are missing, and files that ship."""

import json
from pathlib import Path

import pytest

from model.assets import asset
from model.extras import package_dir, require
from tests.refusals import refused


def test_a_package_that_is_there_is_imported_or_found() -> None:
    assert require("json.decoder", extra="tts").JSONDecoder
    assert package_dir("json", extra="tts") == Path(json.__file__).parent


def test_a_package_that_is_missing_names_its_install_command() -> None:
    for find in (require, package_dir):
        with refused("missing-package", "no_such_package", "pip install 'ppx-train[tts]'"):
            find("no_such_package", extra="tts")


def test_a_package_that_lacks_another_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with refused("missing-package", "needs_more", "no_such_package"):
        require("needs_more", extra="tts")


def test_a_file_that_does_not_ship_names_those_that_do() -> None:
    assert asset("mimi_small.safetensors").is_file()
    with refused("not-found", "mimi_large.safetensors", "mimi_small.safetensors"):
        asset("mimi_large.safetensors")
