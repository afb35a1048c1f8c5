"""Kills a verb while it waits for an answer of a language model, and runs it again."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from data_pipelines import verbs
from tests.data_pipelines.llm_server import Body, LLMServer


def killed_and_resumed(
    command: Callable[[str], list[str]], author: Callable[[Body], Any], held_at: int
) -> tuple[list[str], list[str]]:
    """The requests of a run that were answered before it was killed, and those of the second run.

    `command` makes the words of the verb from the URL of the server; the run is killed (SIGKILL) while it waits for its
    answer number `held_at`, counted from 0.
    """
    answered: list[str] = []
    held, killed = threading.Event(), threading.Event()

    def reply(body: Body) -> Any:
        if len(answered) == held_at and not held.is_set():
            held.set()
            killed.wait()
        else:
            answered.append(json.dumps(body))
        return author(body)

    with LLMServer(reply) as server:
        words = command(server.url)
        code = f"from ppx_train.cli.data import main; import sys; sys.argv = ['ppx-data'] + {words!r}; main()"
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        is_held = held.wait(1200)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed.set()
        assert is_held, "the run never asked that often"
        first = list(answered)
        verbs.main(words)
    return first, answered[len(first) :]
