"""Runs commands on a disk that is too small for them, gives it more room, and runs them again.

`unshare -rm python -m tests.full_disk SPEC RESULT` is a process of its own, which alone sees the disk: a file system in
memory at DISK. It imports everything once and forks for each run. SPEC and RESULT are files of JSON.
"""

import hashlib
import json
import os
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTS: tuple[str, ...] = (
    "data_pipelines.publish.to_hf",
    "data_pipelines.shards.encode",
    "data_pipelines.recordings.importer",
)
IMPORTS += ("ppx_train.training.run", "ppx_train.export.folder")
ROOM = "1g"


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its SHA-256, of checkpoints that of their weights, and every empty folder."""
    return {
        path.relative_to(folder).as_posix(): content(path) if path.is_file() else "dir"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def content(path: Path) -> str:
    """The SHA-256 of a file; a resumed run has the same weights, but counts its own batches beside them."""
    from ppx_train.training.checkpoint import FILE, check_sums, language_model, read_checkpoint

    digest = hashlib.sha256()
    if path.name == FILE:
        check_sums(path.parent)
        for name, value in language_model(read_checkpoint(path.parent)).items():
            digest.update(name.encode() + value.whole().numpy().tobytes())
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def attempt(command: str, words: list[str], log: Path) -> dict[str, Any]:
    """Runs ppx_train.cli.COMMAND in a fork; returns its exit code and what it wrote to stderr."""
    child = os.fork()
    if not child:
        code = 1
        try:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(log.with_suffix(f".{name}"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
            sys.argv = [command, *words]
            import_module(f"ppx_train.cli.{command}").main()
        except SystemExit as why:
            code = int(why.code or 0)
        except BaseException:  # noqa: BLE001 - the command would print it and exit with 1
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "errors": log.with_suffix(".err").read_text()}


def mounted(disk: Path, *options: str) -> None:
    """Mounts or remounts a file system in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(disk)], check=True)


def case(disk: Path, log: Path, command: str, words: list[str], shares: list[float]) -> dict[str, Any]:
    """The files of a run that has room; for disks of some shares of their size, how runs end and what they leave."""
    mounted(disk, f"size={ROOM}")
    found: dict[str, Any] = {"whole": attempt(command, words, log), "tree": tree(disk)}
    room = os.statvfs(disk)
    used = (room.f_blocks - room.f_bfree) * room.f_frsize
    subprocess.run(["umount", str(disk)], check=True)
    for share in shares:
        mounted(disk, f"size={max(int(used * share), 4096)}")
        one = {"size": int(used * share), "full": attempt(command, words, log), "left": tree(disk)}
        mounted(disk, f"remount,size={ROOM}")
        found[str(share)] = one | {"again": attempt(command, words, log), "tree": tree(disk)}
        subprocess.run(["umount", str(disk)], check=True)
    return found | {"used": used}


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """The results of all cases, by name."""
    for name in IMPORTS:
        import_module(name)
    disk = Path(spec["disk"])
    return {name: case(disk, disk.with_name("log"), **one) for name, one in spec["cases"].items()}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
