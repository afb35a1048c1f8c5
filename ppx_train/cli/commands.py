"""The commands. Each checks its packages, calls one function, and turns a mistake into one line and exit code 2."""

import errno
import os
import sys
from collections.abc import Callable

from model.errors import UserError
from ppx_train.roots import check_packages

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def train() -> None:
    """ppx-train recipe=NAME [group=NAME] [key=value ...]"""
    _run(_train, "resume=true goes on from the last checkpoint, or starts if there is none")


def data() -> None:
    """ppx-data VERB ..."""
    from data_pipelines.verbs import main

    _run(lambda arguments: main(arguments))


def export() -> None:
    """ppx-export checkpoint=RUN out=DIR [key=value ...], or ppx-export voice in=VOICE.pt ..."""
    _run(_export)


def chat() -> None:
    """ppx-chat --model DIR --input-wav in.wav ..."""
    _run(_chat)


TRAIN_HELP = """\
ppx-train recipe=NAME [group=NAME ...] [key=value ...]    train
ppx-train recipe=./mine.yaml [key=value ...]              train your own recipe
ppx-train recipe=NAME ... --print                         show the resolved configuration and stop
ppx-train recipes                                         list the shipped recipes
ppx-train --help                                          this text

Later wins: defaults < config groups < recipe < command line. A run goes to run_dir (default
runs/RECIPE), is stopped with Ctrl-C and goes on with the same command and resume=true.
"""


def _train(arguments: list[str]) -> int:
    from ppx_train.config import load, recipe_names, recipe_summary
    from ppx_train.help import settings_help

    if not arguments or arguments[0] in ("--help", "-h"):
        print(TRAIN_HELP)
        print(settings_help())
        return 0 if arguments else 2
    if arguments == ["recipes"]:
        for name in recipe_names():
            print(f"{name:16} {recipe_summary(name)}")
        return 0
    run = load([argument for argument in arguments if argument != "--print"])
    if "--print" in arguments:
        print(run.to_yaml(), end="")
        return 0
    from ppx_train.training.run import train

    return train(run)


def _export(arguments: list[str]) -> int:
    if arguments[:1] == ["voice"]:
        from ppx_train.export.convert_voice import main as convert_voice

        return convert_voice(arguments[1:])
    from ppx_train.export.export import main

    return main(arguments)


def _chat(arguments: list[str]) -> int:
    import argparse

    from ppx_train.inference.offline import add_arguments, run

    parser = argparse.ArgumentParser("ppx-chat", description="Streams a WAV through a model, frame by frame.")
    add_arguments(parser)
    run(parser.parse_args(arguments))
    return 0


def _run(command: Callable[[list[str]], int | None], again: str = "run the same command again") -> None:
    try:
        check_packages()
        code = command(sys.argv[1:]) or 0
    except UserError as why:
        _fail(str(why), 2, why.code)
    except KeyboardInterrupt:
        _fail(f"interrupted: {again}", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = open(os.devnull, "w")
        code = 0
    except OSError as why:
        if why.errno in FULL:
            place = why.filename2 or why.filename or "a file"
            _fail(f"no space left on the disk while writing {place}: free some and run it again", 1)
        if why.errno in FORBIDDEN and why.filename:
            _fail(f"{why.filename}: {why.strerror}: choose a folder that can be written", 1)
        raise
    except RuntimeError as why:
        if "PytorchStreamWriter" in str(why):  # how torch.save reports a full disk
            _fail(f"a checkpoint could not be written ({str(why).splitlines()[0]}): is the disk full?", 1)
        if "closed by peer" not in str(why) and "reset by peer" not in str(why):  # how gloo reports it
            raise
        from ppx_train.training.ranks import is_launcher

        if not is_launcher():  # what became of the process that a person started, that person sees
            sys.exit(1)
        _fail(f"another process of this run has ended, its message is above: {again}", 1)
    sys.exit(code)


def _fail(message: str, exit_code: int, code: str = "") -> None:
    print(f"error{f'[{code}]' if code else ''}: {message}", file=sys.stderr)
    sys.exit(exit_code)
