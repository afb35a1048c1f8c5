"""What all commands do with errors: a mistake of the user is one line and exit code 2, a bug keeps its traceback."""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import NoReturn

from model.errors import UserError
from model.text_safety import VisibleOutput, plain
from ppx_train.roots import check_packages

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def run(command: Callable[[Sequence[str]], int | None], again: str = "run the same command again") -> NoReturn:
    """Calls `command` with the words of the command line, and exits with the code that it returns, None being 0.

    again: how the user goes on after an interruption.
    Exit codes: 2 for a UserError, 1 for a full disk, a place that cannot be written or a lost process, 130 for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # What a terminal's encoding lacks is shown as an escape.
            stream.reconfigure(errors="backslashreplace")
    try:
        check_packages()
        with redirect_stdout(VisibleOutput(sys.stdout)):
            code = command(sys.argv[1:]) or 0
    except UserError as why:
        _fail(str(why), 2, why.code)
    except KeyboardInterrupt:
        _fail(f"interrupted: {again}", 130)
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
        code = 0
    except OSError as why:
        if why.errno in FULL:
            place = why.filename2 or why.filename or "a file"
            _fail(f"no space left on the disk while writing {place}: free some and run it again", 1)
        if why.errno in FORBIDDEN and why.filename:
            _fail(f"{why.filename}: {why.strerror}; choose a folder that can be written", 1)
        raise
    except RuntimeError as why:
        if "PytorchStreamWriter" in str(why):  # torch.save reports a full disk in this way
            _fail(f"a checkpoint could not be written ({str(why).splitlines()[0]}): is the disk full?", 1)
        if "closed by peer" not in str(why) and "reset by peer" not in str(why):  # gloo reports a lost rank so
            raise
        from ppx_train.training.ranks import is_launcher

        if not is_launcher():  # the process that the user started prints the message for all ranks
            sys.exit(1)
        _fail(f"another process of this run has ended, its message is above: {again}", 1)
    sys.exit(code)


def _fail(message: str, exit_code: int, code: str = "") -> NoReturn:
    print(f"error{f'[{code}]' if code else ''}: {plain(message)}", file=sys.stderr)
    sys.exit(exit_code)
