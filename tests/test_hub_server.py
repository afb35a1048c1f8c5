"""The test hub against the real client, huggingface_hub: it finds, sends, gets and refuses what the real hub does."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import Hub, hub_server

WEIGHTS = bytes(range(256)) * 800


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(tmp_path / "hub") as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "voices").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "voices" / "anna.safetensors").write_bytes(b"voice")
    (folder / "config.json").write_bytes(b"{}\n")
    (folder / "README.md").write_bytes(b"---\nlicense: other\n---\n# model\n")
    return folder


def test_an_uploaded_folder_comes_back_byte_for_byte_and_no_token_reaches_the_storage(hub: Hub, tmp_path: Path) -> None:
    api, folder = HfApi(), folder_of(tmp_path)
    assert api.whoami()["name"] == "ann"
    assert str(api.create_repo("org/model", private=True)).endswith("org/model")
    api.upload_folder(repo_id="org/model", folder_path=folder)
    assert sorted(api.list_repo_files("org/model")) == [
        ".gitattributes", "README.md", "config.json", "model.safetensors", "voices/anna.safetensors",
    ]  # fmt: skip
    assert api.repo_info("org/model").private
    copy = Path(snapshot_download("org/model"))
    for path in folder.rglob("*.*"):
        assert (copy / path.relative_to(folder)).read_bytes() == path.read_bytes()
    stored = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert {request.method for request in stored} == {"PUT", "GET"} and not any(request.token for request in stored)


def test_a_second_upload_of_the_same_folder_makes_no_commit_and_sends_no_weights(hub: Hub, tmp_path: Path) -> None:
    api, folder = HfApi(), folder_of(tmp_path)
    api.create_repo("org/model")
    first = api.upload_folder(repo_id="org/model", folder_path=folder).oid
    sent = sum(request.method == "PUT" for request in hub.requests)
    assert api.upload_folder(repo_id="org/model", folder_path=folder).oid == first
    assert sum(request.method == "PUT" for request in hub.requests) == sent == 2


def test_a_file_of_an_older_commit_can_be_had_by_its_revision(hub: Hub) -> None:
    old = hub.add("org/model", {"config.json": b"old"}).head
    hub.add("org/model", {"config.json": b"new"})
    assert Path(hf_hub_download("org/model", "config.json")).read_bytes() == b"new"
    assert Path(hf_hub_download("org/model", "config.json", revision=old)).read_bytes() == b"old"
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "config.json", revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "model.safetensors")


@pytest.mark.parametrize(("token", "error"), [(None, GatedRepoError), ("hf_reader", GatedRepoError)])
def test_a_gated_repository_shows_its_name_but_not_its_files(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, error: type[Exception]
) -> None:
    repository = hub.add("nvidia/model", {"model.safetensors": WEIGHTS}, gated=True)
    hub.connect(monkeypatch, tmp_path / "home", token)
    assert HfApi().repo_info("nvidia/model").gated == "manual"
    with pytest.raises(error):
        hf_hub_download("nvidia/model", "model.safetensors")
    if token is not None:
        repository.readers.add("bob")
        assert Path(hf_hub_download("nvidia/model", "model.safetensors")).read_bytes() == WEIGHTS


@pytest.mark.parametrize("token", [None, "hf_reader"])
def test_a_private_repository_is_not_found_by_others(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.add("org/secret", {"config.json": b"{}"}, private=True)
    assert hf_hub_download("org/secret", "config.json")
    hub.connect(monkeypatch, tmp_path / "other", token)
    for name in ("org/secret", "org/none"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "config.json")


def test_only_owners_with_a_write_token_may_create_and_upload(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model")
    with pytest.raises(HfHubHTTPError, match="rights to create"):
        HfApi().create_repo("nvidia/mine")
    with pytest.raises(HfHubHTTPError, match="already created"):
        HfApi().create_repo("org/model")
    hub.connect(monkeypatch, tmp_path / "home", "hf_reader")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="org/model")
    hub.connect(monkeypatch, tmp_path / "home", "hf_wrong")
    with pytest.raises(OSError, match="401|Invalid"):
        HfApi().whoami()


def test_a_download_that_is_cut_goes_on_from_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # what was received is kept in chunks
    hub.add("org/model", {"model.safetensors": WEIGHTS})
    hub.fail("GET", "/storage/", cut=0.5)
    assert Path(hf_hub_download("org/model", "model.safetensors")).read_bytes() == WEIGHTS
    ranges = [request.range for request in hub.requests if request.path.startswith("/storage/")]
    assert ranges == [None, f"bytes={len(WEIGHTS) // 2}-"]


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_with_a_bad_moment_is_asked_again(hub: Hub, tmp_path: Path, status: int) -> None:
    api = HfApi()
    api.create_repo("org/model")
    hub.fail("PUT", "/storage/", status=status)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors", repo_id="org/model")
    assert hub.content("org/model", "model.safetensors") == WEIGHTS
    assert [r.status for r in hub.requests if r.method == "PUT"] == [status, 200]


def test_an_upload_without_a_connection_fails_and_changes_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    api = HfApi()
    api.create_repo("org/model")
    hub.fail("PUT", "/storage/", times=-1)
    with pytest.raises(RuntimeError, match="Error while uploading"):  # whichever of the two files fails first
        api.upload_folder(repo_id="org/model", folder_path=folder_of(tmp_path))
    assert api.list_repo_files("org/model") == [".gitattributes"]


def test_a_subprocess_finds_the_hub_through_its_environment(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/model", {"model.safetensors": WEIGHTS}, private=True)
    code = "from huggingface_hub import hf_hub_download as get; print(get('org/model', 'model.safetensors'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == WEIGHTS
    assert (tmp_path / "home") in Path(done.stdout.strip()).parents
