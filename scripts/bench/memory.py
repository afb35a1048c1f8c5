"""The most memory that a command and all processes it starts hold together.

    python scripts/bench/memory.py ppx-train recipe=quickstart run_dir=runs/memory steps=24

It adds up proportional sizes (PSS): a page that several processes share, such as the code of a library, counts once in
all. Linux alone tells them. The command's exit code is handed on.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import table, write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=0.2, help="seconds between looks (default: 0.2)")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    args = parser.parse_args()
    if not args.command:
        parser.error("give the command to measure")
    command = subprocess.Popen(args.command)
    peak: dict[int, dict[str, int]] = {}
    while command.poll() is None:
        now = {pid: sizes for pid in tree(command.pid) if (sizes := sizes_of(pid))}
        if total(now) > total(peak):
            peak = now
        time.sleep(args.every)
    rows = [{"process": str(pid), **{name: mb(size) for name, size in sizes.items()}} for pid, sizes in peak.items()]
    sums = {name: mb(total(peak, name)) for name in next(iter(peak.values()))} if peak else {}
    print(table([*rows, {"process": "all", **sums}]))
    write_json(args.json, {"MB": sums, "processes": len(peak)})
    return command.returncode


def tree(root: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdigit() else None
        except OSError:  # It has just ended.
            continue
        if parent is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def sizes_of(pid: int) -> dict[str, int]:
    """Bytes of a process: its share of all pages, that of memory of its own, and that of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    kb = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    names = {"PSS MB": "Pss", "its own": "Pss_Anon", "files": "Pss_File"}
    return {label: kb[name] * 1024 for label, name in names.items()}


def total(sizes: dict[int, dict[str, int]], name: str = "PSS MB") -> int:
    return sum(each[name] for each in sizes.values())


def mb(size: int) -> int:
    return round(size / 1e6)


if __name__ == "__main__":
    sys.exit(main())
