"""`ppx-data standin`: makes a small corpus in Fisher's layout, to try the import of telephone calls.

`recorded`, the default, has real people who never spoke to each other (see `recorded.py`). `synthetic` has small talk
of invented people who answer each other, spoken by an engine, with the true time of every word (see `synthetic.py`).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from data_pipelines.speech.engines import choose_engine, open_engine
from data_pipelines.standin.recorded import make_recorded
from data_pipelines.standin.release import PART_2_BEGINS
from data_pipelines.standin.sounds import fetch_sounds
from data_pipelines.standin.synthetic import make_synthetic
from model.errors import UserError
from model.files import whole_folder

NOISE_DBFS = -62.0
"""The hiss of a quiet telephone line."""
FIRST_CALL = {"recorded": 1, "synthetic": 1001}
"""The number of the first call; dialogues are named by it, so the corpora of both kinds can be used together."""
MOST_CALLS = 999


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data standin`."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus; must not exist")
    parser.add_argument("--speech", choices=("recorded", "synthetic"), default="recorded", help="what the calls hold")
    parser.add_argument("--calls", type=int, default=6, help="number of calls")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long a call is")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other calls")
    parser.add_argument("--first-call", type=int, help="number of the first call (default: 1 recorded, 1001 synthetic)")
    parser.add_argument("--noise-dbfs", type=float, default=NOISE_DBFS, help="hiss of the line")
    parser.add_argument(
        "--sounds", type=Path, help="recorded: folder with the unpacked packages (default: download with apt-get)"
    )
    parser.add_argument("--engine", choices=("espeak", "kokoro"), help="synthetic: who speaks (default: espeak)")


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data standin`. Raises UserError as `make_corpus` and `make_truth_corpus`."""
    if args.speech == "recorded" and args.engine:
        raise UserError("--engine has an effect with --speech synthetic only: leave it out", code="bad-combination")
    if args.speech == "synthetic" and args.sounds:
        raise UserError("--sounds has an effect with --speech recorded only: leave it out", code="bad-combination")
    first = FIRST_CALL[args.speech] if args.first_call is None else args.first_call
    if args.speech == "recorded":
        lines = make_corpus(
            args.out, args.calls, args.seconds, args.seed, args.sounds or fetch_sounds(), args.noise_dbfs, first
        )
    else:
        engine = args.engine or "espeak"
        lines = make_truth_corpus(args.out, args.calls, args.seconds, args.seed, engine, args.noise_dbfs, first)
    for line in lines:
        print(line)


def make_corpus(
    out: Path,
    num_calls: int,
    seconds: float,
    seed: int,
    sounds: Path,
    noise_dbfs: float = NOISE_DBFS,
    first_call: int = FIRST_CALL["recorded"],
) -> list[str]:
    """Writes the recorded corpus, whole or not at all; returns lines to print.

    Raises: UserError if `out` exists, a number is out of range or the sounds are not there.
    """
    found: list[str] = []

    def make(corpus: Path) -> float:
        total, lines = make_recorded(corpus, num_calls, seconds, seed, sounds, noise_dbfs, first_call)
        found.extend(lines)
        return total

    total = _whole(out, num_calls, seconds, noise_dbfs, first_call, make)
    return [f"{out}: {num_calls} calls, {total / 60:.1f} min of two-channel telephone speech", *found]


def make_truth_corpus(
    out: Path,
    num_calls: int,
    seconds: float,
    seed: int,
    engine: str,
    noise_dbfs: float = NOISE_DBFS,
    first_call: int = FIRST_CALL["synthetic"],
) -> list[str]:
    """Writes the synthetic corpus with its truth, whole or not at all; returns lines to print.

    Raises: UserError if `out` exists, a number is out of range or the engine is not there.
    """
    opened, people = open_engine(choose_engine(engine)), 0

    def make(corpus: Path) -> float:
        nonlocal people
        total, people = make_synthetic(corpus, num_calls, seconds, seed, opened, noise_dbfs, first_call)
        return total

    total = _whole(out, num_calls, seconds, noise_dbfs, first_call, make)
    size = f"{num_calls} calls, {total / 60:.1f} min of {engine}, {people} speakers"
    return [f"{out}: {size}; true word times: {out / 'truth'}"]


def _whole(
    out: Path, num_calls: int, seconds: float, noise_dbfs: float, first_call: int, make: Callable[[Path], float]
) -> float:
    """Checks the numbers and moves the corpus to `out` when `make` has made it; returns seconds of audio."""
    if out.exists():
        raise UserError(f"{out} exists: give another --out", code="exists")
    ranges = (
        ("calls", num_calls, 1, MOST_CALLS),
        ("seconds", seconds, 30, 600),
        ("noise-dbfs", noise_dbfs, -90, -20),
        ("first-call", first_call, 1, PART_2_BEGINS - MOST_CALLS),
    )
    for option, value, least, most in ranges:
        if not least <= value <= most:
            raise UserError(f"--{option} {value:g}: must be from {least} to {most}", code="bad-value")
    with whole_folder(out) as corpus:
        return make(corpus)
