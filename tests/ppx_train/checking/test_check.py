"""`ppx-train check` on the golden shards: what it finds good, what it finds wrong, and what it tells others."""

import getpass
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import Code
from model.kernels import attention, fast_paths
from model.streaming import temporal_stream
from ppx_train.checking import check as checks
from ppx_train.checking.check import check_memory, planned_figures, refuse_misuse
from ppx_train.checking.compare import check_devices, check_fast_paths, check_streaming, compare_devices
from ppx_train.checking.data import check_data, spread
from ppx_train.checking.report import VERSION
from ppx_train.checking.steps import check_steps, main
from ppx_train.cli.train import command
from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.planning.gpus import gpu_of
from ppx_train.training.fast_paths import PathProbe
from tests.paths import ROOT
from tests.ppx_train.fixtures import make_codec
from tests.refusals import refused

GOLDEN = ROOT / "tests" / "golden" / "training"
CPU = torch.device("cpu")
CHECKS = ["data", "steps", "fast paths", "streaming", "GPU and CPU", "memory"]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden recipe names its files from there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def words(*more: str) -> list[str]:
    return [f"recipe={GOLDEN / 'golden.yaml'}", *more]


def golden_run(*more: str) -> Run:
    return load(words(*more))


def strings(value: Any) -> list[str]:
    """All strings inside a report, keys too."""
    if isinstance(value, dict):
        return [*value, *(text for part in value.values() for text in strings(part))]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


def test_all_is_good_with_two_processes_and_the_report_names_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    arguments = ["check", *words("trainer.devices=2", f"run_dir={tmp_path / 'run'}"), "--out", str(out)]
    assert command(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("all good") and "seconds a step" in printed and "hours for 20 steps" in printed
    report = json.loads(out.read_text("utf-8"))
    assert report["version"] == VERSION and report["settings"]["processes"] == 2 and report["device"]["kind"] == "cpu"
    assert sorted(report["checks"]) == sorted(CHECKS)
    assert [report["checks"][name]["passed"] for name in CHECKS] == [True, True, True, True, None, None]
    steps = report["checks"]["steps"]
    assert len(steps["losses"]) == 2 and steps["seconds"] > 0 and steps["frames_per_second"] > 0
    golden = json.loads((GOLDEN / "losses.json").read_text("utf-8"))["train/loss"]
    assert steps["losses"] == pytest.approx([golden["1"], golden["2"]], rel=1e-4)
    for text in strings(report):
        assert "/" not in text or text == report["device"]["name"], text
        assert getpass.getuser() not in text.split() and platform.node() not in text
    assert not (tmp_path / "run").exists() and os.listdir(tmp_path) == ["report.json"]
    before = out.read_bytes()
    with refused("exists", out):
        command(arguments)
    assert out.read_bytes() == before


def test_a_broken_tar_and_a_wrong_kernel_are_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(GOLDEN / "shards", tmp_path / "shards")
    tar = min((tmp_path / "shards" / "train").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    right = attention._probabilities
    monkeypatch.setattr(attention, "_probabilities", lambda *args: right(*args) * 1.01)
    out = tmp_path / "report.json"
    assert command(["check", *words(f"data.paths=[{tmp_path / 'shards'}]"), "--out", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    data, steps, kernels = (next(line for line in lines if line.startswith(name)) for name in CHECKS[:3])
    assert "FAILED" in data and tar.name in data and "ppx-data check" in data
    assert "not taken" in steps
    assert "FAILED" in kernels and "attention" in kernels and "off" in kernels
    assert lines[-1] == "failed: data, fast paths"
    report = json.loads(out.read_text("utf-8"))
    assert report["checks"]["data"] == {"passed": False, "code": "checksum"}
    assert str(tmp_path) not in out.read_text("utf-8")


@pytest.mark.parametrize("damage", ["missing tar", "broken index", "no shards"])
def test_shards_that_cannot_be_read_are_named(tmp_path: Path, damage: str) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(GOLDEN / "shards", shards)
    if damage == "missing tar":
        next(iter((shards / "train").glob("*.tar"))).unlink()
    elif damage == "broken index":
        (shards / "train" / "index.safetensors").write_bytes(b"x")
    else:
        shutil.rmtree(shards)
    result = check_data(golden_run(f"data.paths=[{shards}]"))
    assert result.passed is False and str(shards) in result.line and "\n" not in result.line


def test_a_codec_or_tokenizer_that_does_not_fit_fails(tmp_path: Path) -> None:
    codec = make_codec(tmp_path / "codec.safetensors")  # of 64 codes
    other = check_data(golden_run(f"model.codec={codec}", "model.lm.card=64"))
    assert other.passed is False and "another codec" in other.line and "model.codec" in other.line
    assert other.figures == {"code": "bad-combination"}
    pieces = check_data(golden_run("model.lm.text_card=400"))
    assert pieces.passed is False and "model.lm.text_card=500" in pieces.line


def test_samples_are_taken_from_all_over() -> None:
    rows = [[0, number] for number in range(100)]
    chosen = spread(rows, 5)
    assert chosen[0] == [0, 0] and chosen[-1] == [0, 99] and len(chosen) == 5
    assert spread(rows[:3], 5) == rows[:3]


def test_steps_that_cannot_be_taken_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        result = check_steps(golden_run("trainer.accelerator=gpu"), 2)
        assert result.passed is False and "no GPU is usable" in result.line
    (tmp_path / "config.yaml").write_text(golden_run().to_yaml())

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ppx_train.checking.steps.take_steps", full)
    assert main(tmp_path, 2) == 2
    assert json.loads((tmp_path / "steps.json").read_text()) == {"out of memory": True}


@pytest.mark.parametrize("more", [(), ("trainer.precision=bf16-mixed",)])
def test_streaming_agrees_and_is_found_out_when_it_does_not(monkeypatch: pytest.MonkeyPatch, more: tuple[str]) -> None:
    run = golden_run(*more)
    assert check_streaming(run, CPU).passed
    right = temporal_stream.gated
    monkeypatch.setattr(temporal_stream, "gated", lambda x: right(x) * 1.5)
    result = check_streaming(run, CPU)
    assert result.passed is False and "teacher-forced" in result.line


def test_two_devices_are_compared_as_paths_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for the other device."""
    run = golden_run("data.max_frames=100")
    assert check_devices(run, CPU).passed is None
    on_cpu = PathProbe(run, CPU)
    assert compare_devices(on_cpu, run, CPU).passed
    right = attention._grad_scores
    monkeypatch.setattr(attention, "_grad_scores", lambda *args: right(*args) * 1.01)
    result = compare_devices(on_cpu, run, CPU)
    assert result.passed is False and "differ" in result.line


def test_a_path_that_was_off_before_is_checked_again() -> None:
    fast_paths.switch_off(fast_paths.STEPS)
    result = check_fast_paths(golden_run(), CPU)
    assert result.passed and fast_paths.STEPS in [name for path in result.figures["paths"] for name in path["names"]]


def test_a_gpu_is_known_by_the_name_of_its_driver() -> None:
    for name, memory, expected in (
        ("NVIDIA H100 80GB HBM3", 85e9, "H100"),
        ("NVIDIA A100-SXM4-40GB", 42.4e9, "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", 85.1e9, "A100 80GB"),
        ("NVIDIA GeForce RTX 4090", 25.3e9, "RTX 4090"),
        ("NVIDIA H200", 150e9, "H200"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10e9, None),
        ("Tesla T4", 16e9, None),
    ):
        found = gpu_of(name, memory)
        assert (found.name if found else None) == expected, name


def test_memory_beyond_the_plan_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, run = torch.device("cuda"), golden_run()
    facts = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85e9}
    monkeypatch.setattr(checks, "device_facts", lambda _: facts)
    planned = planned_figures(run, gpu, {"frames_per_second": 1000.0, "seconds": 2.0})
    assert planned["gpu"] == "H100" and planned["seconds"] > 0
    within = {"peak_memory_bytes": planned["peak_memory_bytes"]}
    assert check_memory(gpu, within, planned).passed
    beyond = {"peak_memory_bytes": 2 * planned["peak_memory_bytes"] + 5e9}
    assert check_memory(gpu, beyond, planned).passed is False
    facts["name"] = "Tesla T4"
    assert planned_figures(run, gpu, {"frames_per_second": 1000.0, "seconds": 2.0})["seconds"] is None


@pytest.mark.parametrize(
    ("more", "steps", "code", "names"),
    [
        (["trainer.num_nodes=2", "data.batch=8"], 2, "bad-combination", ["trainer.num_nodes=1"]),
        ([], 1, "bad-value", ["--steps 1"]),
    ],
)
def test_a_use_that_cannot_be_is_one_line(
    tmp_path: Path, more: list[str], steps: int, code: Code, names: list[str]
) -> None:
    with refused(code, *names):
        refuse_misuse(golden_run(*more), steps, tmp_path / "out.json")


def test_other_uses_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("cannot-write", tmp_path / "no"):
        refuse_misuse(golden_run(), 2, tmp_path / "no" / "out.json")
    with refused("other-settings", "job=codec"):
        command(["check", "recipe=codec_small", "data.paths=[x]"])
    monkeypatch.setenv("RANK", "0")
    with refused("bad-combination", "launcher"):
        refuse_misuse(golden_run(), 2, tmp_path / "out.json")
