"""SPLIT/index.safetensors: one row for each sample of a split, in columns that are mapped, not read.

A sample is (dialogue, agent side): a call between equals gives two. A file of 10 million rows opens at once, and the
processes of a machine share its memory.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from data_pipelines.records.schema import SIDES
from data_pipelines.shards.storage import Folder, Storage, StorageError
from model.errors import UserError
from model.files import write_bytes

NAME = "index.safetensors"
LAYOUT = 2
"""Version of the columns below."""
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
        facts = {"sources": self.source_names, "shards": self.shard_names, "sizes": self.shard_sizes, "layout": LAYOUT}
        columns = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in self.columns.items()}
        write_bytes(path, save(columns, metadata={"facts": json.dumps(facts)}))

    @staticmethod
    def load(storage: Storage | Path) -> "Index":
        """The index of a split, which is mapped from disk, or fetched once.

        Raises: UserError if it is missing, broken or of another layout.
        """
        storage = Folder(storage) if isinstance(storage, Path) else storage
        where, again = f"{storage}/{NAME}", f"make it with `ppx-data index {storage}`"
        if storage.is_remote:
            again = "check the URL, or copy it from the folder of `ppx-data shard`"
        try:
            found = _mapped(storage.path / NAME) if isinstance(storage, Folder) else _fetched(storage)
        except StorageError:
            raise
        except Exception as why:  # a damaged file fails in many ways
            raise UserError(f"{where} is damaged ({why}): {again}", code="unreadable") from why
        if found is None:
            raise UserError(f"{where} is not there: {again}", code="not-found")
        facts, columns = found
        same = {name: column.dtype for name, column in columns.items()} == COLUMNS
        whole = facts.keys() >= {"sources", "shards", "sizes"} and len({len(c) for c in columns.values()}) == 1
        if facts.get("layout") != LAYOUT or not same or not whole:
            raise UserError(f"{where} is an index of another version: {again}", code="bad-shards")
        return Index(columns, facts["sources"], facts["shards"], facts["sizes"])


Stored = tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]  # facts and columns


def _mapped(path: Path) -> Stored | None:
    """The index on disk; only the pages that are looked at are read."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return facts, {name: tensor.numpy() for name, tensor in load_file(path).items()}


def _fetched(storage: Storage) -> Stored | None:
    """The index of a remote storage, fetched as a whole."""
    data = storage.whole(NAME)
    if data is None:
        return None
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(head["__metadata__"]["facts"]), {name: tensor.numpy() for name, tensor in load(data).items()}


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
