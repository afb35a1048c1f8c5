"""Bandwidth extension by real little programs: one that works, and all the ways in which others fail."""

import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.recordings.fisher.bandwidth import check_command, extend
from model.errors import Code
from tests.refusals import refused

GOOD = "x24 = np.repeat(x, 3, axis=0)\nrate = 24000\n"


def program(folder: Path, body: str) -> str:
    """A command line whose program reads x and its rate, does `body`, and writes x24."""
    path = folder / "extend.py"
    path.write_text(
        "import sys\nimport numpy as np\nimport soundfile\n"
        f"x, rate = soundfile.read(sys.argv[1])\n{body}soundfile.write(sys.argv[2], x24, rate, subtype='PCM_16')\n"
    )
    return f"{sys.executable} {path} {{input}} {{output}}"


@pytest.fixture()
def call() -> np.ndarray:
    """Two seconds of coloured noise on both sides, as speech has most of its power below 1 kHz."""
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 16000))
    kernel = np.hanning(9) / np.hanning(9).sum()
    return np.stack([np.convolve(side, kernel, "same") for side in noise]).astype(np.float32)


def test_a_program_that_works_gives_the_call_at_24_khz(tmp_path: Path, call: np.ndarray) -> None:
    extended = extend(call, 8000, program(tmp_path, GOOD), 600)
    assert extended.shape == (2, 48000) and extended.dtype == np.float32
    np.testing.assert_allclose(extended[:, 1::3], call, atol=1e-3)
    shorter = extend(call, 8000, program(tmp_path, GOOD + "x24 = x24[:-200]\n"), 600)
    assert shorter.shape == (2, 48000) and not shorter[:, -200:].any()


@pytest.mark.parametrize(
    ("body", "code", "names"),
    [
        ("x24 = np.repeat(x, 2, axis=0)\nrate = 16000\n", "bad-audio", ["16000 Hz"]),
        (GOOD + "x24 = x24[:, :1]\n", "bad-audio", ["1 channel"]),
        (GOOD + "x24 = x24[:-400]\n", "bad-audio", ["1.983 s, not 2.000 s"]),
        (GOOD + "x24[:, 1] = 0\n", "bad-audio", ["silence on channel 2"]),
        (GOOD + "x24 = x24 * 0.1\n", "bad-audio", ["level of channel 1 by -20 dB"]),
        (GOOD + "x24 = x24[:, ::-1]\n", "bad-audio", ["other sound on channel 1"]),
        (GOOD + "x24 = np.roll(x24, 2400, axis=0)\n", "bad-audio", ["other sound on channel 1"]),
        ("sys.exit('no GPU here')\n", "program-failed", ["code 1", "no GPU here"]),
        ("sys.exit(0)\n", "program-failed", ["wrote no file"]),
        ("import time\ntime.sleep(3600)\n", "program-failed", ["1 s", "--bandwidth-timeout"]),
    ],
)
def test_a_wrong_result_is_an_error_that_says_what_is_wrong(
    tmp_path: Path, call: np.ndarray, body: str, code: Code, names: list[str]
) -> None:
    with refused(code, *names):
        extend(call, 8000, program(tmp_path, body), 1 if "sleep" in body else 600)


def test_a_silent_side_may_stay_silent(tmp_path: Path, call: np.ndarray) -> None:
    call[1] = 0
    assert not extend(call, 8000, program(tmp_path, GOOD), 600)[1].any()


@pytest.mark.parametrize(
    ("command", "code", "names"),
    [
        ("cp {input} out.wav", "bad-value", ["cp {input} out.wav", "'extend {input} {output}'"]),
        ("no-such-program-here {input} {output}", "not-found", ["no-such-program-here"]),
        ("cp '{input} {output}", "bad-value", ["No closing quotation"]),
        ("  ", "bad-value", ["--bandwidth-extension"]),
    ],
)
def test_wrong_commands_are_refused_before_any_work(command: str, code: Code, names: list[str]) -> None:
    with refused(code, *names):
        check_command(command)
