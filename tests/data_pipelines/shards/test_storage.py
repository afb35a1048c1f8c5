"""Shards read by URL: over HTTP from a real server, from fsspec's memory, through its cache, and when things fail."""

import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from data_pipelines import verbs
from data_pipelines.shards import storage
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import Folder, Remote, StorageError, storage_at
from tests.data_pipelines.forked import forked_totals, total
from tests.data_pipelines.kill import tree
from tests.data_pipelines.range_server import Served, serve
from tests.data_pipelines.tiny_dialogues import TinyCodec, overwrite, write_corpus
from tests.refusals import refused

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tiny corpus."""
    folder = tmp_path_factory.mktemp("shards")
    build_shards(write_corpus(folder / "dialogues"), TinyCodec(), folder / "out")
    return folder / "out"


@pytest.fixture
def server(shards: Path) -> Iterator[Served]:
    """The shards over HTTP."""
    with serve(shards) as served:
        yield served


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0, 0.0))


def content(reader: ShardReader) -> Iterator[tuple[Any, ...]]:
    """Everything that a reader gives, to compare."""
    for i in range(len(reader)):
        sample = reader.read(i)
        yield reader.rows[i], sample.codes_QT.tolist(), sample.voice_codes_QP.tolist(), sample.role_prompt, sample.words
        yield reader.dialogue(i), reader.audio(i)[0].tobytes(), reader.voice_clip(i)[0].tobytes()


def same_as_on_disk(url: str, shards: Path) -> None:
    """The shards at a URL hold what the folder holds."""
    for split in ("train", "heldout"):
        assert list(content(ShardReader(f"{url}/{split}"))) == list(content(ShardReader(shards / split)))
    assert read_manifest(url) == read_manifest(shards)


def test_every_storage_gives_what_the_disk_gives(server: Served, shards: Path) -> None:
    same_as_on_disk(server.url, shards)
    same_as_on_disk(f"{server.url}/", shards)
    same_as_on_disk(f"file://{shards}", shards)
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/copy", recursive=True)
    same_as_on_disk("memory://copy", shards)


def test_a_sample_is_one_request_for_its_range(server: Served) -> None:
    reader = ShardReader(f"{server.url}/train")
    assert [path for path, _ in server.requests if path.endswith(".safetensors")] == ["/train/index.safetensors"]
    server.requests.clear()
    reader.read(3)
    reader.read(8)
    ((first, _first_range), (second, second_range)) = server.requests
    assert (first, second) == ("/train/fisher-00000.tar", "/train/service-00000.tar")
    start, end = map(int, second_range.removeprefix("bytes=").split("-"))
    # codes, voice codes and text with their heads; the audio of 200,000 bytes is not fetched
    assert end + 1 - start < 6000


def test_a_cache_of_fsspec_copies_each_shard_once(server: Served, shards: Path, tmp_path: Path) -> None:
    cached = f"filecache::{server.url}"
    fsspec.config.conf["filecache"] = {"cache_storage": str(tmp_path / "cache")}
    try:
        storage._file_system.cache_clear()
        same_as_on_disk(cached, shards)
        assert {path for path, _ in server.requests} > {f"/{name}" for name in read_manifest(shards).shards}
        server.requests.clear()
        same_as_on_disk(cached, shards)
    finally:
        del fsspec.config.conf["filecache"]
    assert not [path for path, _ in server.requests if path.endswith((".tar", ".safetensors"))]
    same_as_on_disk(f"simplecache::{server.url}", shards)


def test_threads_forked_and_spawned_processes_share_a_reader_by_url(server: Served, shards: Path) -> None:
    reader = ShardReader(f"{server.url}/train")
    alone = [total(reader, i) for i in range(10)]
    assert alone == [total(ShardReader(shards / "train"), i) for i in range(10)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, [reader] * 10, range(10))) == alone
    assert forked_totals(f"{server.url}/train") == alone
    copy = pickle.loads(pickle.dumps(reader))
    assert [total(copy, i) for i in range(10)] == alone


@pytest.mark.parametrize("faults", [[503], [500, 429, 503], [0], [0, 503]])
def test_what_passes_is_retried(server: Served, faults: list[int]) -> None:
    reader = ShardReader(f"{server.url}/train")
    expected = total(reader, 5)
    server.faults[:] = faults
    server.requests.clear()
    assert total(reader, 5) == expected
    assert len(server.requests) == len(faults) + 1


def test_a_server_that_stays_down_is_named_and_is_no_bad_sample(server: Served) -> None:
    reader = ShardReader(f"{server.url}/train")
    server.faults[:] = [503] * 4
    with refused("unreachable", f"{server.url}/train/fisher-00000.tar", "4 tries", "503", error=StorageError):
        reader.read(2)
    server.faults[:] = [403]
    with refused("no-access", "fisher-00000.tar", "403", error=StorageError):
        reader.read(2)


def test_nobody_at_the_url_is_named(server: Served) -> None:
    with refused("not-found", f"{server.url}/nowhere/index.safetensors", "check the URL"):
        ShardReader(f"{server.url}/nowhere")
    with refused("not-found", f"{server.url}/nowhere/manifest.json", "check the URL"):
        read_manifest(f"{server.url}/nowhere")
    with refused("unreachable", "http://127.0.0.1:9/shards", "Connect", error=StorageError):
        read_manifest("http://127.0.0.1:9/shards")


def test_a_server_without_ranges_is_refused_before_it_sends_shard_after_shard(server: Served) -> None:
    reader = ShardReader(f"{server.url}/train")
    server.ranges = False
    with refused("bad-answer", f"simplecache::{server.url}", error=StorageError):
        reader.read(2)


def test_a_tar_that_is_cut_is_refused_on_reading(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    path = tmp_path / "copy" / "train" / "service-00000.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with refused("bad-shards", "service-00000.tar", "20000 bytes"):
        ShardReader(f"file://{tmp_path / 'copy'}/train")  # lists sizes
    with serve(tmp_path / "copy") as served:
        reader = ShardReader(f"{served.url}/train")  # cannot
        with pytest.raises(StorageError, match="service-00000.tar (has .* bytes at .*|.*416)"):
            reader.read(9)
    path.unlink()
    with refused("bad-shards", "service-00000.tar", "is missing"):
        ShardReader(f"file://{tmp_path / 'copy'}/train")


def test_a_missing_client_is_named() -> None:
    if find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with refused("missing-package", "s3://bucket/shards", "s3fs"):
        read_manifest("s3://bucket/shards")


def test_a_url_that_nothing_opens_is_refused() -> None:
    with refused("bad-value", "cloud9://x"):
        read_manifest("cloud9://x")


def test_a_path_is_no_url() -> None:
    assert storage_at("out/shards") == Folder(Path("out/shards"))
    assert storage_at("s3://bucket/shards/") == Remote("s3://bucket/shards")
    assert storage_at("simplecache::s3://bucket/shards") == Remote("simplecache::s3://bucket/shards")


def test_a_tar_that_goes_away_is_no_bad_sample(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    reader = ShardReader(tmp_path / "copy" / "train")
    (tmp_path / "copy" / "train" / "fisher-00000.tar").unlink()
    with refused("unreadable", "fisher-00000.tar", "No such file", error=StorageError):
        reader.read(2)


def test_a_folder_that_cannot_be_listed_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with refused("unreadable", shards / "train", "Permission denied", error=StorageError):
        ShardReader(shards / "train")


def test_exports_read_a_url_that_ends_in_a_slash(shards: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(str(shards), "/slash", recursive=True)
    for name, url in (("near", str(shards)), ("far", "memory://slash/")):
        verbs.main(["to-moshi", url, "--out", str(tmp_path / name)])
    assert tree(tmp_path / "far") == tree(tmp_path / "near")


def test_extract_leaves_nothing_where_it_fails(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    id = ShardReader(shards / "heldout").rows[0].id
    overwrite(tmp_path / "copy" / "heldout", id, "left.voice.flac", lambda data: b"\0" * len(data))
    with refused("bad-shards", id, "voice.flac", error=BadSample):
        verbs.main(["extract", str(tmp_path / "copy" / "heldout"), "--id", id, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with refused("unknown-name", shards / "heldout", "'x' and 'service'"):
        verbs.main(
            ["extract", str(shards / "heldout"), "--id", "x", "--source", "service", "--out", str(tmp_path / "o")]
        )


def test_extract_takes_a_dialogue_out_by_url(server: Served, shards: Path, tmp_path: Path) -> None:
    verbs.main(["extract", f"{server.url}/heldout", "--out", str(tmp_path / "far")])
    verbs.main(["extract", str(shards / "heldout"), "--out", str(tmp_path / "near")])
    names = sorted(path.name for path in (tmp_path / "near").iterdir())
    assert names == ["agent.flac", "meta.json", "role.txt", "user.flac", "voice.flac"]
    for name in names:
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "near" / name).read_bytes()
