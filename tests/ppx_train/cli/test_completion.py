"""The words that a shell offers after the Tab key, by the protocol of argcomplete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytest.importorskip("argcomplete")


def completions(line: str, folder: Path) -> set[str]:
    """What is offered at the end of a command line, in bash."""
    command = line.split()[0].removeprefix("ppx-")
    program = f"import sys; sys.argv = ['ppx-{command}']; sys.path[0] = {str(ROOT)!r}; "
    program += f"from ppx_train.cli.{command} import main; main()"
    file = folder / "words"
    environment = os.environ | {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(file), "COMP_TYPE": "9",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in file.read_text().splitlines()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ppx-train rec", {"recipe=quickstart", "recipe=lora_voice", "recipes"}),
        ("ppx-train recipe=quickstart optim=", {"lora", "published", "scratch"}),  # bash completes after the "="
        ("ppx-train recipe=quickstart data.mi", {"data.mix=", "data.micro_batch=", "data.micro_frames="}),
        ("ppx-train recipe=quickstart --p", {"--print"}),
        ("ppx-data sp", {"speak"}),
        ("ppx-data speak --engine ", {"kokoro", "espeak"}),
        ("ppx-data speak --work", {"--workers"}),
        ("ppx-export --lay", {"--layout"}),
        ("ppx-export --layout ", {"kyutai", "nvidia", "lora"}),
        ("ppx-voice ", {"add", "list", "play", "remove", "check", "convert"}),
        ("ppx-voice convert a.pt --mo", {"--model"}),
        ("ppx-voice add a.wav --skip ", {"noise", "speakers"}),
        ("ppx-chat --voice", {"--voice-prompt", "--voice-prompt-dir"}),
    ],
)
def test_the_tab_key_offers_what_the_command_takes(line: str, expected: set[str], tmp_path: Path) -> None:
    found = completions(line, tmp_path)
    assert expected <= found
    last = line.rpartition(" ")[2].rpartition("=")[2]
    assert all(word.startswith(last) for word in found)


def test_options_of_an_earlier_version_are_not_offered(tmp_path: Path) -> None:
    assert completions("ppx-data speak --voice-pr", tmp_path) == {"--voice-prompt-from"}
