"""Models, codecs and tokenizers by repository name, from a local hub: permissions, revisions, cache, bad networks."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, utils

from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import from_pretrained, native_state_dict, save_native
from model.weights.sources import CODEC_FILE, TOKENIZER_FILE, codec_path, hub_download, hub_errors, tokenizer_path
from tests.hub_server import Hub, hub_server
from tests.model.golden import language_model, lm_config, weights, write_parts
from tests.refusals import refused

REPOSITORY = "nvidia/personaplex-small"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a repository of a stranger: the tokens of this test own nothing there."""
    save_native(tmp_path / "model", language_model("lm_small"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with hub_server(tmp_path / "hub") as server:
        server.connect(monkeypatch, tmp_path / "home", token=None)
        server.add(REPOSITORY, tmp_path / "model")
        forget_sessions()
        yield server
    forget_sessions()


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """As HF_HUB_OFFLINE does, which is read once, when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    forget_sessions()


def forget_sessions() -> None:
    """Before huggingface_hub 1, sessions remember whether they are offline."""
    getattr(utils, "reset_sessions", lambda: None)()


def assert_is_the_model(model: DuplexLM) -> None:
    ours = native_state_dict(model)
    assert all(torch.equal(ours[name], tensor) for name, tensor in weights("lm_small").items())


def load(name: str, revision: str | None = None) -> DuplexLM:
    return from_pretrained(name, lm_config("lm_small"), revision)


def test_a_repository_loads_by_name_and_only_its_weights_are_fetched(hub: Hub) -> None:
    hub.add(REPOSITORY, {"voices.tgz": b"large", "pytorch_model.bin": b"pickle"})
    assert_is_the_model(from_pretrained(REPOSITORY))
    assert not any("voices" in request.path or ".bin" in request.path for request in hub.requests)


def test_weights_in_several_files_load_from_a_repository(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write_parts(tmp_path / "parts", weights("lm_small"), 3)
    hub.add("org/parts", tmp_path / "parts")
    assert_is_the_model(from_pretrained("org/parts", lm_config("lm_small")))


def test_a_revision_chooses_the_weights(hub: Hub, tmp_path: Path) -> None:
    first = hub.repositories[REPOSITORY].head
    save_native(tmp_path / "eight", language_model("lora_small"))
    hub.add(REPOSITORY, tmp_path / "eight")
    assert from_pretrained(REPOSITORY).config.dep_q == 8
    assert_is_the_model(from_pretrained(REPOSITORY, revision=first))


def test_a_revision_that_does_not_exist_is_named(hub: Hub) -> None:
    with refused("not-found", REPOSITORY, "v9"):
        load(REPOSITORY, "v9")
    with refused("not-found", f"codec={REPOSITORY}", "v9"):
        hub_download(REPOSITORY, CODEC_FILE, "codec", "v9")


def test_a_repository_that_does_not_exist_is_a_wrong_name(hub: Hub) -> None:
    with refused("not-found", "nvidia/personaplexx"):
        load("nvidia/personaplexx")


def test_a_private_repository_needs_a_token_of_its_owner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/secret", {"model.safetensors": hub.content(REPOSITORY, "model.safetensors")}, private=True)
    with refused("not-found", "org/secret", "log in with `hf auth login` if it is private"):
        load("org/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert_is_the_model(from_pretrained("org/secret", lm_config("lm_small")))


def test_a_gated_repository_says_how_to_get_access(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPOSITORY, gated=True)
    advice = "ask for access on its hub page, then log in with `hf auth login`, or set HF_TOKEN"
    with refused("no-access", REPOSITORY, advice):
        load(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")  # This user is logged in, but has not accepted the licence yet.
    with refused("no-access", REPOSITORY, advice):
        load(REPOSITORY)
    hub.repositories[REPOSITORY].readers.add("bob")
    assert_is_the_model(from_pretrained(REPOSITORY))


def test_a_token_that_the_hub_does_not_know_is_a_user_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with refused("no-access", REPOSITORY, "log in with `hf auth login`, or correct HF_TOKEN"):
        load(REPOSITORY)


def test_a_repository_without_weights_is_no_model(hub: Hub) -> None:
    hub.add("org/pickled", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    with refused("not-found", "org/pickled", "model.safetensors"):
        load("org/pickled")


def test_codec_and_tokenizer_are_found_by_repository_name(hub: Hub) -> None:
    hub.add("kyutai/parts", {CODEC_FILE: b"codec", TOKENIZER_FILE: b"pieces"})
    assert codec_path("kyutai/parts").read_bytes() == b"codec"
    assert tokenizer_path("kyutai/parts").read_bytes() == b"pieces"
    with refused("not-found", f"codec={REPOSITORY}", CODEC_FILE):
        codec_path(REPOSITORY)
    hub.add(REPOSITORY, gated=True)
    with refused("no-access", f"tokenizer={REPOSITORY}"):
        tokenizer_path(REPOSITORY)


# -- networks ---------------------------------------------------------------------------------------------------------


def test_what_was_fetched_once_loads_without_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_pretrained(REPOSITORY)
    commit, asked = hub.repositories[REPOSITORY].head, len(hub.requests)
    set_offline(monkeypatch, True)
    assert_is_the_model(from_pretrained(REPOSITORY))
    assert_is_the_model(from_pretrained(REPOSITORY, revision=commit))
    assert len(hub.requests) == asked
    for name, revision in (("nvidia/other", None), (REPOSITORY, "v9")):
        with refused("unreachable", name, "HF_HUB_OFFLINE"):
            load(name, revision)
    with refused("unreachable", f"codec={REPOSITORY}", "HF_HUB_OFFLINE"):
        codec_path(REPOSITORY)


def test_a_hub_that_is_down_is_no_obstacle_to_what_is_cached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from_pretrained(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert_is_the_model(from_pretrained(REPOSITORY))
    with refused("unreachable", "nvidia/other", "the hub cannot be reached"):
        load("nvidia/other")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.fail("GET", "/api/models/nvidia/other", status=503, times=-1)
    with refused("unreachable", "nvidia/other", "503"):
        load("nvidia/other")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what was received is kept in chunks


@pytest.mark.usefixtures("impatient")
def test_a_download_that_is_cut_goes_on_where_it_stopped(hub: Hub) -> None:
    hub.fail("GET", "/storage/", cut=0.6)
    try:
        model = from_pretrained(REPOSITORY)
    except UserError as why:  # before huggingface_hub 2 the next call goes on, since then the same one
        assert why.code == "unreachable"
        model = from_pretrained(REPOSITORY)
    assert_is_the_model(model)
    ranges = [request.range for request in hub.requests if request.path.startswith("/storage/")]
    size = len(hub.content(REPOSITORY, "model.safetensors"))
    assert ranges == [None, f"bytes={int(0.6 * size) // 1024 * 1024}-"]


@pytest.mark.parametrize("cut", [0.0, 0.6])
@pytest.mark.usefixtures("impatient")
def test_a_download_that_never_ends_well_is_an_error_and_leaves_nothing_to_be_taken_for_a_model(
    hub: Hub, cut: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(100):  # every further piece of the file ends early too
        hub.fail("GET", "/storage/", cut=cut if n < 1 else 0.0)
    with refused("unreachable", REPOSITORY, "run it again, whole files are kept"):
        load(REPOSITORY)
    set_offline(monkeypatch, True)
    with pytest.raises(UserError, match=r"not \(whole\) in the hub's cache|its cached copy holds no model"):
        load(REPOSITORY)
    set_offline(monkeypatch, False)
    hub.faults.clear()
    assert_is_the_model(from_pretrained(REPOSITORY))


def test_a_full_disk_is_reported_as_such(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError) as caught, hub_errors(REPOSITORY):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache")
    assert not isinstance(caught.value, UserError) and caught.value.errno == errno.ENOSPC


def test_the_environment_of_huggingface_hub_decides_where_and_with_which_token(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, gated=True)
    hub.repositories[REPOSITORY].readers.add("bob")
    code = (
        f"from model.weights.checkpoint import from_pretrained; print(from_pretrained({REPOSITORY!r}).num_parameters())"
    )
    for token, expected in (("hf_reader", ""), (None, "is gated: ask for access")):
        environment = hub.environment(tmp_path / f"home-{token}", token) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
        )
        assert (done.returncode == 0) == (expected == ""), done.stderr
        assert expected in done.stderr
    assert (tmp_path / "home-hf_reader" / "hub" / "models--nvidia--personaplex-small").is_dir()
