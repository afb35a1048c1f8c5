"""Shards from elsewhere: no verb reads or writes outside of the folders that it was given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines import verbs
from data_pipelines.files import sha256_file
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.rows import NAME, PARTS, Index
from model.errors import UserError
from tests.data_pipelines.kill import tree
from tests.data_pipelines.tiny_dialogues import TinyCodec, overwrite, write_dialogue
from tests.refusals import refused

SECRET = b"-----BEGIN PRIVATE KEY-----" * 1000
VERBS = ("to-hf", "to-moshi", "extract")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """One dialogue in shards, two folders below a file that is nobody's business."""
    write_dialogue(tmp_path / "dialogues", "talk", seconds=2.0)
    (tmp_path / "a/b").mkdir(parents=True)
    build_shards([tmp_path / "dialogues"], TinyCodec(), tmp_path / "a/b/shards")
    (tmp_path / "a/secret").write_bytes(SECRET)
    return tmp_path / "a/b/shards"


def forge(shards: Path, change: Callable[[Index], object]) -> None:
    """Changes the index of the training split, and the manifest with it."""
    index = Index.load(shards / "train")
    index.columns = {name: column.copy() for name, column in index.columns.items()}
    change(index)
    index.save(shards / "train" / NAME)
    edit(shards, lambda manifest: manifest.get("index", {}).update(train=sha256_file(shards / "train" / NAME)))


def edit(shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest."""
    manifest = json.loads((shards / "manifest.json").read_text())
    change(manifest)
    (shards / "manifest.json").write_text(json.dumps(manifest))


def run(verb: str, shards: Path, out: Path) -> None:
    """Runs a verb that writes what shards hold."""
    if verb == "to-hf":
        pytest.importorskip("datasets")
    verbs.main([verb, str(shards / "train" if verb == "extract" else shards), "--out", str(out)])


def name_the_secret(index: Index) -> None:
    """Makes the index say that the voice clip is a file outside of the shards, whose size is unknown."""
    index.shard_names, index.shard_sizes = ["../../../secret"], [None]  # type: ignore[list-item]
    index.columns["offset"][:] = 0
    k = 2 * PARTS.index("clip")
    index.columns["places"][0, k : k + 2] = (0, 200)


def rename_the_dialogue(index: Index) -> None:
    """Gives the dialogue an id that leads out of any folder."""
    id = b"../../../x"
    index.columns["ids"] = np.frombuffer(id, np.uint8)[None].copy()


def rename_the_source(index: Index) -> None:
    """Gives the source a name that leads out of any folder."""
    index.source_names = ["../../../x"]


@pytest.mark.parametrize("verb", [*VERBS, "check"])
@pytest.mark.parametrize("trick", [name_the_secret, rename_the_dialogue, rename_the_source])
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_written(
    foreign: Path, tmp_path: Path, verb: str, trick: Callable[[Index], object]
) -> None:
    forge(foreign, trick)
    before = tree(tmp_path)
    with refused("bad-shards"):
        verbs.main(["check", str(foreign)]) if verb == "check" else run(verb, foreign, tmp_path / "a/b/out")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("member", ["audio.flac", "left.voice.flac"])
def test_bytes_that_are_no_flac_are_not_passed_on(foreign: Path, tmp_path: Path, verb: str, member: str) -> None:
    overwrite(foreign / "train", "talk", member, lambda data: SECRET[: len(data)].ljust(len(data), b"."))
    with refused("bad-shards", "sample talk", "is no FLAC"):
        run(verb, foreign, tmp_path / "a/b/out")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert sorted(path.name for path in written) == ["secret", "service-00000.tar"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("field", "value"), [("id", "../x"), ("source", "../../x"), ("source", "a/b..cd")])
def test_a_record_that_names_itself_otherwise_is_refused(
    foreign: Path, tmp_path: Path, verb: str, field: str, value: str
) -> None:
    own = {"id": "talk", "source": "service"}[field]
    old, new = (f'"{field}": "{name}"'.encode() for name in (own, value))
    overwrite(foreign / "train", "talk", "meta.json", lambda data: data.replace(old, new))
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    with pytest.raises(UserError) as caught:
        run(verb, foreign, tmp_path / "a/b/out")
    assert caught.value.code == "bad-shards" and "sample talk" in str(caught.value)
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before


@pytest.mark.parametrize("verb", VERBS)
def test_an_index_that_is_not_the_manifests_is_refused(foreign: Path, tmp_path: Path, verb: str) -> None:
    index = Index.load(foreign / "train")
    index.columns["num_words"] = index.columns["num_words"] + 1
    index.save(foreign / "train" / NAME)
    with refused("checksum", foreign / "train" / NAME):
        run(verb, foreign, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_cannot_hide_a_licence(foreign: Path, tmp_path: Path) -> None:
    overwrite(foreign / "train", "talk", "meta.json", lambda data: data.replace(b'"CC0-1.0"', b'"LDC-1.0"'))
    with refused("bad-shards", "sample talk", "'LDC-1.0'"):
        run("to-hf", foreign, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))
