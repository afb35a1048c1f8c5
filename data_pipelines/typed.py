"""JSON into dataclasses, with every value checked against its annotation: what people write by hand has odd types."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def record(kind: type[T], raw: Any, name: str = "") -> T:
    """The dataclass `kind` out of a JSON object.

    Fields may be str, bool, float, Any, Literal[...], dict[str, ...], tuple[..., ...] and dataclasses of these.
    Raises: ValueError naming the field that is missing, unknown or of another type.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{name or 'it'} is {raw!r:.60}, not an object")
    types, needed = _fields(kind)  # type: ignore[arg-type]
    for field in (*(needed - raw.keys()), *(raw.keys() - types.keys())):
        raise ValueError(f"{_inside(name, field)} is {'missing' if field in types else 'no field of it'}")
    return kind(**{field: _value(types[field], value, _inside(name, field)) for field, value in raw.items()})


@lru_cache(maxsize=64)
def _fields(kind: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Types by name, and the names of those without a default."""
    needed = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    return get_type_hints(kind), frozenset(needed)


def _value(kind: Any, raw: Any, name: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return record(kind, raw, name)  # type: ignore[arg-type]
    if origin is tuple and isinstance(raw, list):
        return tuple(_value(inner[0], item, f"{name}[{n}]") for n, item in enumerate(raw))
    if origin is dict and isinstance(raw, dict):
        return {key: _value(inner[1], item, _inside(name, key)) for key, item in raw.items()}
    if kind is float and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return raw  # an int stays one: the record is written again as it was
    if kind is Any or (origin is Literal and raw in inner) or (kind in (str, bool) and isinstance(raw, kind)):
        return raw
    raise ValueError(f"{name} is {raw!r:.60}, not {_TOLD.get(origin or kind) or f'one of {inner}'}")


_TOLD = {str: "a text", bool: "true or false", float: "a number", tuple: "a list", dict: "an object"}


def _inside(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field
