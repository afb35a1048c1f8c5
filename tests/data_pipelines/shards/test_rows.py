"""An index from elsewhere: whatever could lead a reader out of its tars is refused where the index is opened."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from data_pipelines.files import sha256
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.rows import NAME, PARTS, Index
from data_pipelines.shards.storage import storage_at
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_corpus
from tests.refusals import refused

Columns = dict[str, npt.NDArray[Any]]


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A folder of tars: 2 assistant, 4 fisher samples of 2 calls, 4 service."""
    build_shards(write_corpus(tmp_path / "dialogues"), TinyCodec(), tmp_path / "out")
    return tmp_path / "out" / "train"


def rewrite(
    split: Path, facts: Mapping[str, Any] | None = None, change: Callable[[Columns], object] = lambda columns: None
) -> None:
    """Writes the index again, as any program could, with other facts or columns."""
    with safe_open(split / NAME, "np") as file:
        stored = json.loads(file.metadata()["facts"])
    columns = {name: column.copy() for name, column in load_file(split / NAME).items()}
    change(columns)
    text = json.dumps({**stored, **(facts or {})})
    (split / NAME).write_bytes(save(columns, metadata={"facts": text}))


def put(name: str, row: int, value: Any) -> Callable[[Columns], object]:
    """Sets one row of a column, in its own type."""

    def change(columns: Columns) -> None:
        columns[name][row] = value

    return change


def place(part: str, row: int, at: int | None = None, size: int | None = None) -> Callable[[Columns], object]:
    """Moves one member of a row."""

    def change(columns: Columns) -> None:
        k = 2 * PARTS.index(part)
        for column, value in ((k, at), (k + 1, size)):
            if value is not None:
                columns["places"][row, column] = value

    return change


def rename(row: int, id: str) -> Callable[[Columns], object]:
    """Gives one row another id."""

    def change(columns: Columns) -> None:
        ids = np.zeros((len(columns["ids"]), max(len(id), columns["ids"].shape[1])), np.uint8)
        ids[:, : columns["ids"].shape[1]] = columns["ids"]
        ids[row] = np.frombuffer(id.encode().ljust(ids.shape[1], b"\0"), np.uint8)
        columns["ids"] = ids

    return change


def test_an_index_is_known_by_its_hash_on_disk_and_by_url(train: Path) -> None:
    pytest.importorskip("fsspec")
    expected = sha256((train / NAME).read_bytes())
    assert ShardReader(train).sha256 == expected == ShardReader(f"file://{train}").sha256
    assert read_manifest(train.parent).index["train"] == expected
    index = Index.load(train)
    assert index.shard_hashes == [sha256((train / name).read_bytes()) for name in index.shard_names]


def test_an_index_without_hashes_of_an_early_version_opens(train: Path) -> None:
    rewrite(train, {"sha256": []})
    assert len(ShardReader(train)) == 10 and Index.load(train).shard_hashes == []


def test_another_index_than_the_expected_one_is_refused(train: Path) -> None:
    reader = ShardReader(train)
    rewrite(train, change=lambda columns: columns["side"].__ixor__(1))
    with refused("checksum", train / NAME, reader.sha256[:16], "`ppx-data index`"):
        ShardReader(train, reader.sha256)
    kind, given = reader.__reduce__()
    with refused("checksum", train / NAME):
        kind(*given)


NAMES = (
    "../service-00000.tar", "/etc/passwd", "service-00000.tar/../x-00000.tar", "service.tar", "service-0.tar", "",
    "Service-00000.tar", "service-00000.tar\n", "service-0000\u0660.tar", "a" * 255 + "-00000.tar",
    "\0-00000.tar",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_tar_has_a_name_that_is_a_file_of_the_split(train: Path, name: str) -> None:
    rewrite(train, {"shards": ["assistant-00000.tar", "fisher-00000.tar", name]})
    with refused("bad-shards", train / NAME, repr(name[:200])):
        ShardReader(train)


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"sizes": [None, None, None]}, "sizes[0] is None"),
        ({"sizes": [0, 1, 1]}, "assistant-00000.tar of 0 bytes"),
        ({"sizes": [-5, 1, 1]}, "-5 bytes"),
        ({"sizes": [1 << 70, 1, 1]}, "bytes"),
        ({"sizes": [True, 1, 1]}, "sizes[0] is True"),
        ({"sizes": [1.5, 1, 1]}, "sizes[0] is 1.5"),
        ({"sizes": [30_000]}, "3 tars with 1 sizes"),
        ({"sizes": "many"}, "sizes is 'many'"),
        ({"shards": ["fisher-00000.tar"] * 3}, "twice"),
        ({"shards": []}, "no tar"),
        ({"shards": 3}, "shards is 3"),
        ({"shards": [3, 4, 5]}, "shards[0] is 3"),
        ({"sources": []}, "no source"),
        ({"sources": ["../../x", "fisher", "service"]}, "'../../x'"),
        ({"sources": ["a/b", "fisher", "service"]}, "'a/b'"),
        ({"sources": ["fisher", "service"]}, "source of row 6 is 2, not 0 to 1"),
        ({"sources": {"a": 1}}, "sources is {'a': 1}"),
        ({"sha256": ["x", "y", "z"]}, "'x' is no SHA-256"),
        ({"sha256": ["0" * 64]}, "1 hashes"),
        ({"owner": "me"}, "owner is no field"),
        ({"layout": 7}, "another version"),
        ({"layout": "2"}, "another version"),
    ],
)
def test_facts_of_other_types_and_values_are_named(train: Path, facts: dict[str, Any], named: str) -> None:
    rewrite(train, facts)
    with refused("bad-shards", train / NAME, named):
        ShardReader(train)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("shard", 3, 3), "shard of row 3 is 3, not 0 to 2"),
        (put("shard", 3, -1), "shard of row 3 is -1"),
        (put("source", 9, 3), "source of row 9 is 3"),
        (put("source", 0, -1), "source of row 0 is -1"),
        (put("side", 5, 2), "side of row 5 is 2, not 0 to 1"),
        (put("num_frames", 0, 0), "num_frames of row 0 is 0"),
        (put("voice_frames", 0, -4), "voice_frames of row 0 is -4"),
        (put("num_words", 1, -1), "num_words of row 1 is -1"),
        (put("role_chars", 1, -1), "role_chars of row 1 is -1"),
        (put("num_frames", 1, 1 << 20), "num_frames of row 1 is 1048576"),
        (put("voice_frames", 1, (1 << 31) - 1), "voice_frames of row 1 is"),
        (put("num_words", 1, 5000), "num_words of row 1 is 5000"),
        (put("role_chars", 1, 5000), "role_chars of row 1 is 5000"),
        (put("offset", 2, -512), "offset of row 2 is -512"),
        (put("offset", 2, 1 << 40), "offset of row 2"),
        (put("offset", 2, (1 << 63) - 1), "offset of row 2"),
        (place("audio", 4, at=-1), "places of row 4"),
        (place("clip", 4, size=0), "places of row 4"),
        (place("clip", 4, size=-1), "places of row 4"),
        (place("codes", 4, size=(1 << 31) - 1), "places of row 4"),
        (place("meta", 4, at=(1 << 31) - 1, size=(1 << 31) - 1), "places of row 4"),
        (rename(6, "../../../x"), "ids of row 6 is b'../../../x"),
        (rename(6, "a b"), "ids of row 6"),
        (rename(6, ""), "ids of row 6"),
        (rename(6, "__x"), "ids of row 6"),
        (rename(6, "a\0b"), "ids of row 6"),
        (rename(6, "a" * 121), "ids of shape [121]"),
        (lambda columns: columns.update(ids=columns["ids"][:, :0]), "ids of shape [0]"),
        (lambda columns: columns.update(ids=columns["ids"][:, 0]), "ids of shape []"),
        (lambda columns: columns.update(side=columns["side"].astype(np.int8)), "column side is int8 [10]"),
        (lambda columns: columns.update(places=columns["places"][:, :6]), "column places is int32 [10, 6]"),
        (lambda columns: columns.update(places=columns["places"][:5]), "column places is int32 [5, 12]"),
        (lambda columns: columns.update(offset=np.array(0)), "column"),
        (lambda columns: columns.pop("side"), "its columns are"),
        (lambda columns: columns.update(more=np.zeros(10)), "its columns are"),
        (lambda columns: columns.update({name: column[:0] for name, column in columns.items()}), "0 rows"),
    ],
)
def test_rows_lie_in_their_tars_and_have_names(train: Path, change: Callable[[Columns], object], named: str) -> None:
    rewrite(train, change=change)
    with refused("bad-shards", train / NAME, named):
        ShardReader(train)


def test_the_rows_of_a_large_index_are_checked_to_the_last(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.shards.rows.ROWS_AT_ONCE", 3)
    assert len(ShardReader(train)) == 10
    rewrite(train, change=put("side", 9, 7))
    with refused("bad-shards", "side of row 9 is 7"):
        ShardReader(train)


def test_deep_and_damaged_facts_are_named(train: Path) -> None:
    columns = load_file(train / NAME)
    for facts in ("[" * 100_000, "[]", "3", '"\\ud800"', "{"):
        (train / NAME).write_bytes(save(columns, metadata={"facts": facts}))
        with refused("unreadable", train / NAME):
            ShardReader(train)
    (train / NAME).write_bytes(save(columns))
    with refused("unreadable", train / NAME):
        ShardReader(storage_at(train))


def test_a_random_byte_never_ends_in_a_traceback(train: Path) -> None:
    whole, draw = (train / NAME).read_bytes(), np.random.default_rng(0)
    num_refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in draw.integers(0, len(data), int(draw.integers(1, 4))):
            data[at] = draw.integers(0, 256)
        (train / NAME).write_bytes(data[: len(data) - int(draw.integers(0, 2)) * int(draw.integers(0, len(data)))])
        try:
            reader = ShardReader(train)
        except ValueError as why:
            num_refused += 1
            assert type(why).__name__ == "UserError" and "\n" not in str(why), why
            continue
        assert all(0 <= reader.index.columns["offset"][i] < os.path.getsize(train / reader.index.shard_names[
            reader.index.columns["shard"][i]]) for i in range(len(reader)))  # fmt: skip
    assert num_refused > 100
