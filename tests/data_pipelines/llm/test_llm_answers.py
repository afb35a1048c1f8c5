"""Answers of a model, good and bad: which fault is found, what the model gets to read, and when the client gives up."""

from pathlib import Path

import pytest

from data_pipelines.llm.answers import repeats_itself
from tests.data_pipelines.llm.asking import GOOD, Asked
from tests.data_pipelines.llm_server import Reply, say

pytest.importorskip("openai")
pytest.importorskip("jsonschema")

LOOP = '{"city": "' + "and so on " * 40 + '"}'
# What the model says, the kind of fault, and a part of the problem that the next request names.
FAULTS: dict[str, tuple[Reply, str, str]] = {
    "malformed": (say('{"city": "Oslo'), "malformed JSON", "not a JSON object"),
    "prose": (say("Oslo is a nice city."), "prose", "Oslo is a nice city"),
    "empty": (say(""), "prose", "not a JSON object"),
    "null": (say(None), "prose", "not a JSON object"),
    "refusal in words": (say("I'm sorry, but I can't help with that."), "refusal", "refused"),
    "refusal": (say(None, refusal="I will not."), "refusal", "I will not."),
    "filtered": (say("", finish="content_filter"), "refusal", "refused"),
    "cut": (say('{"city": "Os', finish="length"), "length", "more briefly"),
    "cut but valid": (say(GOOD, finish="length"), "length", "more briefly"),
    "loop": (say(LOOP), "repeats", "repeats itself"),
    "other object": (say({"town": "Oslo"}), "schema", "'city' is a required property"),
    "a list": (say([GOOD]), "schema", "is not of type 'object'"),
    "nested brackets": (say("[" * 100_000), "malformed JSON", "not a JSON object"),
    "nested within": (say('{"city": ' + "[" * 100_000), "malformed JSON", "not a JSON object"),
    "half a surrogate pair": (say('{"city": "\\ud800"}'), "malformed JSON", "surrogates not allowed"),
    "not a number": (say('{"city": NaN}'), "malformed JSON", "NaN is no number of JSON"),
    "rules": (say({"city": "Ulm"}), "rules", "Ulm is a town"),
}


@pytest.mark.parametrize("reply, fault, problem", FAULTS.values(), ids=FAULTS)
def test_a_bad_answer_is_asked_for_again_with_the_next_seed_and_the_reason(
    tmp_path: Path, reply: Reply, fault: str, problem: str
) -> None:
    asked = Asked(tmp_path, [reply, say(GOOD)])
    assert (asked.value, asked.requests, asked.waits) == (GOOD, 2, [])
    assert [body["seed"] for body in asked.server.bodies] == [10, 11]
    messages = asked.server.bodies[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert problem in messages[-1]["content"] and 0 < len(messages[2]["content"]) < 200


@pytest.mark.parametrize("reply, fault, problem", FAULTS.values(), ids=FAULTS)
def test_bad_answers_fail_in_the_end_with_their_kind(tmp_path: Path, reply: Reply, fault: str, problem: str) -> None:
    asked = Asked(tmp_path, [reply], tries=1)
    assert (asked.failed.fault, asked.requests, asked.failed.lasting) == (fault, 1, True)
    assert problem in str(asked.failed)


def test_answers_that_differ_are_tried_as_often_as_allowed(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [say(f"prose {n}") for n in range(9)], tries=4)
    assert (asked.requests, asked.failed.fault) == (4, "prose")


def test_the_same_bad_answer_twice_ends_it(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [say({"city": "Ulm"})], tries=9)
    assert (asked.requests, asked.failed.fault) == (2, "repeats")
    assert "the same answer again, which is wrong: Ulm is a town" in str(asked.failed)


@pytest.mark.parametrize("form", ["json_object", "text"])
def test_a_server_without_schemas_gets_the_schema_in_words(tmp_path: Path, form: str) -> None:
    asked = Asked(tmp_path, [say(GOOD)], answer_format=form)
    body = asked.server.bodies[0]
    assert asked.value == GOOD
    assert '"required":["city"]' in body["messages"][0]["content"]
    assert body.get("response_format") == ({"type": "json_object"} if form == "json_object" else None)


def test_only_the_text_format_takes_json_out_of_prose(tmp_path: Path) -> None:
    wrapped = say('<think>{hm}</think>Here you are:\n```json\n{"city": "Oslo"}\n```')
    assert Asked(tmp_path / "a", [wrapped], answer_format="text").value == GOOD
    assert Asked(tmp_path / "b", [wrapped], tries=1).failed.fault == "prose"


@pytest.mark.parametrize(
    "text, loops",
    [
        ("no " * 15, True),
        ("the cat sat down and " * 5, True),
        ("fine so far. " + "I agree with you. " * 6, True),
        ("no " * 14, False),
        ("the cat sat down and " * 4, False),
        (" ".join(str(n) for n in range(400)), False),
        ('{"turns": [' + ", ".join(f'{{"speaker": "agent", "text": "line {n}"}}' for n in range(30)) + "]}", False),
    ],
)
def test_a_loop_is_no_list(text: str, loops: bool) -> None:
    assert repeats_itself(text) is loops
