"""Sidecars: what later stages say about a dialogue is merged on reading, and a rejected one is left out of shards."""

import json

import pytest

from data_pipelines.files import claim_folder
from data_pipelines.records.folder import load_dialogue, rejections, signature
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from model.errors import UserError
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue

GATES = {"format": 1, "values": {"swap_ratio": 5.0}, "rejected": [], "limits": {}, "engines": {"asr": {"name": "x"}}}


def put(folder, name, content):
    (folder / name).write_text(json.dumps(content) if not isinstance(content, str) else content)


def test_roles_and_gates_are_merged_and_the_record_stays_as_it_was(tmp_path):
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


@pytest.mark.parametrize("name, content, message", [
    ("gates.json", "{", r"gates.json: not JSON"),
    ("gates.json", {"format": 2}, "gates.json: not a sidecar of format 1"),
    ("gates.json", {"format": 1, "values": 3, "engines": {}}, "gates.json: not a record of gates"),
    ("gates.json", {"format": 1, "values": {"dc": "low"}}, "not a record of gates .values.dc is 'low', it should be a"),
    ("gates.json", {"format": 1, "rejected": "dc: 3"}, ".rejected is 'dc: 3', it should be a valid array"),
    ("roles.json", {"format": 1, "left": {"prompt": "x"}}, "roles.json: not a record of roles .'level'"),
    ("roles.json", {"format": 1, "right": {"prompt": "x", "level": ""}}, "right side, which is no agent"),
    ("roles.json", {"format": 1, "rejected": ["left"]}, "roles.json: not a record of roles"),
])  # fmt: skip
def test_a_broken_sidecar_is_named(tmp_path, name, content, message):
    folder = write_dialogue(tmp_path, "a")
    put(folder, name, content)
    with pytest.raises(UserError, match=message):
        load_dialogue(folder)
    if name == "gates.json":
        with pytest.raises(UserError, match=message):
            rejections(folder)


def test_a_rejected_side_is_no_agent_and_without_any_the_reasons_are_told(tmp_path):
    folder = write_dialogue(tmp_path, "a", agents=("left", "right"))
    roles = {"format": 1, "left": {"prompt": "You like tea.", "level": "c"}, "rejected": {"right": "prose: no"}}
    put(folder, "roles.json", roles)
    dialogue = load_dialogue(folder)
    assert dialogue.agent_sides == ("left",) and dialogue.right.role_prompt == ""
    assert load_dialogue(folder, sidecars=()).right.role_prompt == "You are right."
    put(folder, "roles.json", {"format": 1, "rejected": {"right": "prose: no", "left": "refusal: never"}})
    with pytest.raises(UserError, match="a: no side has a role prompt .prose: no; refusal: never"):
        load_dialogue(folder)


def test_shards_hold_what_the_gates_passed_and_list_the_rest(tmp_path):
    for name in "abc":
        put(write_dialogue(tmp_path / "in", name), "gates.json", GATES)
    put(tmp_path / "in" / "b", "gates.json", GATES | {"rejected": ["duplicate: of a", "silence: 9.0 s > 8 s"]})
    assert rejections(tmp_path / "in" / "b") == ["duplicate: of a", "silence: 9.0 s > 8 s"]
    build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "out")
    reader = ShardReader(tmp_path / "out" / "train")
    assert [row.id for row in reader.rows] == ["a", "c"] and reader.dialogue(0).gates == {"swap_ratio": 5.0}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rejected"] == [{"id": "b", "reason": "gate duplicate: of a; silence: 9.0 s > 8 s"}]


def test_shards_made_before_a_gate_changed_its_mind_are_not_complete(tmp_path):
    folder = write_dialogue(tmp_path / "in", "a")
    build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "out")
    put(folder, "gates.json", GATES)
    with pytest.raises(UserError, match="made from other dialogues"):
        build_shards([tmp_path / "in"], TinyCodec(), tmp_path / "out")


def test_settings_of_a_run_that_cannot_be_read_are_named(tmp_path):
    claim_folder(tmp_path / "out", "gate.json", {"asr": "none"}, "gate")
    (tmp_path / "out" / "gate.json").write_text("{")
    with pytest.raises(UserError, match="gate.json: not the settings of a run .*: give another --out"):
        claim_folder(tmp_path / "out", "gate.json", {"asr": "none"}, "gate")
