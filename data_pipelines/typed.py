"""JSON into dataclasses, with every value checked against its annotation: what people write by hand has odd types."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
Reader = Callable[[Any], Any]


class _Wrong(Exception):
    """A value that is not what it should be; `path` grows on the way up."""

    def __init__(self, told: str, path: str = "") -> None:
        self.told, self.path = told, path


def record(kind: type[T], raw: Any) -> T:
    """The dataclass `kind` out of a JSON object.

    Fields may be str, bool, float, Any, Literal[...], dict[str, ...], tuple[..., ...] and dataclasses of these.
    Raises: ValueError naming the field that is missing, unknown or of another type.
    """
    try:
        return _reader(kind)(raw)  # type: ignore[no-any-return, arg-type]
    except _Wrong as why:
        raise ValueError(f"{why.path.removeprefix('.') or 'it'} is {why.told}") from why


@lru_cache(maxsize=256)
def _reader(kind: Any) -> Reader:
    """What turns JSON into a value of this type: made once, as records have hundreds of words."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        readers = {name: _reader(hint) for name, hint in get_type_hints(kind).items()}
        needed = frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
        return partial(_object, kind, readers, needed)
    if origin is tuple:
        return partial(_list, _reader(inner[0]))
    if origin is dict:
        return partial(_mapping, _reader(inner[1]))
    return partial(_plain, *_PLAIN[kind]) if kind in _PLAIN else partial(_choice, inner)


def _object(kind: Any, readers: Mapping[str, Reader], needed: frozenset[str], raw: Any) -> Any:
    _plain((dict,), "an object", raw)
    if not needed <= raw.keys() <= readers.keys():
        for name in (*(needed - raw.keys()), *(raw.keys() - readers.keys())):
            raise _Wrong("missing" if name in needed else "no field of it", f".{name}")
    return kind(**{name: _inside(name, readers[name], value) for name, value in raw.items()})


def _list(reader: Reader, raw: Any) -> tuple[Any, ...]:
    return tuple(_inside(n, reader, value) for n, value in enumerate(_plain((list,), "a list", raw)))


def _mapping(reader: Reader, raw: Any) -> dict[str, Any]:
    return {name: _inside(name, reader, value) for name, value in _plain((dict,), "an object", raw).items()}


def _inside(at: str | int, reader: Reader, raw: Any) -> Any:
    try:
        return reader(raw)
    except _Wrong as why:
        raise _Wrong(why.told, (f"[{at}]" if isinstance(at, int) else f".{at}") + why.path) from why


def _plain(types: tuple[type, ...], told: str, raw: Any) -> Any:
    """The value as it is: an int where a float may be stays one, for the record is written again as it was."""
    if not isinstance(raw, types) or (isinstance(raw, bool) and types == (int, float)):
        raise _Wrong(f"{raw!r:.60}, not {told}")
    return raw


_PLAIN = {
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
    float: ((int, float), "a number"),
    Any: ((object,), ""),
}


def _choice(known: tuple[Any, ...], raw: Any) -> Any:
    if raw not in known:
        raise _Wrong(f"{raw!r:.60}, not one of {known}")
    return raw
