"""`ppx-chat --gate` on models whose weights are written by hand: one that behaves, and one with each fault."""

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from ppx_train.cli.chat import FAULTY, command
from tests.ppx_train.inference.reflexes import Reflexes, looping, never_stopping, noisy, silent
from tests.ppx_train.inference.scenes import placed


def gate(made: Reflexes, tmp_path: Path, change: Callable[[Reflexes], None] = lambda made: None) -> int:
    """The exit code for a model that hears 1.2 s of speech and then silence."""
    soundfile.write(tmp_path / "user.wav", placed(4.8, [(0.8, 2.0)]), 24000)
    files = ["--input-wav", str(tmp_path / "user.wav"), "--output-wav", str(tmp_path / "agent.wav")]
    fixed = ["--voice-prompt", "none", "--text-prompt", "", "--seed", "1", "--device", "cpu"]
    return command(["--model", str(made.save(change)), *files, *fixed, "--gate"])


def test_a_model_that_listens_replies_and_stops_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(Reflexes(tmp_path / "model"), tmp_path) == 0
    assert "sanity: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "name"), [(silent, "silent"), (looping, "looping"), (noisy, "noisy"), (never_stopping, "never stops")]
)
def test_a_model_with_a_fault_does_not_pass_and_no_other_fault_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Reflexes], None], name: str
) -> None:
    assert gate(Reflexes(tmp_path / "model"), tmp_path, change) == FAULTY
    verdict = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sanity: "))
    assert verdict.startswith(f"sanity: fails: {name} (") and ";" not in verdict
