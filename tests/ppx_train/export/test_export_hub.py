"""`--push`: an export goes up to a local hub, comes back the same, and nothing there is ever replaced."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import save_native
from ppx_train.cli import export
from ppx_train.config.load import load
from ppx_train.export import folder
from ppx_train.export.export_settings import ExportSettings
from ppx_train.inference.loading import find_voice, load_release
from tests.hub_server import Hub, User, hub_server
from tests.paths import ROOT
from tests.ppx_train.fixtures import greedy_tokens, run_arguments, write_checkpoint
from tests.refusals import refused

COMMAND = [sys.executable, "-c", "from ppx_train.cli.export import main; main()"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(tmp_path / "hub") as server:
        server.connect(monkeypatch, tmp_path / "home")
        monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's retries
        yield server


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DuplexLM]:
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, write_checkpoint(prepared, run_dir, 6)[1]


def arguments(run_dir: Path, out: Path, *more: str) -> list[str]:
    """The words of ppx-export, with one option in each of `more`."""
    words = ["--checkpoint", str(run_dir), "--out", str(out), "--dtype", "fp32", "--push", "org/talker"]
    return words + " ".join(more).split()


def as_command(words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    environment = environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *words], env=environment, text=True, timeout=1200, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


def uploads(hub: Hub) -> int:
    return sum(request.method == "PUT" and request.status == 200 for request in hub.requests)


def test_the_command_uploads_a_private_copy_that_comes_back_byte_for_byte_and_talks_alike(
    hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, output = as_command(arguments(run[0], out), hub.environment(tmp_path / "other_home"))
    assert code == 0, output
    assert f"{hub.url}/org/talker" in output
    assert hub.repositories["org/talker"].private
    for path in out.rglob("*"):
        if path.is_file():
            assert hub.content("org/talker", path.relative_to(out).as_posix()) == path.read_bytes()
    assert "ppx-chat --model org/talker" in (out / "README.md").read_text()

    release = load_release("org/talker")
    assert tmp_path / "home" in release.voices["espeak-a"].parents  # downloaded, not read from `out`
    assert torch.equal(greedy_tokens(release.lm), greedy_tokens(run[1]))
    assert torch.equal(find_voice(release, "espeak-a"), find_voice(load_release(out), "espeak-a"))


def test_after_a_lost_connection_the_same_command_only_uploads(
    hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hub.fail("PUT", "/storage/", cut=0.5, times=-1)
    with pytest.raises(UserError, match="no answer from the hub") as why:
        export.command(arguments(run[0], out))
    assert "\n" not in str(why.value)
    assert f"`hf upload org/talker {out} --private`" in str(why.value)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert hub.repositories["org/talker"].messages == ["initial"]
    hub.faults.clear()
    export.command(arguments(run[0], out))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == made
    assert hub.content("org/talker", "model.safetensors") == (out / "model.safetensors").read_bytes()
    sent, commits = uploads(hub), len(hub.repositories["org/talker"].commits)
    export.command(arguments(run[0], out))
    assert (uploads(hub), len(hub.repositories["org/talker"].commits)) == (sent, commits)


def test_a_folder_that_is_not_this_export_is_not_uploaded(hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.command(arguments(run[0], out, "--include-voices none"))
    with refused("other-settings", f"--out {out} exists"):
        export.command(arguments(run[0], out, "--layout nvidia", "--include-voices none"))
    (out / "config.json").write_text("{}")
    with refused("checksum", out / "config.json"):
        export.command(arguments(run[0], out, "--include-voices none"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with refused("other-settings", tmp_path / "mine"):
        export.command(arguments(run[0], tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert len(hub.repositories["org/talker"].commits) == 2


@pytest.mark.parametrize("when", ["before the export", "after the export"])
def test_a_repository_with_other_files_is_left_as_it_is(
    hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fill() -> None:
        hub.add("org/talker", {"model.safetensors": b"theirs", "README.md": b"theirs"}, private=True)

    if when == "before the export":
        fill()
    else:
        real = folder.export_checkpoint

        def export_then_fill(checkpoint: Path, out: Path, settings: ExportSettings) -> Path:
            real(checkpoint, out, settings)
            fill()
            return out

        monkeypatch.setattr(folder, "export_checkpoint", export_then_fill)
    with pytest.raises(UserError, match=r"holds other files \(README.md, model.safetensors\), which are not replaced"):
        export.command(arguments(run[0], tmp_path / "out", "--include-voices none"))
    assert (tmp_path / "out").exists() == (when == "after the export")
    assert hub.content("org/talker", "model.safetensors") == b"theirs"


def test_public_must_be_asked_for_and_is_never_changed(hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path) -> None:
    hub.add("org/open")
    hub.add("org/closed", private=True)
    words = ["--checkpoint", str(run[0]), "--out", str(tmp_path / "out"), "--include-voices", "none"]
    with pytest.raises(UserError, match="--push org/open exists and is public.* give --public"):
        export.command([*words, "--push", "org/open"])
    with pytest.raises(UserError, match="--push org/closed exists and is private.* leave out --public"):
        export.command([*words, "--push", "org/closed", "--public"])
    assert not (tmp_path / "out").exists()
    export.command([*words, "--push", "org/new", "--public"])
    assert not hub.repositories["org/new"].private


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        (None, "org/talker", "not logged in; run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "org/talker", "does not know the token .*hf auth login"),
        ("hf_reader", "bob/talker", "the token may only read"),
        ("hf_writer", "nvidia/talker", "you may write to ann, org; choose one of these"),
        ("hf_writer", "talker", "give ORG/NAME"),
        ("hf_writer", "org/my talker", "not a repository name"),
        ("hf_writer", "org/a/b", "not a repository name"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_the_export(
    hub: Hub,
    run: tuple[Path, DuplexLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    name: str,
    message: str,
) -> None:
    hub.connect(monkeypatch, tmp_path / "home", token)
    with pytest.raises(UserError, match=message) as why:
        export.command(["--checkpoint", str(run[0]), "--out", str(tmp_path / "out"), "--push", name])
    assert "\n" not in str(why.value) and name in str(why.value)
    assert not (tmp_path / "out").exists() and not hub.repositories


def test_a_hub_that_cannot_be_reached_is_said_before_the_export(
    hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail("GET", "/api/whoami", times=-1)
    with pytest.raises(UserError, match="no answer from the hub .*check the network"):
        export.command(arguments(run[0], tmp_path / "out"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        export.command(arguments(run[0], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_right_that_is_lost_during_the_export_is_said_and_the_export_stays(
    hub: Hub, run: tuple[Path, DuplexLM], tmp_path: Path
) -> None:
    hub.users["hf_writer"] = User(name="ann", orgs=("org",), role="fineGrained")
    hub.fail("POST", "/api/repos/create", status=403)
    with pytest.raises(UserError, match="refused by the hub .*what your token may do; .*out is whole"):
        export.command(arguments(run[0], tmp_path / "out", "--include-voices none"))
    assert (tmp_path / "out" / "SHA256SUMS").is_file()


def test_an_adapter_goes_up_with_the_name_and_commit_of_its_base_on_the_hub(
    hub: Hub, prepared: Path, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    lm = DuplexLM(load(run_arguments(prepared, tmp_path)).model.lm)
    save_native(tmp_path / "start", lm, dtype=torch.bfloat16, dep_q=8)
    commit = hub.add("kyutai/moshiko-pytorch-bf16", tmp_path / "start").head
    lora = ["model.lora.rank=3", "model.init=kyutai/moshiko-pytorch-bf16"]
    folder, _ = write_checkpoint(prepared, tmp_path / "run", 2, *lora)
    hub.add("kyutai/moshiko-pytorch-bf16", {"notes.txt": b"a later commit"})
    merged = load_release(_export(folder, tmp_path / "merged")).lm
    export.command(arguments(folder, tmp_path / "out", "--layout lora"))

    sidecar = json.loads(hub.content("org/talker", "personaplex.json"))
    assert sidecar["base"] == {"name": "kyutai/moshiko-pytorch-bf16", "commit": commit}
    config = json.loads(hub.content("org/talker", "config.json"))
    assert config["moshi_name"] == "hf://kyutai/moshiko-pytorch-bf16/model.safetensors"
    card = ModelCard(hub.content("org/talker", "README.md").decode())
    facts = card.data.to_dict()
    assert facts["base_model"] == "kyutai/moshiko-pytorch-bf16"
    assert (facts["base_model_relation"], facts["license"]) == ("adapter", "cc-by-4.0")
    assert f"| start weights | kyutai/moshiko-pytorch-bf16, revision {commit} |" in card.text
    assert "- start weights `kyutai/moshiko-pytorch-bf16` under cc-by-4.0" in card.text
    [start, *_] = sidecar["ingredients"]
    assert (start["name"], start["revision"], start["licence"]) == (facts["base_model"], commit, "cc-by-4.0")
    assert torch.equal(greedy_tokens(load_release("org/talker").lm), greedy_tokens(merged))


def test_an_adapter_of_a_local_base_needs_a_place_where_others_find_it(
    hub: Hub, prepared: Path, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    save_native(tmp_path / "start", DuplexLM(load(run_arguments(prepared, tmp_path)).model.lm), dep_q=8)
    folder, _ = write_checkpoint(prepared, tmp_path / "run", 2, "model.lora.rank=3", f"model.init={tmp_path / 'start'}")
    words = arguments(folder, tmp_path / "out", "--layout lora")
    with pytest.raises(UserError, match="is on this machine only.* give --base ORG/NAME"):
        export.command(words)
    hub.add("org/start", tmp_path / "start")
    export.command([*words, "--base", "org/start"])
    assert json.loads(hub.content("org/talker", "personaplex.json"))["base"]["name"] == "org/start"
    assert os.fspath(tmp_path).encode() not in b"".join(
        hub.content("org/talker", name) for name in ("README.md", "config.json", "personaplex.json")
    )


def _export(folder: Path, out: Path) -> Path:
    export.command(["--checkpoint", str(folder), "--out", str(out), "--dtype", "fp32"])
    return out
