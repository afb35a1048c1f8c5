"""`ppx-train check recipe=NAME [key=value ...]`: the first thing to run on a new machine."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.arguments import Parser, complete
from ppx_train.cli.settings_parser import settings_parser

OUT = "device_report.json"
ABOUT = """\
Whether data, model and machine are fit for a run: reads the shards, takes its first two steps, compares fast kernels
with plain ones, streaming with the teacher-forced pass and the GPU with the CPU, and prints what it measured beside
what was planned. Settings are those of ppx-train; the run's own folder is not touched. Exit code 1: a check failed.
"""


def parser() -> Parser:
    """The parser of the command's words."""
    parser = settings_parser("check", "[--steps N] [--out FILE]", ABOUT)
    parser.add_argument("--steps", type=int, metavar="N", default=2, help="optimiser steps to take (default: 2)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path(OUT),
        help=f"where the report goes, which names no paths, users or hosts (default: {OUT})",
    )
    return parser


def command(words: Sequence[str]) -> int:
    """Makes the checks; returns the exit code."""
    options = parser()
    complete(options)
    args = options.parse_intermixed_args(words)
    from ppx_train.checking.check import check
    from ppx_train.config.load import load

    return check(load(args.settings), args.steps, args.out)
