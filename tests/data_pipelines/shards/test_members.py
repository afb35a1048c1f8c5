"""The text of a side: words that are no text and starts that are no numbers never reach training."""

import json

import pytest

from data_pipelines.records.schema import Side, Word
from data_pipelines.shards.members import parse_text, text_bytes


def test_what_is_written_is_read() -> None:
    words = (Word(text="né", start=0, end=0.3), Word(text="two", start=0.5, end=1.0))
    assert parse_text(text_bytes(Side(speaker="x", words=words, role_prompt="You."))) == (
        "You.", [("né", 0), ("two", 0.5)]
    )  # fmt: skip
    assert parse_text(text_bytes(Side(speaker="x"))) == ("", [])


@pytest.mark.parametrize(
    "changed",
    [
        {"words": [1, "two"]},
        {"words": [None, "two"]},
        {"words": ["one", ["two"]]},
        {"words": "ab"},
        {"words": {"a": 1, "b": 2}},
        {"words": 3},
        {"words": ["one"]},
        {"words": ["one", "\ud800"]},
        {"starts": ["0", "1"]},
        {"starts": [0.0, None]},
        {"starts": [0.0, True]},
        {"starts": [0.0, float("nan")]},
        {"starts": [float("nan"), 10**400]},
        {"starts": [0.0, float("inf")]},
        {"starts": [-1.0, 0.0]},
        {"starts": [0.0, 10**400]},
        {"starts": [0.0, 1e9]},
        {"starts": {"a": 1, "b": 2}},
        {"starts": [[0.0], [1.0]]},
        {"role_prompt": None},
        {"role_prompt": 3},
        {"role_prompt": ["You."]},
        {"role_prompt": "\udfff"},
    ],
)
def test_other_types_and_values_are_refused(changed: dict[str, object]) -> None:
    good = {"role_prompt": "You.", "words": ["one", "two"], "starts": [0.0, 1.0]}
    with pytest.raises(ValueError, match="not the text of a side"):
        parse_text(json.dumps(good | changed).encode())


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"words":' * 100_000, b"[]", b"3", b"", b"\xff", b"9" * 5000])
def test_other_json_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not the text of a side"):
        parse_text(data)
