"""JSON into dataclasses and back; values are checked against their annotations, since people write such files, too."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def record(kind: type[T], text: str | bytes) -> T:
    """The dataclass `kind` out of the text of a JSON object.

    Unknown keys are refused, unless `kind` has a `__pydantic_config__` of its own.
    Raises: ValueError naming the first field that is missing, unknown or of another type, and its value.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(kind).validate_json(text)  # type: ignore[arg-type]
    except ValidationError as why:
        raise ValueError(_in_words(why.errors(include_url=False)[0])) from why
    return value


def record_of(kind: type[T], value: object) -> T:
    """Like `record`, out of a JSON value that is parsed already."""
    return record(kind, json.dumps(value))


def keys_of(item: Any) -> dict[str, Any]:
    """The keys of a record's JSON object: fields that hold None are left out, and `other_keys` stand among the rest.

    It serves as `default` of json.dumps, which then writes records within records, too.
    """
    keys = {name: value for name, value in vars(item).items() if value is not None}
    return keys | keys.pop("other_keys", {})


def values_of(item: Any) -> dict[str, Any]:
    """A record as the JSON object that it is written as, with all records within it."""
    values: dict[str, Any] = json.loads(json.dumps(keys_of(item), default=keys_of))
    return values


@dataclass(kw_only=True, frozen=True)
class OpenRecord:
    """A record whose JSON object may hold keys that no field names; other records refuse them."""

    other_keys: dict[str, Any] = field(default_factory=dict)
    """These keys, as they were read; they are written back."""
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "allow", "strict": True}

    def __post_init__(self) -> None:
        """Collects the keys, which pydantic has made attributes."""
        known = {entry.name for entry in fields(self)}
        for name in vars(self).keys() - known:
            self.other_keys[name] = vars(self).pop(name)


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    """Made once, and only where records are read, because importing pydantic takes a tenth of a second."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    has_own = hasattr(kind, "__pydantic_config__")
    return TypeAdapter(kind if has_own else with_config(ConfigDict(extra="forbid", strict=True))(kind))


def _in_words(error: Any) -> str:
    """`left.words[0].start is True, it should be a valid number`."""
    path = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in error["loc"]).removeprefix(".")
    if error["type"] in ("missing", "json_invalid"):
        return f"{path} is missing" if path else str(error["msg"])
    if error["type"] == "unexpected_keyword_argument":
        return f"{path} is no field of it"
    return f"{path or 'it'} is {error['input']!r:.60}, {str(error['msg']).replace('Input should', 'it should')}"
