"""Stops a verb before each of its changes on the disk, runs it again, and compares with an undisturbed run.

`python -m tests.data_pipelines.kill '{"argv": [...], "before": DIR, "scratch": DIR, "most": 12}'` is a process of its
own: it runs the verb once, to have all modules imported, and forks for each further run. A run works in a copy of
`before` and names files relative to it, so that all runs see the same paths.
"""

import errno
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.paths import ROOT

FULL = 28  # exit code of a run that found the disk full
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
GROWS = ("os.rename", "os.mkdir")  # what a full disk refuses, beside opening a file to write


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, files with their hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "dir"
        for path in sorted(folder.rglob("*"))
    }


def differences(left: dict[str, str], right: dict[str, str]) -> list[str]:
    """The names of what is not the same in two trees."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def kill_everywhere(
    tmp_path: Path, argv: list[str], *, most: int = 6, setup: str = "", main: str = "data_pipelines.verbs:main"
) -> int:
    """Runs the verb `argv` (paths relative to TMP_PATH/before) and stops it at up to `most` of its changes, spread over
    all of them, the first and the last included, by SIGKILL, and at half as many by "no space left on the disk".
    `setup` ("module:name") is called before. `main` gets the words.

    Returns the number of changes. Fails if a re-run gives other files, if one more run changes any, or if a full disk
    leaves half a file.
    """
    spec = {
        "argv": argv,
        "before": str(tmp_path / "before"),
        "scratch": str(tmp_path / "scratch"),
        "most": most,
        "setup": setup,
        "main": main,
    }
    command = [sys.executable, "-m", "tests.data_pipelines.kill", json.dumps(spec)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["faults"] == {}, result
    return int(result["changes"])


def _main(spec: dict[str, Any]) -> None:
    if spec["setup"]:
        _named(spec["setup"])()
    main = _named(spec["main"])
    scratch, before = Path(spec["scratch"]), Path(spec["before"])
    shutil.copytree(before, scratch / "here")
    os.chdir(scratch / "here")
    main(list(spec["argv"]))  # what it imports and opens is there in all forks

    def attempt(name: str, count_to: int | None = None, how: str = "kill") -> tuple[int, int]:
        """One run in the copy `name`; returns its status and how many changes it made."""
        folder = scratch / name
        if not folder.exists():
            shutil.copytree(before, folder)
        note = scratch / f"{name}.count"
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            return os.waitstatus_to_exitcode(status), int(note.read_text() or 0) if note.exists() else 0
        code = 1
        try:
            log = os.open(scratch / f"{name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(folder)
            count = _arm(folder, count_to, how)
            main(list(spec["argv"]))
            if count_to is not None:
                os.write(os.open(note, os.O_CREAT | os.O_WRONLY), str(count()).encode())
            code = 0
        except BaseException as why:  # noqa: BLE001 - the exit code tells how the child ended
            traceback.print_exc()
            code = FULL if isinstance(why, OSError) and why.errno == errno.ENOSPC else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    code, changes = attempt("whole", count_to=10**9)
    assert code == 0, (scratch / "whole.log").read_text()[-3000:]
    whole = tree(scratch / "whole")
    assert attempt("whole")[0] == 0, "a second run of a complete stage failed: " + (scratch / "whole.log").read_text()
    faults = {}
    if changed := differences(tree(scratch / "whole"), whole):
        faults["again"] = changed
    growing = attempt("grown", count_to=10**9, how="full")[1]
    for how, status, total, most in (
        ("kill", -signal.SIGKILL, changes, spec["most"]),
        ("full", FULL, growing, spec["most"] // 2),
    ):
        for point in sorted({1 + round(n * (total - 1) / max(most - 1, 1)) for n in range(most)}):
            name = f"{how}-{point}"
            code, _ = attempt(name, count_to=point, how=how)
            log = (scratch / f"{name}.log").read_text()[-2000:]
            assert code == status, f"{name}: ended with {code}: {log}"
            if how == "full" and (halves := [path.name for path in (scratch / name).rglob("*.part")]):
                faults[f"{name}, before"] = halves
            code, _ = attempt(name)
            if (changed := differences(tree(scratch / name), whole)) or code:
                log = (scratch / f"{name}.log").read_text()[-2000:]
                faults[name] = [f"exit {code}", *changed, log]
    print(json.dumps({"changes": changes, "faults": faults}))


def _named(name: str) -> Callable[..., Any]:
    """The function of a name like "module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _arm(folder: Path, count_to: int | None, how: str) -> Callable[[], int]:
    """Counts this process' changes of the folder, and stops it before number `count_to`."""
    num = 0
    inside = (f"{folder}{os.sep}", str(folder))
    writes, changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT, CHANGES if how == "kill" else GROWS

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal num
        if count_to is None or not (event in changes or (event == "open" and args[2] & writes)):
            return
        path = args[0] if isinstance(args[0], (str, os.PathLike)) else ""
        path = os.fspath(path)
        if isinstance(path, bytes) or not path or (os.path.isabs(path) and not path.startswith(inside)):
            return
        if event == "os.mkdir" and os.path.isdir(path):
            return  # changes nothing
        num += 1
        if num == count_to and how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if num == count_to:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: num


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
