"""`ppx-train plan recipe=NAME [key=value ...]`: what a run will cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipelines.arguments import Parser, complete
from ppx_train.cli.settings_parser import settings_parser

if TYPE_CHECKING:  # The words are read, and completed, before heavy packages are.
    from ppx_train.config.run import Run

ABOUT = """\
What a run will take, before it starts: memory of a GPU by strategy, which GPUs fit and what to change where one does
not, epochs of each source, hours, disk. It needs no GPU and loads no weights. Settings are those of ppx-train.
"""


def parser() -> Parser:
    """The parser of the command's words."""
    parser = settings_parser("plan", "[--gpu NAME] [--mean-seconds S] [--step-seconds S]", ABOUT)
    parser.add_argument(
        "--gpu", metavar="NAME", help="plan for this GPU alone, such as H100 (default: all common ones)"
    )
    parser.add_argument(
        "--mean-seconds",
        type=float,
        metavar="S",
        help="mean length of the sequences (default: that of the data, or the longest)",
    )
    parser.add_argument(
        "--step-seconds", type=float, metavar="S", help="seconds of a measured step (default: estimated)"
    )
    return parser


def planned_run(settings: Sequence[str]) -> "Run":
    """Builds the run that is planned; without data.paths, since a plan may come before the data."""
    from omegaconf import DictConfig

    from ppx_train.config.load import load
    from ppx_train.recipes import ConfigLayer

    return load(settings, [ConfigLayer(origin="plan", values=DictConfig({"data": {"paths": ["shards"]}}))])


def command(words: Sequence[str]) -> int:
    """Prints the plan; returns the exit code."""
    options = parser()
    complete(options)
    args = options.parse_intermixed_args(words)
    from ppx_train.planning.gpus import find_gpu
    from ppx_train.planning.plan import PlanRequest, plan

    gpu = find_gpu(args.gpu) if args.gpu else None
    asked = PlanRequest(gpu=gpu, mean_seconds=args.mean_seconds, step_seconds=args.step_seconds)
    print(plan(planned_run(args.settings), asked))
    return 0
