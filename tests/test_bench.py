"""The benchmark scripts run and write what they measured."""

import json
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.browser import CHROMIUM
from tests.paths import ROOT

BENCH = ROOT / "scripts" / "bench"


def run_here(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figures that a script writes, run in this process."""
    figures, (script, *arguments) = folder / "figures.json", words.split()
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--json", str(figures)])
    monkeypatch.syspath_prepend(str(BENCH))
    runpy.run_path(str(BENCH / script), run_name="__main__")
    return json.loads(figures.read_text())


def test_the_streaming_benchmark_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = run_here("stream_step.py --size tiny --batch 1 2 --filled 3 --frames 3", tmp_path, monkeypatch)
    assert [row["batch"] for row in content["rows"]] == [1, 2]
    assert all(row["ms"] > 0 for row in content["rows"]) and content["prompt"]["ms"] > 0
    assert content["settings"]["frames"] == 3 and "torch" in content["machine"]


def run(script: str, *arguments: str) -> Any:
    """The figures that a script writes, run as a person would."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        subprocess.run(
            [sys.executable, str(BENCH / script), *arguments, "--json", str(figures)], check=True, timeout=1200
        )
        return json.loads(figures.read_text())


@pytest.mark.slow
def test_the_training_benchmark_writes_its_figures() -> None:
    arguments = "--size tiny --dtype fp32 --batch 1 --frames 20 --rounds 1 --prompt 0.4 --lora 2 --checkpointing full"
    (row,) = run("train_step.py", *arguments.split())["rows"]
    assert row["prompt"] == "40%" and row["s"] > 0 and row["peak MiB"] > 0 and row["of matmul peak"] > 0
    assert row["frames/s"] == pytest.approx(20 / row["s"])
    assert row["trained"] < 500_000  # the adapters; the model has 27 million weights


@pytest.mark.slow
def test_the_codec_benchmark_writes_its_figures() -> None:
    rows = run("codec.py", "--seconds", "1", "--rounds", "1")["rows"]
    assert [row["what"] for row in rows] == ["encode", "decode", "stream encode", "stream decode"]
    assert all(row["ms"] > 0 and row["x real time"] > 0 for row in rows)


@pytest.mark.slow
def test_the_alignment_benchmark_writes_its_figures() -> None:
    for package in ("espeakng_loader", "desphere_native", "pocketsphinx"):
        pytest.importorskip(package)
    row = run("align.py", "--calls", "1", "--seconds", "100", "--noise", "-62")["rows"][0]
    assert row["words"] > 50 and row["median ms"] < 40


@pytest.mark.slow
def test_the_loader_benchmark_writes_its_figures() -> None:
    content = run("loader.py", *"--shards 3 --dialogues 5 --seconds 10 --words 30 --reads 2000 --rows 1000".split())
    figures = content["figures"]
    assert figures["codes alone, samples/s"] > 0 and figures["whole training sequences, samples/s"] > 0
    assert figures["1000 rows: index, MB"] < 0.2 and content["settings"]["shards"] == 3


def test_the_benchmark_of_live_sessions_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run_here("sessions.py --size tiny --sessions 1 3 --frames 4 --warm 1", tmp_path, monkeypatch)
    rows = figures["rows"]
    assert [row["sessions"] for row in rows] == [1, 3]
    assert all(0 < row["tick p50 ms"] <= row["tick p99 ms"] and row["prompt part of 64 ms"] > 0 for row in rows)


def test_the_benchmark_of_precisions_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run_here("precision.py --size tiny --batch 2 --filled 2 --frames 2", tmp_path, monkeypatch)
    full, half, small = figures["rows"]
    assert (full["text agree %"], full["audio agree %"]) == (100, 100) and 50 < small["audio agree %"] < 100
    assert half["weights MiB"] == pytest.approx(full["weights MiB"] / 2) and small["weights MiB"] < full["weights MiB"]


@pytest.mark.parametrize(
    "script",
    [
        "stream_step.py --gpu7b",
        "train_step.py --gpu7b",
        "codec.py --device cuda",
        "sessions.py --gpu7b",
        "precision.py --gpu7b",
    ],
)  # fmt: skip
def test_benchmarks_on_a_gpu_ask_for_one(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = script.split()

    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("no driver")

    monkeypatch.setattr("torch.zeros", refuse)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(BENCH))
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCH / name), run_name="__main__")
    assert "device 'cuda' is not usable" in capsys.readouterr().err


@pytest.mark.slow
def test_the_server_benchmark_writes_its_figures() -> None:
    for package in ("sphn", "prometheus_client"):
        pytest.importorskip(package)
    content = run("serve.py", *"--sessions 2 --seconds 4 --churn 2 --connects 4".split())
    (row,) = content["rows"]
    assert row["sessions"] == 2 and row["calls"] >= 2 and 0 < row["tick p50 ms"] <= row["tick max ms"]
    assert row["CPU ms a frame"] > row["of it model"] > 0 and row["latency p99 ms"] > 0 and row["ready max ms"] > 0
    assert [state["connects"] for state in content["connects"]] == [1, 2, 3, 4]
    assert all(state["RSS MB"] > 0 and state["descriptors"] > 3 for state in content["connects"])


@pytest.mark.slow
def test_the_measure_from_mouth_to_ear_writes_its_figures() -> None:
    for package in ("sphn", "prometheus_client", "playwright"):
        pytest.importorskip(package)
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    (row,) = run("mouth_to_ear.py", "--here", "--seconds", "8")["rows"]
    assert row["trials"] >= 2 and row["packets lost"] == "0 of 0"
    median = float(row["mouth to ear"].split(",")[0])
    assert median > 120  # a frame, and the margin of the playback
    assert float(row["reply"].split(",")[0]) > median - 10
