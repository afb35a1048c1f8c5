"""JSON into dataclasses, with every value checked against its annotation: what people write by hand has odd types."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def record(kind: type[T], text: str | bytes) -> T:
    """The dataclass `kind` out of the text of a JSON object.

    Raises: ValueError naming the first field that is missing, unknown or of another type, and its value.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(kind).validate_json(text)  # type: ignore[arg-type]
    except ValidationError as why:
        raise ValueError(_told(why.errors(include_url=False)[0])) from why
    return value


@lru_cache(maxsize=16)
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    """Made once, and only where records are read: pydantic takes a tenth of a second to import."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(extra="forbid", strict=True))(kind))


def _told(error: Any) -> str:
    """`left.words[0].start is True, it should be a valid number`."""
    path = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in error["loc"]).removeprefix(".")
    if error["type"] in ("missing", "json_invalid"):
        return f"{path} is missing" if path else str(error["msg"])
    if error["type"] == "unexpected_keyword_argument":
        return f"{path} is no field of it"
    return f"{path or 'it'} is {error['input']!r:.60}, {str(error['msg']).replace('Input should', 'it should')}"
