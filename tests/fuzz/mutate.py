"""Damage to files: of the values in JSON and YAML, and of the bytes in anything else."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

DEEP = "\x02deep\x03"
"""Stands for brackets nested too deep for json.dumps."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, -(2**31) - 1, 2**63, 2**64, 10**12, 10**400, 0.5, -0.0, 1e-320, 1e38, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "NaN", "null", "\0", "a\nb", "\x1b[31m", "\ud800",
    "\udcff", "\u202e", "x" * 70_000, "../../../x", "/etc/passwd", "a/b", "C:\\x", "~", "-", ".", "..", "__x",
    "<script>",
    "${oc.env:HOME}", "${run_dir}", "${", "*a", "&a", "!!python/name:os.system", [], {}, [[]], [None], {"": None},
    {"a": {"b": []}}, [0] * 5000, DEEP, [DEEP],
)  # fmt: skip
"""Values that a reader does not expect."""
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 2**62, 2**63 - 1, 2**64 - 1)
"""What a length in a header is replaced by."""


def value(draw: random.Random, whole: Any) -> Any:
    """A copy of a JSON value in which one to three places are another value, missing, extra, moved or nested."""
    box = {"": copy.deepcopy(whole)}
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        parent, key = draw.choice(_places(box))
        kind = draw.randrange(8)
        if kind == 0 and parent is not box:
            del parent[key]
        elif kind == 1 and isinstance(parent[key], dict):
            parent[key][draw.choice(("", "x", "__class__", "format", "\ud800"))] = _odd(draw)
        elif kind == 1 and isinstance(parent[key], list):
            parent[key].insert(draw.randint(0, len(parent[key])), _odd(draw))
        elif kind == 2:
            other, at = draw.choice(_places(box))
            parent[key] = copy.deepcopy(other[at])
        elif kind == 3:
            parent[key] = draw.choice(([parent[key]], {"x": parent[key]}, str(parent[key])))
        elif kind == 4 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] *= draw.choice((-1, 2, 1000, 10**9, 0.5))
        else:
            parent[key] = _odd(draw)
    return box[""]


def text_of_json(draw: random.Random, whole: Any) -> bytes:
    """A JSON value as one line; lone surrogates stand in it as escapes, or as bytes that are not UTF-8."""
    is_ascii = draw.random() < 0.7
    text = json.dumps(whole, ensure_ascii=is_ascii, skipkeys=True)
    mark = json.dumps(DEEP, ensure_ascii=is_ascii)
    depth = draw.choice((50, 500, 5000, 100_000))
    return text.replace(mark, "[" * depth + "]" * depth).encode("utf-8", "surrogatepass")


def json_file(draw: random.Random, data: bytes) -> bytes:
    """Damages a file of one JSON value: mostly its values, else its bytes."""
    if draw.random() < 0.15:
        return any_bytes(draw, data)
    return text_of_json(draw, value(draw, json.loads(data)))


def header_file(draw: random.Random, data: bytes) -> bytes:
    """Damages the values in the header of a safetensors file, or in the JSON that its metadata hold; else its bytes."""
    if draw.random() < 0.3:
        return any_bytes(draw, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    inner = [name for name, text in header.get("__metadata__", {}).items() if text[:1] in ("{", "[")]
    if inner and draw.random() < 0.6:
        name = draw.choice(inner)
        changed = text_of_json(draw, value(draw, json.loads(header["__metadata__"][name])))
        header["__metadata__"][name] = changed.decode("utf-8", "replace")
        new = json.dumps(header).encode()
    else:
        new = text_of_json(draw, value(draw, header))
    return len(new).to_bytes(8, "little") + new + data[end:]


def json_lines(draw: random.Random, data: bytes) -> bytes:
    """Damages one line of a file with a JSON value in each."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = json_file(draw, lines[at])
    return b"\n".join(lines)


def any_bytes(draw: random.Random, data: bytes) -> bytes:
    """Damages one to four places of a file: bits, its end, lengths, runs that are zero, repeated, moved or lost."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        # Most of what a format says about itself is at its beginning or its end.
        near = draw.choice((len(found), min(len(found), 128), min(len(found), 1024)))
        at = draw.randrange(near + 1)
        at = len(found) - at if draw.random() < 0.2 else at
        size = min(len(found) - at, draw.choice((1, 4, 16, 256, 4096)))
        kind = draw.randrange(9)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            del found[at : at + size]
        elif kind == 4:
            found[at : at + size] = bytes(size)
        elif kind == 5:
            found[at:at] = found[at : at + size] * draw.choice((1, 3, 50))
        elif kind == 6:
            from_ = draw.randrange(len(found) + 1)
            found[at : at + size] = found[from_ : from_ + size]
        elif kind == 7:
            width = draw.choice((2, 4, 8))
            length = draw.choice(LENGTHS) % 256**width
            found[at : at + width] = length.to_bytes(width, draw.choice(("little", "big")))
        else:
            found[at:at] = draw.randbytes(size)
    return bytes(found)


def same_size(draw: random.Random, data: bytes) -> bytes:
    """Damages bytes as `any_bytes`, and cuts or fills the result to the former size."""
    return any_bytes(draw, data)[: len(data)].ljust(len(data), b"\0")


def text_file(draw: random.Random, data: bytes) -> bytes:
    """Damages a text: bytes, lines that are lost, repeated or exchanged, and numbers of other sizes."""
    if draw.random() < 0.4:
        return any_bytes(draw, data)
    lines = data.split(b"\n")
    for _ in range(draw.choice((1, 2, 5))):
        at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 1:
            lines[at] = lines[other] * draw.choice((1, 2, 500))
        elif kind == 2:
            words = lines[at].split(b" ")
            odd = draw.choice(
                (b"nan", b"inf", b"1e400", b"-1", b"9" * 5000, b"1.2.3", b"[", b"((", b"))", b"<", b"\xff")
            )
            words[draw.randrange(len(words))] = odd
            lines[at] = b" ".join(words)
        elif kind == 3:
            lines[at] = draw.choice((b"", b"\0", b"[" * 20_000, b"-->", b"A:" * 2000, b"\xed\xa0\x80"))
        elif len(lines) > 1:
            del lines[at]
    return b"\n".join(lines)


def _odd(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(ODD))


def _places(whole: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a nested value."""
    found: list[tuple[Any, Any]] = []
    rest = [whole]
    while rest:
        item = rest.pop()
        keys = list(item) if isinstance(item, dict) else range(min(len(item), 50))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], (dict, list)):
                rest.append(item[key])
    return found
