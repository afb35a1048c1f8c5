"""Dialogue folders: sidecars are merged on reading, rejected dialogues stay out of shards, broken files are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.files import claim_folder
from data_pipelines.records.folder import (
    Role,
    Roles,
    find_dialogues,
    load_dialogue,
    read_gates,
    read_roles,
    rejections,
    signature,
)
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from model.errors import Code
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue
from tests.refusals import refused

GATES = {"format": 1, "values": {"swap_ratio": 5.0}, "rejected": [], "limits": {}, "engines": {"asr": {"name": "x"}}}


def put(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content) if not isinstance(content, str) else content)


def test_roles_and_gates_are_merged_and_the_record_stays_as_it_was(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path, "a")
    before, record = signature(folder), (folder / "meta.json").read_bytes()
    put(folder, "roles.json", {"format": 1, "left": {"prompt": "You like tea.", "level": "c"}, "provenance": {"m": 1}})
    put(folder, "gates.json", GATES)
    dialogue = load_dialogue(folder)
    assert (dialogue.left.role_prompt, dialogue.left.prompt_level) == ("You like tea.", "c")
    assert dialogue.right.role_prompt == "" and dialogue.gates["swap_ratio"] == 5
    assert dialogue.provenance == {"roles": {"m": 1}, "gate_engines": {"asr": {"name": "x"}}, "gate_limits": {}}
    assert (folder / "meta.json").read_bytes() == record
    with_roles = signature(folder, ("roles.json",))
    assert len({before, with_roles, signature(folder)}) == 3


def test_roles_are_written_without_what_is_empty_and_read_again(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path, "a")
    assert read_roles(folder) is None and read_gates(folder) is None and rejections(folder) == []
    roles = Roles(left=Role(prompt="You like tea.", level="c"), provenance={"by": "hand"})
    roles.write(folder)
    assert json.loads((folder / "roles.json").read_text()) == {
        "format": 1, "left": {"prompt": "You like tea.", "level": "c"}, "provenance": {"by": "hand"}
    }  # fmt: skip
    assert read_roles(folder) == roles


def test_keys_of_roles_that_no_field_names_are_ignored(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path, "a")
    put(folder, "roles.json", {"format": 1, "note": "mine", "left": {"prompt": "Tea.", "level": "b", "by": "me"}})
    assert read_roles(folder) == Roles(left=Role(prompt="Tea.", level="b"))
    assert load_dialogue(folder).left.role_prompt == "Tea."


@pytest.mark.parametrize("name, content, code, named", [
    ("gates.json", "{", "unreadable", "not JSON"),
    ("gates.json", {"format": 2}, "unreadable", "format 1"),
    ("gates.json", {"format": 1, "values": 3, "engines": {}}, "bad-record", "values is 3"),
    ("gates.json", {"format": 1, "values": {"dc": "low"}}, "bad-record", "values.dc is 'low', it should be a"),
    ("gates.json", {"format": 1, "rejected": "dc: 3"}, "bad-record", "rejected is 'dc: 3', it should be a valid array"),
    ("gates.json", {"format": 1, "colour": 3}, "bad-record", "colour is no field"),
    ("roles.json", {"format": 1, "left": {"prompt": "x"}}, "bad-record", "left.level is missing"),
    ("roles.json", {"format": 1, "right": {"prompt": "x", "level": ""}}, "bad-record", "right side"),
    ("roles.json", {"format": 1, "rejected": ["left"]}, "bad-record", "rejected is ['left']"),
])  # fmt: skip
def test_a_broken_sidecar_is_named(tmp_path: Path, name: str, content: Any, code: Code, named: str) -> None:
    folder = write_dialogue(tmp_path, "a")
    put(folder, name, content)
    with refused(code, folder / name, named, "delete it and run `ppx-data"):
        load_dialogue(folder)
    if name == "gates.json":
        with refused(code, folder / name, named):
            rejections(folder)


def test_a_rejected_side_is_no_agent_and_without_any_the_reasons_are_named(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path, "a", agents=("left", "right"))
    roles = {"format": 1, "left": {"prompt": "You like tea.", "level": "c"}, "rejected": {"right": "prose: no"}}
    put(folder, "roles.json", roles)
    dialogue = load_dialogue(folder)
    assert dialogue.agent_sides == ("left",) and dialogue.right.role_prompt == ""
    assert load_dialogue(folder, sidecars=()).right.role_prompt == "You are right."
    put(folder, "roles.json", {"format": 1, "rejected": {"right": "prose: no", "left": "refusal: never"}})
    with refused("no-data", folder, "prose: no; refusal: never"):
        load_dialogue(folder)


@pytest.mark.parametrize("key, value, code", [
    ("id", "other", "bad-record"),
    ("split", "test", "bad-record"),
    ("source", "My Calls", "bad-record"),
    ("licence", " ", "licence"),
])  # fmt: skip
def test_a_record_that_cannot_be_packed_is_named(tmp_path: Path, key: str, value: str, code: Code) -> None:
    folder = write_dialogue(tmp_path, "a")
    meta = json.loads((folder / "meta.json").read_text())
    put(folder, "meta.json", meta | {key: value})
    with refused(code, folder, key):
        load_dialogue(folder)


def test_a_folder_without_a_readable_record_is_named(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path, "a")
    (folder / "meta.json").write_bytes(b"\xff")
    with refused("unreadable", folder / "meta.json"):
        load_dialogue(folder)
    (folder / "meta.json").unlink()
    with refused("not-found", folder, "finish the stage that made it"):
        load_dialogue(folder)
    assert find_dialogues([tmp_path]) == [folder]  # An unfinished dialogue is found, too.


def test_folders_that_hold_no_dialogues_or_the_same_twice_are_named(tmp_path: Path) -> None:
    here, there = (write_dialogue(tmp_path / name, "a").parent for name in ("here", "there"))
    with refused("not-found", tmp_path / "none", "`ppx-data speak` or `ppx-data fisher`"):
        find_dialogues([tmp_path / "none"])
    with refused("no-data", here / "a"):
        find_dialogues([here / "a"])
    with refused("bad-combination", "dialogue a", here, there, "standin --first-call"):
        find_dialogues([here, there])


def test_shards_hold_what_the_gates_passed_and_list_the_rest(tmp_path: Path) -> None:
    for name in "abc":
        put(write_dialogue(tmp_path / "in", name), "gates.json", GATES)
    put(tmp_path / "in" / "b", "gates.json", GATES | {"rejected": ["duplicate: of a", "silence: 9.0 s > 8 s"]})
    assert rejections(tmp_path / "in" / "b") == ["duplicate: of a", "silence: 9.0 s > 8 s"]
    build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "out")
    reader = ShardReader(tmp_path / "out" / "train")
    assert [row.id for row in reader.rows] == ["a", "c"] and reader.dialogue(0).gates == {"swap_ratio": 5.0}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rejected"] == [{"id": "b", "reason": "gate duplicate: of a; silence: 9.0 s > 8 s"}]


def test_shards_made_before_a_gate_changed_its_mind_are_not_complete(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path / "in", "a")
    build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "out")
    put(folder, "gates.json", GATES)
    with refused("other-settings", tmp_path / "out"):
        build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "out")


def test_settings_of_a_run_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", "gate.json", {"asr": "none"}, "gate")
    (tmp_path / "out" / "gate.json").write_text("{")
    with refused("unreadable", tmp_path / "out" / "gate.json"):
        claim_folder(tmp_path / "out", "gate.json", {"asr": "none"}, "gate")
