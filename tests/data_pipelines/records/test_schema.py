"""Records and scripts that people wrote by hand: what is wrong is named before any work is done."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.records.schema import Dialogue, Event, Fact, Probe, Script, read_scripts
from data_pipelines.records.typed import values_of
from model.errors import Code
from tests.refusals import refused

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
    """The record as JSON, with the value at a dotted path exchanged; a value of ... removes it."""
    copy = json.loads(json.dumps(record))
    at = copy
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in above:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(copy)


@pytest.mark.parametrize("record, kind", [(SCRIPT, Script), (DIALOGUE, Dialogue)])
def test_what_may_be_left_out_has_its_default_and_numbers_stay_as_they_were(
    record: dict[str, Any], kind: type[Script] | type[Dialogue]
) -> None:
    read = json.loads(kind.from_json(json.dumps(record), "here").to_json())
    assert {key: value for key, value in read.items() if key in record and key not in ("left", "right", "turns")} == {
        key: value for key, value in record.items() if key not in ("left", "right", "turns")
    }
    assert kind.from_json(json.dumps(read), "here").to_json() == json.dumps(read, ensure_ascii=False, sort_keys=True)


@pytest.mark.parametrize("event, record", [
    ({"kind": "barge_in", "side": "right", "start": 1.5, "end": 2.0, "stop": 1.75},
     Event(kind="barge_in", side="right", start=1.5, end=2.0, stop=1.75)),
    ({"kind": "sigh", "side": "left", "start": 0.0}, Event(kind="sigh", side="left", start=0.0)),
    ({"kind": "sigh", "side": "left", "start": 0.5, "end": 1.0, "loudness": {"db": -20}, "by": None},
     Event(kind="sigh", side="left", start=0.5, end=1.0, other_keys={"loudness": {"db": -20}, "by": None})),
])  # fmt: skip
def test_events_keep_the_keys_they_were_written_with(event: dict[str, Any], record: Event) -> None:
    dialogue = Dialogue.from_json(changed(DIALOGUE, "events.0", event), "here")
    assert dialogue.events == (record,)
    assert json.loads(dialogue.to_json())["events"] == values_of(dialogue)["events"] == [event]
    assert record.span == (event["start"], event.get("end", event["start"]))


@pytest.mark.parametrize("fact, record", [
    ({"type": "money", "text": "$3", "label": "price", "used": "no"},
     Fact(type="money", text="$3", label="price", used="no")),
    ({"type": "name", "text": "Ann"}, Fact(type="name", text="Ann")),
    ({"type": "name", "text": "Ann", "from": "menu"}, Fact(type="name", text="Ann", other_keys={"from": "menu"})),
])  # fmt: skip
def test_facts_keep_the_keys_they_were_written_with(fact: dict[str, Any], record: Fact) -> None:
    for kind, whole in ((Script, SCRIPT), (Dialogue, DIALOGUE | {"facts": [{}]})):
        read = kind.from_json(changed(whole, "facts.0", fact), "here")  # type: ignore[attr-defined]
        assert read.facts == (record,)
        assert json.loads(read.to_json())["facts"] == [fact]


@pytest.mark.parametrize("probe, record", [
    ({"kind": "Q1", "turn": 1, "question": "How much?", "facts": ["price"], "answer": "It's $3."},
     Probe(kind="Q1", turn=1, question="How much?", facts=("price",), answer="It's $3.")),
    ({"kind": "Q4", "facts": []}, Probe(kind="Q4", facts=())),
    ({"kind": "Q9", "weight": 2}, Probe(kind="Q9", other_keys={"weight": 2})),
])  # fmt: skip
def test_probes_keep_the_keys_they_were_written_with(probe: dict[str, Any], record: Probe) -> None:
    script = Script.from_json(changed(SCRIPT, "probes.0", probe), "here")
    assert script.probes == (record,)
    assert json.loads(script.to_json())["probes"] == [probe]


@pytest.mark.parametrize("path, value, named", [
    ("id", "../up", "id is '../up'"),
    ("id", 7, "id is 7"),
    ("source", "My Shop", "source is 'My Shop'"),
    ("split", "test", "split is 'test'"),
    ("turns", [], "nobody says a word"),
    ("turns", {}, "turns is {}"),
    ("turns.0", "Hello.", "turns[0] is 'Hello.'"),
    ("turns.0.speaker", "robot", "turns[0].speaker is 'robot', it should be 'agent' or 'user'"),
    ("turns.1.kind", "shout", "turns[1].kind is 'shout', it should be 'normal'"),
    ("turns.0.text", None, "turns[0].text is None"),
    ("turns.0.text", "\ud800", "unexpected end of hex escape"),
    ("turns.0.mood", "good", "turns[0].mood is no field"),
    ("facts.0.type", ..., "facts[0].type is missing"),
    ("facts.0.text", 3, "facts[0].text is 3"),
    ("facts.0.label", [], "facts[0].label is []"),
    ("probes.0.kind", ..., "probes[0].kind is missing"),
    ("probes.0.turn", "first", "probes[0].turn is 'first'"),
    ("probes.0.facts", ["price", 3], "probes[0].facts[1] is 3"),
])  # fmt: skip
def test_a_wrong_value_of_a_script_is_named_in_one_line(path: str, value: Any, named: str) -> None:
    with refused("bad-record", "file:3: not a script line (", named):
        Script.from_json(changed(SCRIPT, path, value), "file:3")


@pytest.mark.parametrize("path, value, code, named", [
    ("seconds", "4", "bad-record", "seconds is '4', it should be a valid number"),
    ("seconds", float("inf"), "bad-record", "inf seconds"),
    ("seconds", float("nan"), "bad-record", "nan seconds"),
    ("seconds", 0, "bad-record", "0 seconds"),
    ("seconds", 0.25, "bad-transcript", "left word 'Hello.' at 0.00-0.50 s"),
    ("left.words.0.end", -1.0, "bad-transcript", "left word 'Hello.' at 0.00--1.00 s"),
    ("left.words.0.start", True, "bad-record", "left.words[0].start is True"),
    ("left.words.0.text", None, "bad-record", "left.words[0].text is None"),
    ("left.role_prompt", None, "bad-record", "left.role_prompt is None"),
    ("left.is_agent", "yes", "bad-record", "left.is_agent is 'yes'"),
    ("left.is_agent", False, "bad-record", "neither side is an agent"),
    ("right", None, "bad-record", "right is None"),
    ("gates", {"dc": "low"}, "bad-record", "gates.dc is 'low'"),
    ("provenance", [], "bad-record", "provenance is []"),
    ("events.0", "laughter", "bad-record", "events[0] is 'laughter'"),
    ("events.0.start", "soon", "bad-record", "events[0].start is 'soon', it should be a valid number"),
    ("events.0.side", ..., "bad-record", "events[0].side is missing"),
    ("licence", "\ud800", "bad-record", "unexpected end of hex escape"),
    ("colour", 1, "bad-record", "colour is no field"),
])  # fmt: skip
def test_a_wrong_value_of_a_dialogue_is_named_in_one_line(path: str, value: Any, code: Code, named: str) -> None:
    with refused(code, "meta.json: ", named):
        Dialogue.from_json(changed(DIALOGUE, path, value), "meta.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "{}", "[" * 100_000])
@pytest.mark.parametrize("kind", [Script, Dialogue])
def test_a_line_that_is_no_record_is_refused(kind: type[Script] | type[Dialogue], text: str) -> None:
    with refused("bad-record", "here: not a "):
        kind.from_json(text, "here")


def test_a_scripts_file_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    line = json.dumps(SCRIPT).encode()
    (tmp_path / "s.jsonl").write_bytes(line + b"\n\n" + line.replace(b"Hello.", b"Ol\xe1.") + b"\n")
    with refused("unreadable", "s.jsonl:3", "convert the file"):
        read_scripts(tmp_path / "s.jsonl")


def test_a_scripts_file_that_is_missing_or_empty_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("\n\n")
    for name, code in (("s.jsonl", "no-data"), ("none.jsonl", "not-found")):
        with refused(code, f"`ppx-data synth --out {tmp_path / name}`"):  # type: ignore[arg-type]
            read_scripts(tmp_path / name)
