"""`ppx-export voice`: from a pickled voice to one that a conversation can be prompted with."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import config_to_dict, save_native
from model.weights.tensor_files import read_header
from ppx_train.cli import commands as cli
from ppx_train.export.convert_voice import main
from ppx_train.inference.loading import read_voice
from tests.hub_server import hub_server
from tests.model.weights.test_voices import CONFIG, random_voice, write_voice


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("model")
    save_native(folder, DuplexLM(CONFIG), dtype=torch.bfloat16)
    return folder


@pytest.fixture
def pickled(tmp_path: Path, model: Path) -> Path:
    return write_voice(tmp_path / "NATF0.pt", read_header(model / "model.safetensors"), random_voice(12))


def test_a_converted_voice_is_one_of_ours_with_its_terms(
    tmp_path: Path, model: Path, pickled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "voices" / "NATF0.safetensors"
    assert main([f"in={pickled}", f"model={model}", f"out={out}", "licence=CC0-1.0", "consent=it is noise"]) == 0
    assert torch.equal(read_voice(out, CONFIG)[:, 1:], random_voice(12)[:, 1:])
    with safe_open(out, "pt") as file:
        facts = file.metadata()
    assert (facts["name"], facts["licence"], facts["consent"]) == ("NATF0", "CC0-1.0", "it is noise")
    assert len(facts["sha256"]) == 64 and facts["label"] == "NATF0"
    assert "12 frames, which give the embeddings of NATF0.pt bit by bit" in capsys.readouterr().out


def test_a_folder_of_voices_becomes_a_folder_of_voices(tmp_path: Path, model: Path, pickled: Path) -> None:
    write_voice(tmp_path / "NATM1.pt", read_header(model / "model.safetensors"), random_voice(5, seed=1))
    main([f"in={tmp_path}", f"model={model}", f"out={tmp_path / 'out'}"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["NATF0.safetensors", "NATM1.safetensors"]
    assert torch.equal(read_voice(tmp_path / "out/NATM1.safetensors", CONFIG)[:, 1:], random_voice(5, seed=1)[:, 1:])


def test_the_model_may_be_an_export_without_shapes_in_its_config(tmp_path: Path, model: Path, pickled: Path) -> None:
    """As layout nvidia is: its config.json only names the model, the shapes are in our own file."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export/model.safetensors").symlink_to(model / "model.safetensors")
    (tmp_path / "export/config.json").write_text('{"model_type": "personaplex", "version": "7b-v1"}')
    sidecar = {"format": 1, "lm": config_to_dict(CONFIG), "prompt": {}}
    (tmp_path / "export/personaplex.json").write_text(json.dumps(sidecar))
    main([f"in={pickled}", f"model={tmp_path / 'export'}", f"out={tmp_path / 'a.safetensors'}"])
    assert read_voice(tmp_path / "a.safetensors", CONFIG).shape == (8, 12)


def test_the_model_may_be_a_repository(
    tmp_path: Path, model: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"in={pickled}", "model=org/model", f"out={tmp_path / 'a.safetensors'}"]
    with hub_server(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        first = hub.add("org/model", model).head
        with pytest.raises(UserError, match="org/model: the repository has no revision v2"):
            main([*arguments, "revision=v2"])
        main([*arguments, f"revision={first}"])
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["licence"] == "that of org/model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in": "none.pt"}, "none.pt: no such file"),
        ({"in": "empty"}, "in=empty: the folder holds no .pt"),
        ({"model": "none/"}, "none/: no such folder"),
        ({"out": "voice.pt"}, "out=voice.pt: give a file that ends in .safetensors"),
        ({"out": "there.safetensors"}, "there.safetensors: exists already"),
        ({"model": ""}, "model is not given: ppx-export voice in="),
        ({"quality": "best"}, "'quality=best': write key=value with a key of in, model, out"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    tmp_path: Path, model: Path, pickled: Path, change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("there.safetensors").write_bytes(b"mine")
    given = {"in": str(pickled), "model": str(model), "out": "a.safetensors"} | change
    with pytest.raises(UserError) as caught:
        main([f"{key}={value}" for key, value in given.items()])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("a.safetensors").exists() and Path("there.safetensors").read_bytes() == b"mine"


def test_it_is_a_verb_of_the_command(
    tmp_path: Path, model: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"
    monkeypatch.setattr(sys, "argv", ["ppx-export", "voice", f"in={pickled}", f"model={model}", f"out={out}"])
    with pytest.raises(SystemExit) as ended:
        cli.export()
    assert ended.value.code == 0 and out.is_file()
