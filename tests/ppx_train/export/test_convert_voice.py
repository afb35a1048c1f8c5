"""`ppx-voice convert`: from a pickled voice to one that a conversation can be prompted with."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from data_pipelines.files import sha256_file
from model.duplex import DuplexLM
from model.errors import Code, UserError
from model.mimi.files import load_mimi
from model.weights.checkpoint import save_native
from model.weights.tensor_files import read_header
from ppx_train.cli import voice
from ppx_train.voices.voice_file import read_voice
from tests.hub_server import hub_server
from tests.model.weights.test_voices import CONFIG, random_voice, write_voice
from tests.ppx_train.fixtures import make_codec, sidecar_of
from tests.refusals import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("model")
    save_native(folder, DuplexLM(CONFIG), dtype=torch.bfloat16)
    make_codec(folder / "mimi.safetensors")
    return folder


@pytest.fixture
def pickled(tmp_path: Path, model: Path) -> Path:
    return write_voice(tmp_path / "NATF0.pt", read_header(model / "model.safetensors"), random_voice(12))


def convert(source: Path, model: Path | str, out: Path, *more: str) -> None:
    voice.command(["convert", str(source), "--model", str(model), "--out", str(out), *more])


def test_a_converted_voice_is_one_of_ours_with_its_terms(
    tmp_path: Path, model: Path, pickled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "voices" / "NATF0.safetensors"
    convert(pickled, model, out, "--licence", "CC0-1.0", "--consent", "it is noise")
    made = read_voice(out, CONFIG)
    assert torch.equal(made.codes_QP[:, 1:], random_voice(12)[:, 1:]) and made.is_sealed
    assert made.texts() == {
        "id": "NATF0", "label": "NATF0", "licence": "CC0-1.0", "consent": "it is noise",
        "codec": load_mimi(model).fingerprint(), "source": sha256_file(pickled),
    }  # fmt: skip
    assert "12 frames, which give the embeddings of NATF0.pt bit by bit" in capsys.readouterr().out


def test_a_folder_of_voices_becomes_a_folder_of_voices(tmp_path: Path, model: Path, pickled: Path) -> None:
    write_voice(tmp_path / "NATM1.pt", read_header(model / "model.safetensors"), random_voice(5, seed=1))
    convert(tmp_path, model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["NATF0.safetensors", "NATM1.safetensors"]
    assert torch.equal(
        read_voice(tmp_path / "out/NATM1.safetensors", CONFIG).codes_QP[:, 1:], random_voice(5, seed=1)[:, 1:]
    )


def test_the_model_may_be_an_export_without_shapes_in_its_config(tmp_path: Path, model: Path, pickled: Path) -> None:
    """As layout nvidia is: its config.json only names the model, the shapes are in our own file."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export/model.safetensors").symlink_to(model / "model.safetensors")
    (tmp_path / "export/mimi.safetensors").symlink_to(model / "mimi.safetensors")
    (tmp_path / "export/config.json").write_text('{"model_type": "personaplex", "version": "7b-v1"}')
    (tmp_path / "export/personaplex.json").write_text(json.dumps(sidecar_of(CONFIG).to_json()))
    convert(pickled, tmp_path / "export", tmp_path / "a.safetensors")
    assert read_voice(tmp_path / "a.safetensors", CONFIG).codes_QP.shape == (8, 12)


def test_the_model_may_be_a_repository(
    tmp_path: Path, model: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"
    with hub_server(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        first = hub.add("org/model", model).head
        with pytest.raises(UserError, match="org/model: .* no revision v2"):
            convert(pickled, "org/model", out, "--revision", "v2")
        convert(pickled, "org/model", out, "--revision", first)
    with safe_open(out, "pt") as file:
        assert file.metadata()["licence"] == "that of org/model" and "consent" not in file.metadata()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["empty"], "no-data", "empty: the folder holds no .pt"),
        (["NATF0.pt", "--model", "none/"], "not-found", "none/"),
        (["NATF0.pt", "--out", "voice.pt"], "bad-value", "--out voice.pt: give a file that ends in .safetensors"),
        (["NATF0.pt", "--out", "there.safetensors"], "exists", "there.safetensors"),
        (["NATF0.pt", "--out", "no id.safetensors"], "bad-value", "'no id'"),
        (["NATF0.pt", "--quality", "best"], "unknown-name", "ppx-voice: no option --quality"),
        (["NATF0.pt", "--modell", "m"], "unknown-name", "did you mean '--model'?"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    tmp_path: Path,
    model: Path,
    pickled: Path,
    words: list[str],
    code: Code,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("there.safetensors").write_bytes(b"mine")
    with refused(code, named):
        voice.command(["convert", "--model", str(model), "--out", "a.safetensors", *words])
    assert not Path("a.safetensors").exists() and Path("there.safetensors").read_bytes() == b"mine"


def test_a_model_and_a_place_must_be_given() -> None:
    with refused("missing-option", "ppx-voice convert: --model, --out must be given"):
        voice.command(["convert", "NATF0.pt"])
    with refused("missing-option", "VERB"):
        voice.command([])


def test_it_is_a_command(tmp_path: Path, model: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.safetensors"
    words = ["ppx-voice", "convert", str(pickled), "--model", str(model), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        voice.main()
    assert ended.value.code == 0 and out.is_file()
