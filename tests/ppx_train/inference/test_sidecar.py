"""personaplex.json: it comes back as it was written, the former format is read, and damage is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import UserError
from ppx_train.inference.loading import load_release
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
        ({"mimi_name": "../../etc/passwd"}, "mimi_name is '../../etc/passwd'"),
        ({"tokenizer_name": ""}, "tokenizer_name is ''"),
        ({"layout": "onnx"}, "layout is 'onnx'"),
        ({"inference_dep_q": 0}, "inference_dep_q is 0"),
        ({"prompt.pause_frames": 10**9}, "prompt.pause_frames is 1000000000"),
        ({"prompt.pause_frames": -1}, "prompt.pause_frames is -1"),
        ({"prompt.voice_lufs": float("nan")}, "prompt.voice_lufs is nan"),
        ({"prompt.silence_codes": [0] * 7}, "prompt.silence_codes is [0, 0"),
        ({"prompt.sine_codes": [0] * 7 + [-1]}, "prompt.sine_codes[7] is -1"),
        ({"prompt.order": ["text"]}, "prompt.order"),
        ({"layout": "lora", "base": {"name": "a\0b", "commit": None}}, "base.name is 'a"),
        ({"adapter": {"rank": 0, "scaling": 1.0}}, "adapter.rank is 0"),
        ({"adapter": {"rank": 1, "scaling": float("inf")}}, "adapter.scaling is inf"),
    ],
)
def test_damage_is_one_line_that_names_the_field(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    content = sidecar_of(CONFIG).to_json()
    for path, value in change.items():
        *above, name = path.split(".")
        (content[above[0]] if above else content)[name] = value
    write(tmp_path, {key: value for key, value in content.items() if value is not None})
    with refused("bad-record", tmp_path / "personaplex.json", named):
        read_sidecar(tmp_path)


def test_whatever_is_changed_is_refused_in_one_line_or_loads(folder: Path, tmp_path: Path) -> None:
    """Every value of the record in turn becomes something else; what is still a record is loaded and prompted."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = sidecar_of(CONFIG, ingredients=(START,), licence=HubLicence(id="mit")).to_json()
    refusals = loads = 0
    for path in paths_of(whole):
        for value in (None, -1, 10**12, float("nan")):
            write(tmp_path, changed(whole, path, value))
            try:
                read_sidecar(tmp_path)
                if path[0] in ("lm", "prompt", "mimi_name", "tokenizer_name", "base", "adapter"):
                    load_release(tmp_path).prompt(None, "hello")
                loads += 1
            except UserError as why:
                assert "\n" not in str(why), str(why)
                refusals += 1
    assert refusals > 100 and loads > 5


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [path] * bool(path) + [inner for key, item in items for inner in paths_of(item, (*path, key))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested JSON with another value at a path."""
    copy = json.loads(json.dumps(content))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copy


def test_text_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "personaplex.json").write_text("{")
    with refused("bad-record", tmp_path / "personaplex.json", "JSON"):
        read_sidecar(tmp_path)
