"""The benchmark scripts run and write what they measured."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


def test_the_streaming_benchmark_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = tmp_path / "figures.json"
    arguments = "--size tiny --batch 1 2 --filled 3 --frames 3 --json".split()
    monkeypatch.setattr(sys, "argv", ["stream_step.py", *arguments, str(figures)])
    monkeypatch.syspath_prepend(str(BENCH))
    runpy.run_path(str(BENCH / "stream_step.py"), run_name="__main__")
    content = json.loads(figures.read_text())
    assert [row["batch"] for row in content["rows"]] == [1, 2]
    assert all(row["ms"] > 0 for row in content["rows"]) and content["prompt"]["ms"] > 0
    assert content["settings"]["frames"] == 3 and "torch" in content["machine"]


def test_the_streaming_benchmark_on_a_gpu_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["stream_step.py", "--gpu7b"])
    monkeypatch.syspath_prepend(str(BENCH))
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCH / "stream_step.py"), run_name="__main__")
    assert "no GPU that PyTorch can use" in capsys.readouterr().err
