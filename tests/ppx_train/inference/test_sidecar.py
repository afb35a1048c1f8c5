"""personaplex.json: it comes back as it was written, the former format is read, and damage is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppx_train.inference.sidecar import AdapterBase, AdapterShape, HubLicence, Ingredient, read_sidecar
from tests.ppx_train.fixtures import sidecar_of
from tests.ppx_train.inference.noise import CONFIG
from tests.refusals import refused

DATA = Ingredient(part="training data", licence="CC0-1.0", hours=1.5)
START = Ingredient(part="start weights", name="org/start", revision="abc", licence="mit", ingredients=(DATA,))


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "personaplex.json").write_text(json.dumps(content))
    return folder


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    adapter = {"base": AdapterBase(name="org/base", commit=None), "adapter": AdapterShape(rank=3, scaling=2.0)}
    for changes in (
        {"ingredients": (START, DATA), "licence": HubLicence(id="other", name="own", link="https://example.org")},
        {"layout": "lora", "ingredients": (), **adapter},
    ):
        sidecar = sidecar_of(CONFIG, **changes)
        assert read_sidecar(write(tmp_path, sidecar.to_json())) == sidecar
        assert sidecar.lm_config("x") == CONFIG
    assert json.loads((tmp_path / "personaplex.json").read_text())["base"] == {"name": "org/base", "commit": None}


def test_the_former_format_is_read_and_says_nothing_about_ingredients(tmp_path: Path) -> None:
    content = sidecar_of(CONFIG).to_json() | {"format": 1}
    del content["ingredients"]
    sidecar = read_sidecar(write(tmp_path, content))
    assert sidecar is not None and sidecar.ingredients is None and sidecar.prompt.pause_frames == 6


def test_a_folder_without_a_record_has_none(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 3}, "format is 3, it should be 1 or 2"),
        ({"ingredients": None}, "ingredients is missing"),
        ({"ingredients": [{"part": "rumours"}]}, "ingredients[0].part is 'rumours'"),
        ({"prompt": {}}, "prompt.order is missing"),
        ({"origin": {"recipe": "a", "step": "1", "engine": "e", "request": ""}}, "origin.step is '1'"),
        ({"layout": "lora"}, "names no base and adapter"),
        ({"colour": "red"}, "colour is no field"),
        ({"mimi_name": 7}, "mimi_name is 7"),
    ],
)
def test_damage_is_one_line_that_names_the_field(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    content = sidecar_of(CONFIG).to_json() | change
    write(tmp_path, {key: value for key, value in content.items() if value is not None})
    with refused("bad-record", tmp_path / "personaplex.json", named):
        read_sidecar(tmp_path)


def test_text_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "personaplex.json").write_text("{")
    with refused("bad-record", tmp_path / "personaplex.json", "JSON"):
        read_sidecar(tmp_path)
