"""`ppx-serve` as a process of its own, for tests that call it as a user would."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.paths import ROOT


@contextmanager
def live_server(model: Path, *words: str) -> Iterator[str]:
    """The address of a server of a model folder, on a free port of this machine."""
    program = "from ppx_train.cli.serve import main; main()"
    command = [sys.executable, "-c", program, "--model", str(model), "--port", "0", *words]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        found = next((match for line in server.stdout if (match := re.search(r"sessions at (\S+)", line))), None)
        assert found, f"the server has ended with exit code {server.wait(10)}"
        yield found[1]
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
