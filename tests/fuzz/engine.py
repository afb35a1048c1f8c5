"""Reads damaged files, one after the other, and counts how that ends.

A reader may refuse a file (UserError in one line, or what it documents), skip it, or take it. Another exception, a
hang, or memory beyond a bound is a failure. A case is known by seed, target and number alone, so it can be run again.
"""

import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from model.errors import UserError
from tests.fuzz.mutate import Mutation

COUNT = int(os.environ.get("PPX_FUZZ", "300"))
"""Cases of each target."""
SEED = os.environ.get("PPX_FUZZ_SEED", "")
"""Another value gives other cases."""
ONLY = os.environ.get("PPX_FUZZ_CASE")
"""The number of the one case to run."""
MOST_MEMORY = 512 << 20
"""Bytes by which reading one file of some kilobytes may raise the most memory that was ever used."""
ADDRESS_SPACE = 4 << 30
"""Bytes that a reader may reserve, so that a failure does not end the machine."""
MOST_SECONDS = 60
"""A file of some kilobytes that is read for longer is counted as a hang."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader, whole files of its format, and how they are damaged.

    `read` gets the bytes of a damaged file and a number that chooses what is done with them; it returns False if it
    skips the file in a documented way.
    """

    name: str
    files: Sequence[bytes]
    mutate: Mutation
    read: Callable[[bytes], bool | None]
    refusals: tuple[type[Exception], ...] = (UserError,)


class Hang(BaseException):
    """A reader does not end."""


def case(target: Target, number: int) -> bytes:
    """The bytes of one case."""
    draw = random.Random(f"{SEED}{target.name}/{number}")
    return target.mutate(draw, draw.choice(target.files))


def outcome(target: Target, data: bytes) -> str:
    """How reading ends: "taken", "skipped" or "refused", or else what is wrong."""
    before = _peak()
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        result = "skipped" if target.read(data) is False else "taken"
    except target.refusals as why:
        lines = str(why).splitlines()
        result = "refused" if len(lines) == 1 else f"a message of {len(lines)} lines: {str(why)[:300]!r}"
        try:
            str(why).encode()
        except UnicodeEncodeError:
            result = f"a message that cannot be printed: {str(why)[:300]!r}"
    except (Exception, Hang) as why:  # noqa: BLE001 - whatever it is, it is what is looked for
        result = f"{type(why).__name__}: {str(why)[:300]}{_place(why)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _peak() - before
    return result if grown <= MOST_MEMORY else f"{grown >> 20} MiB of memory ({result[:100]})"


def run(target: Target) -> tuple[Counter[str], list[str]]:
    """The outcomes of all cases by kind, and a line for each failure, which says how to run it again."""
    found: Counter[str] = Counter(taken=0, skipped=0, refused=0)
    failures: list[str] = []
    former = signal.signal(signal.SIGALRM, _stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, limits[1]))
    try:
        for number in [int(ONLY)] if ONLY else range(COUNT):
            result = outcome(target, case(target, number))
            if result in found:
                found[result] += 1
            else:
                seed = f"PPX_FUZZ_SEED={SEED} " if SEED else ""
                again = f"{seed}PPX_FUZZ_CASE={number} pytest 'tests/fuzz/test_fuzz.py' -k '{target.name}'"
                failures.append(f"case {number}: {result}\n    again: {again}")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, former)
    return found, failures


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang(f"no end after {MOST_SECONDS} s")


def _peak() -> int:
    """The most memory that this process ever used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _place(why: BaseException) -> str:
    """The innermost line of the project that the exception passed."""
    trace, place = why.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/tests/" not in name and "site-packages" not in name and "/lib/python" not in name:
            place = f" [{'/'.join(name.split('/')[-3:])}:{trace.tb_lineno}]"
        trace = trace.tb_next
    return place
