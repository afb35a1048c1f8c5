"""What a record of this project's own exports keeps of a dialogue, so that an import does not forget it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.recordings.recording import field_of
from data_pipelines.recordings.transcripts import parse_json
from data_pipelines.records.provenance import MASKED
from data_pipelines.records.schema import SPLITS
from model.errors import UserError

_OURS = frozenset(("id", "source", "split", "licence", "left", "right"))
"""Keys that every dialogue record has; a record of another tool does not have all of them."""


class KeptTerms(NamedTuple):
    """What a record states, "" for nothing."""

    licence: str = ""
    split: str = ""
    masked: Mapping[str, int] | None = None
    """How many personal stretches of each kind were masked; None if nobody masked."""


def kept_terms(text: object) -> KeptTerms:
    """Returns licence, split and masking of a dialogue record; nothing for anything else.

    text: the record as JSON, which `ppx-data to-hf` writes as a column and `ppx-data shard` as a member of a tar.
    Raises: UserError if it is such a record with a licence, split or masking that cannot be (code "bad-record").
    """
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return KeptTerms()
    try:
        record = parse_json(text, "record")
    except UserError:
        return KeptTerms()
    if not isinstance(record, dict) or not record.keys() >= _OURS:
        return KeptTerms()
    facts = {"record": {name: "" if record[name] is None else record[name] for name in ("licence", "split")}}
    return KeptTerms(
        licence=stated(facts, "record.licence"),
        split=stated(facts, "record.split", SPLITS),
        masked=stated_counts({"record": record}, f"record.provenance.{MASKED}"),
    )


def stated(metadata: dict[str, Any], path: str, allowed: Sequence[str] = ()) -> str:
    """Returns the text at a dotted path of a record; "" if there is no such key.

    Raises: UserError if it is no text, or not `allowed` (code "bad-record").
    """
    value = field_of(metadata, path)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip() or (allowed and value not in allowed):
        wanted = " or ".join(allowed) or "a text"
        raise UserError(f"its {path} is {str(value)[:60]!r}: it should be {wanted}", code="bad-record")
    return value


def stated_counts(metadata: dict[str, Any], path: str) -> Mapping[str, int] | None:
    """Returns the counts by name at a dotted path of a record; None if there is no such key.

    Raises: UserError if they are no such counts (code "bad-record").
    """
    value = field_of(metadata, path)
    if value is None:
        return None
    if not isinstance(value, dict) or not all(type(count) is int and count >= 0 for count in value.values()):
        raise UserError(f"its {path} is {str(value)[:60]!r}: it should be counts by name", code="bad-record")
    return value
