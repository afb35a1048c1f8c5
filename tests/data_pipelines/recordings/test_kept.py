"""Licence, split and masking that a record of our own exports keeps, and records of other tools, which keep nothing."""

import json
from typing import Any

import pytest

from data_pipelines.recordings.kept import kept_terms
from tests.refusals import refused

OURS = {"id": "a", "source": "talks", "split": "heldout", "licence": "CC BY 4.0", "left": {}, "right": {}}


def test_a_record_of_ours_keeps_licence_split_and_masking() -> None:
    assert kept_terms(json.dumps(OURS)) == ("CC BY 4.0", "heldout", None)
    for counts in ({"name": 2}, {}):
        assert kept_terms(json.dumps(OURS | {"provenance": {"masked": counts}})).masked == counts


@pytest.mark.parametrize("text", [None, b"{}", "", "a record", "{broken", "[]", '{"licence": "MIT"}'])
def test_other_records_keep_nothing(text: object) -> None:
    assert kept_terms(text) == ("", "", None)


@pytest.mark.parametrize("masked", [True, [], "yes", {"name": -1}, {"name": 1.5}, {"name": True}])
def test_a_masking_that_cannot_be_is_refused(masked: object) -> None:
    with refused("bad-record", "record.provenance.masked"):
        kept_terms(json.dumps(OURS | {"provenance": {"masked": masked}}))


@pytest.mark.parametrize("change", [{"licence": None}, {"licence": 3}, {"licence": " "}, {"split": "dev"}])
def test_a_licence_or_split_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with refused("bad-record", f"record.{next(iter(change))}"):
        kept_terms(json.dumps(OURS | change))
