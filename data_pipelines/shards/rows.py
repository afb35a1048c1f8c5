"""SPLIT/index.safetensors: one row for each sample of a split, in columns that are mapped, not read.

A sample is (dialogue, agent side): a call between equals gives two. The processes of a machine share the memory of a
file. One that could make a reader look outside of its tars, or that names what cannot name a file, is refused where it
is opened; everything behind may rely on that.
"""

# Shapes: N rows

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from data_pipelines.files import sha256, sha256_file
from data_pipelines.records.schema import ID_CHARACTERS, ID_LENGTH, SIDES, SOURCE_PATTERN
from data_pipelines.records.typed import record
from data_pipelines.shards.storage import Folder, Storage, StorageError
from model.errors import UserError
from model.files import check_link, write_bytes

NAME = "index.safetensors"
LAYOUT = 2
"""Version of the columns below."""
TAR_PATTERN = re.compile(r"[a-z0-9_]+-[0-9]{5,}\.tar")
"""The names of tars."""
MAX_NAME = 255
"""The longest name that file systems take, in bytes."""
HASH_PATTERN = re.compile(r"[0-9a-f]{64}")
ROWS_AT_ONCE = 1 << 18
"""Rows that are checked together, which bounds the memory of a check."""
PARTS = ("codes", "voice", "text", "meta", "audio", "clip")
"""Members of a dialogue that a sample uses: codes, the agent's voice codes and text, record, audio, voice clip."""

COLUMNS: dict[str, type[np.integer[Any]]] = {
    "offset": np.int64,  # first byte of the dialogue in its tar
    "places": np.int32,  # [N, 12]: bytes from there on, and size, of each of PARTS
    "shard": np.int32,  # number in shard_names
    "source": np.int16,  # number in source_names
    "side": np.uint8,  # the agent's, number in SIDES
    "num_frames": np.int32,
    "voice_frames": np.int32,
    "num_words": np.int32,  # the agent's
    "role_chars": np.int32,  # length of the agent's role prompt
    "ids": np.uint8,  # [N, longest]: ASCII, filled up with zeros
}


@dataclass(kw_only=True, frozen=True)
class IndexFacts:
    """What the header of an index says beside its columns."""

    layout: int
    sources: list[str]
    shards: list[str]
    sizes: list[int]
    """Bytes of each tar."""
    sha256: list[str] = field(default_factory=list)
    """Hash of each tar; indexes of early versions have none."""


class SampleRow(NamedTuple):
    """What the index knows about one sample, which need not be read for it."""

    id: str
    side: str
    """The agent's channel, "left" or "right"."""
    source: str
    num_frames: int
    voice_frames: int
    num_words: int
    """Words of the agent."""
    role_chars: int
    """Length of the agent's role prompt."""


@dataclass
class Index:
    """All rows of a split, in the columns COLUMNS."""

    columns: dict[str, npt.NDArray[Any]]
    source_names: list[str]
    shard_names: list[str]
    shard_sizes: list[int]
    shard_hashes: list[str] = field(default_factory=list)
    """Hex SHA-256 of each tar; empty for an index of an early version."""
    sha256: str = ""
    """Hex SHA-256 of the file that it was loaded from."""

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.columns["offset"])

    def id(self, i: int) -> str:
        """The id of the dialogue of row i."""
        return self.columns["ids"][i].tobytes().rstrip(b"\0").decode()

    def row(self, i: int) -> SampleRow:
        """Row i; only its bytes of the file are read."""
        side, source, *rest = (
            int(self.columns[name][i])
            for name in ("side", "source", "num_frames", "voice_frames", "num_words", "role_chars")
        )
        return SampleRow(self.id(i), SIDES[side], self.source_names[source], *rest)

    def save(self, path: Path) -> None:
        """Writes the file, which appears whole or not at all; the same index gives the same bytes."""
        facts: dict[str, Any] = {"sources": self.source_names, "shards": self.shard_names, "sizes": self.shard_sizes}
        facts |= {"layout": LAYOUT} | ({"sha256": self.shard_hashes} if self.shard_hashes else {})
        columns = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in self.columns.items()}
        write_bytes(path, save(columns, metadata={"facts": json.dumps(facts)}))

    @staticmethod
    def load(storage: Storage | Path) -> "Index":
        """The index of a split, which is mapped from disk, or fetched once; all of it is hashed and checked.

        Raises: UserError if it is missing ("not-found"), damaged ("unreadable", "bad-shards") or of another layout
        ("bad-shards"), or a link that leads elsewhere ("unsafe").
        """
        storage = Folder(storage) if isinstance(storage, Path) else storage
        where, again = f"{storage}/{NAME}", f"make it with `ppx-data index {storage}`"
        if storage.is_remote:
            again = "check the URL, or copy it from the folder of `ppx-data shard`"
        if isinstance(storage, Folder):
            check_link(storage.path, NAME)
        try:
            found = _mapped(storage.path / NAME) if isinstance(storage, Folder) else _fetched(storage)
            layout = json.loads(found.facts).get("layout") if found else LAYOUT
        except StorageError:
            raise
        except Exception as why:  # a damaged file fails in many ways
            raise UserError(f"{where} is damaged ({' '.join(str(why).split())}): {again}", code="unreadable") from why
        if found is None:
            raise UserError(f"{where} is not there: {again}", code="not-found")
        if layout != LAYOUT:
            raise UserError(f"{where} is an index of another version: {again}", code="bad-shards")
        try:
            facts = record(IndexFacts, found.facts)
            _check_facts(facts)
            _check_columns(found.columns, facts)
        except ValueError as why:
            raise UserError(f"{where} is damaged ({' '.join(str(why).split())}): {again}", code="bad-shards") from why
        return Index(found.columns, facts.sources, facts.shards, facts.sizes, facts.sha256, found.sha256)


class StoredIndex(NamedTuple):
    """An index as it was read: nothing is checked."""

    facts: str
    """JSON of IndexFacts."""
    columns: dict[str, npt.NDArray[Any]]
    sha256: str


def _mapped(path: Path) -> StoredIndex | None:
    """The index on disk, whose pages belong to the system's cache."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()["facts"]
    return StoredIndex(facts, {name: tensor.numpy() for name, tensor in load_file(path).items()}, sha256_file(path))


def _fetched(storage: Storage) -> StoredIndex | None:
    """The index of a remote storage, fetched as a whole."""
    data = storage.whole(NAME)
    if data is None:
        return None
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    columns = {name: tensor.numpy() for name, tensor in load(data).items()}
    return StoredIndex(head["__metadata__"]["facts"], columns, sha256(data))


def _check_facts(facts: IndexFacts) -> None:
    """Raises ValueError that names what cannot be the name, size or hash of a tar, or the name of a source."""
    for kind, names, pattern in (("source", facts.sources, SOURCE_PATTERN), ("tar", facts.shards, TAR_PATTERN)):
        for name in names:
            if not pattern.fullmatch(name) or len(name) > MAX_NAME:
                raise ValueError(f"{name[:200]!r} is no name of a {kind}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"it names a {kind} twice" if names else f"it names no {kind}")
    if len(facts.sizes) != len(facts.shards) or len(facts.sha256) not in (0, len(facts.shards)):
        raise ValueError(f"{len(facts.shards)} tars with {len(facts.sizes)} sizes and {len(facts.sha256)} hashes")
    for name, size in zip(facts.shards, facts.sizes, strict=True):
        if not 0 < size < 1 << 62:
            raise ValueError(f"{name} of {size} bytes")
    for found in facts.sha256:
        if not HASH_PATTERN.fullmatch(found):
            raise ValueError(f"{found[:100]!r} is no SHA-256")


def _check_columns(columns: dict[str, npt.NDArray[Any]], facts: IndexFacts) -> None:
    """Raises ValueError that names the first column, or the first row, that cannot be right."""
    if columns.keys() != COLUMNS.keys():
        raise ValueError(f"its columns are {str(sorted(columns))[:200]}")
    num = len(columns["offset"]) if columns["offset"].ndim else 0
    widths: dict[str, tuple[int, ...]] = {"places": (2 * len(PARTS),), "ids": columns["ids"].shape[1:]}
    for name, column in columns.items():
        if column.dtype != COLUMNS[name] or column.shape != (num, *widths.get(name, ())):
            raise ValueError(f"its column {name} is {column.dtype} {list(column.shape)}")
    if not num or len(widths["ids"]) != 1 or not 0 < widths["ids"][0] <= ID_LENGTH:
        raise ValueError(f"it has {num} rows with ids of shape {list(widths['ids'])}")
    for start in range(0, num, ROWS_AT_ONCE):
        rows = {name: column[start : start + ROWS_AT_ONCE] for name, column in columns.items()}
        for name, is_good, wanted in _judged(rows, facts):
            if not is_good.all():
                row = int(np.argmin(is_good))
                value = rows[name][row].tobytes() if name == "ids" else rows[name][row].tolist()
                raise ValueError(f"{name} of row {start + row} is {value}, not {wanted}")


def _judged(rows: dict[str, npt.NDArray[Any]], facts: IndexFacts) -> Iterator[tuple[str, npt.NDArray[np.bool_], str]]:
    """Yields a column, whether each of its rows is good, and what it should be. What comes later relies on earlier."""
    for name, low, high in (
        ("shard", 0, len(facts.shards) - 1),
        ("source", 0, len(facts.sources) - 1),
        ("side", 0, len(SIDES) - 1),
    ):
        yield name, (rows[name] >= low) & (rows[name] <= high), f"{low} to {high}"
    size_N = np.array(facts.sizes, np.int64)[rows["shard"]]
    yield "offset", (rows["offset"] >= 0) & (rows["offset"] < size_N), "a place in its tar"
    starts_N6, sizes_N6 = rows["places"][:, 0::2], rows["places"][:, 1::2]
    # The sum of two int32 and an offset below 2 ** 62 cannot overflow int64.
    ends_N = rows["offset"] + (starts_N6.astype(np.int64) + sizes_N6).max(axis=1)
    yield "places", ((starts_N6 >= 0) & (sizes_N6 > 0)).all(axis=1) & (ends_N <= size_N), "places in its tar"
    codes_N, voice_N, text_N = sizes_N6[:, : PARTS.index("meta")].T
    for name, low, bytes_each, room_N in (
        ("num_frames", 1, 32, codes_N),
        ("voice_frames", 1, 16, voice_N),
        ("num_words", 0, 1, text_N),
        ("role_chars", 0, 1, text_N),
    ):
        yield name, (rows[name] >= low) & (rows[name] <= room_N // bytes_each), f"{low} or more that fit its member"
    ids = rows["ids"]
    is_filled, is_known = ids != 0, np.isin(np.arange(256), list(ID_CHARACTERS.encode()))[ids]
    is_good = (
        is_filled[:, 0] & (is_known | ~is_filled).all(axis=1) & (is_filled[:, :-1] >= is_filled[:, 1:]).all(axis=1)
    )
    yield "ids", is_good & ((ids[:, :2] == ord("_")).sum(axis=1) < 2), "an id of letters, digits, '-' and '_'"


class SampleRows(Sequence[SampleRow]):
    """The rows of an index, each of which is read when it is used."""

    def __init__(self, index: Index) -> None:
        """Reads nothing yet."""
        self._index = index

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._index)

    @overload
    def __getitem__(self, i: int) -> SampleRow: ...
    @overload
    def __getitem__(self, i: slice) -> list[SampleRow]: ...
    def __getitem__(self, i: int | slice) -> SampleRow | list[SampleRow]:
        """Row i, or the rows of a slice. Raises IndexError."""
        if isinstance(i, slice):
            return [self._index.row(k) for k in range(len(self))[i]]
        return self._index.row(range(len(self))[i])

    def __iter__(self) -> Iterator[SampleRow]:
        """All rows, in order."""
        return map(self._index.row, range(len(self)))
