"""`ppx-train recipe=NAME [group=NAME ...] [key=value ...]`: trains what a recipe says."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from data_pipelines.arguments import Parser, add_version, complete
from ppx_train import __version__
from ppx_train.cli.run import run

ABOUT = """\
  ppx-train recipe=NAME [group=NAME ...] [key=value ...]    train
  ppx-train recipe=./mine.yaml [key=value ...]              train your own recipe
  ppx-train recipe=NAME ... --print                         show the resolved configuration and stop
  ppx-train plan recipe=NAME ...                            show what it will cost: memory, GPUs, hours, disk
  ppx-train check recipe=NAME ...                           check data, model and this machine, before a run
  ppx-train recipes                                         list the shipped recipes

Later wins: defaults < config groups < recipe < command line. A run goes to run_dir (default runs/RECIPE), is stopped
with Ctrl-C and resumed by the same command with resume=true.
"""


def main() -> None:
    """The entry point of the command."""
    run(command, again="add resume=true to resume from the last checkpoint, if there is one")


def parser() -> Parser:
    """The parser of the command's words."""
    from ppx_train.help import setting_words, settings_help

    parser = Parser(
        prog="ppx-train",
        usage="ppx-train recipe=NAME [group=NAME ...] [key=value ...] [--print]",
        description=ABOUT,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words: Any = parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, listed below")
    words.completer = lambda **_: setting_words()
    parser.add_argument(
        "--print",
        action="store_true",
        help="print the resolved configuration as YAML, which is a recipe itself; comments say where what differs from "
        "the defaults comes from",
    )
    add_version(parser, __version__)
    return parser


def command(words: Sequence[str]) -> int:
    """Trains, or prints what is asked for; returns the exit code."""
    if list(words[:1]) == ["plan"]:
        from ppx_train.cli.plan import command as plan

        return plan(words[1:])
    if list(words[:1]) == ["check"]:
        from ppx_train.cli.check import command as check

        return check(words[1:])
    options = parser()
    complete(options)
    args = options.parse_intermixed_args(words)
    if args.settings == ["recipes"]:
        from ppx_train.recipes import recipe_names, recipe_summary

        width = max(map(len, recipe_names()))
        for name in recipe_names():
            print(f"{name:{width}} {recipe_summary(name)}")
        return 0
    from ppx_train.config.load import layers_of, merge

    layers = layers_of(args.settings)
    configuration = merge(layers)
    if args.print:
        from ppx_train.help import marked_yaml

        # A recipe is UTF-8, also if it is printed into a file where the locale is another.
        sys.stdout.buffer.write(marked_yaml(configuration, layers).encode())
        return 0
    if configuration.job == "codec":
        from ppx_train.training.codec.run import train_codec

        return train_codec(configuration)
    from ppx_train.training.run import train

    return train(configuration)
