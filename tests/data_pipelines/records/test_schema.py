"""Records and scripts that people wrote by hand: what is wrong is named before any work is done."""

import json
from typing import Any

import pytest

from data_pipelines.records.schema import Dialogue, Script, read_scripts
from model.errors import UserError

SCRIPT: dict[str, Any] = {
    "id": "order-1",
    "source": "mine",
    "split": "train",
    "scenario": "shop/order",
    "role_prompt": "You sell tea.",
    "turns": [{"speaker": "agent", "text": "Hello."}, {"speaker": "user", "text": "Tea.", "kind": "barge_in"}],
    "facts": [{"type": "money", "text": "$3", "label": "price"}],
    "probes": [{"kind": "Q1", "turn": 1}],
}
SIDE = {"speaker": "me", "words": [{"text": "Hello.", "start": 0, "end": 0.5}], "is_agent": True}
DIALOGUE: dict[str, Any] = {
    "id": "call-1",
    "source": "mine",
    "split": "train",
    "scenario": "call",
    "seconds": 4,
    "left": SIDE,
    "right": {"speaker": "you"},
    "licence": "CC0-1.0",
    "events": [{"kind": "laughter", "side": "left", "start": 1}],
}


def changed(record: dict[str, Any], path: str, value: Any) -> str:
    """The record as JSON, with the value at a dotted path exchanged."""
    copy = json.loads(json.dumps(record))
    at = copy
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in above:
        at = at[part]
    at[last] = value
    return json.dumps(copy)


@pytest.mark.parametrize("record, kind", [(SCRIPT, Script), (DIALOGUE, Dialogue)])
def test_what_may_be_left_out_has_its_default_and_numbers_stay_as_they_were(record, kind):
    read = json.loads(kind.from_json(json.dumps(record), "here").to_json())
    assert {key: value for key, value in read.items() if key in record and key not in ("left", "right", "turns")} == {
        key: value for key, value in record.items() if key not in ("left", "right", "turns")
    }
    assert kind.from_json(json.dumps(read), "here").to_json() == json.dumps(read, ensure_ascii=False, sort_keys=True)


@pytest.mark.parametrize("path, value, message", [
    ("id", "../up", "id is '../up': use 1 to 120 letters"),
    ("id", 7, "id is 7, it should be a valid string"),
    ("source", "My Shop", "source is 'My Shop': use lower-case"),
    ("split", "test", "split is 'test': use one of train, heldout"),
    ("turns", [], "nobody says a word"),
    ("turns", {}, "turns is {}, it should be a valid array"),
    ("turns.0", "Hello.", r"turns\[0\] is 'Hello.', it should be an object"),
    ("turns.0.speaker", "robot", r"turns\[0\].speaker is 'robot', it should be 'agent' or 'user'"),
    ("turns.1.kind", "shout", r"turns\[1\].kind is 'shout', it should be 'normal'"),
    ("turns.0.text", None, r"turns\[0\].text is None, it should be a valid string"),
    ("turns.0.text", "\ud800", "unexpected end of hex escape"),
    ("turns.0.mood", "good", r"turns\[0\].mood is no field of it"),
    ("facts.0", {"text": "$3"}, r"facts\[0\].type is None, not a text"),
    ("facts.0.text", 3, r"facts\[0\].text is 3, it should be a valid string"),
    ("probes.0", {"turn": 1}, r"probes\[0\].kind is None, not a text"),
])  # fmt: skip
def test_a_wrong_value_of_a_script_is_named_in_one_line(path, value, message):
    with pytest.raises(
        UserError, match=f"^file:3: not a script line .*{message}" if "line" not in message else message
    ):
        Script.from_json(changed(SCRIPT, path, value), "file:3")


@pytest.mark.parametrize("path, value, message", [
    ("seconds", "4", "seconds is '4', it should be a valid number"),
    ("seconds", float("inf"), "inf seconds: give the length of the audio"),
    ("seconds", float("nan"), "nan seconds"),
    ("seconds", 0, "0 seconds"),
    ("left.words.0.start", True, r"left.words\[0\].start is True, it should be a valid number"),
    ("left.words.0.text", None, r"left.words\[0\].text is None, it should be a valid string"),
    ("left.role_prompt", None, "left.role_prompt is None, it should be a valid string"),
    ("left.is_agent", "yes", "left.is_agent is 'yes', it should be a valid boolean"),
    ("right", None, "right is None, it should be an object"),
    ("gates", {"dc": "low"}, "gates.dc is 'low', it should be a valid number"),
    ("provenance", [], r"provenance is \[\], it should be an object"),
    ("events.0", "laughter", r"events\[0\] is 'laughter', it should be an object"),
    ("events.0.start", "soon", r"events\[0\].start is 'soon', not a number"),
    ("licence", "\ud800", "unexpected end of hex escape"),
    ("colour", 1, "colour is no field of it"),
])  # fmt: skip
def test_a_wrong_value_of_a_dialogue_is_named_in_one_line(path, value, message):
    with pytest.raises(UserError, match=message) as caught:
        Dialogue.from_json(changed(DIALOGUE, path, value), "meta.json")
    assert str(caught.value).startswith("meta.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "{}", "[" * 100_000])
def test_a_line_that_is_no_record_is_refused(text):
    for kind in (Script, Dialogue):
        with pytest.raises(UserError, match="^here: not a "):
            kind.from_json(text, "here")


def test_a_scripts_file_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    line = json.dumps(SCRIPT).encode()
    (tmp_path / "s.jsonl").write_bytes(line + b"\n\n" + line.replace(b"Hello.", b"Ol\xe1.") + b"\n")
    with pytest.raises(UserError, match=r"s.jsonl:3: not UTF-8 .*: convert the file"):
        read_scripts(tmp_path / "s.jsonl")
