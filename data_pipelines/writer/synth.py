"""`ppx-data synth`: scripts of customer service or assistant dialogues, the same bytes for the same options."""

import argparse
from pathlib import Path
from random import Random

from tqdm import tqdm

from data_pipelines.files import save_once
from data_pipelines.schema import Script
from data_pipelines.writer.assistant import write_assistant
from data_pipelines.writer.check import problems
from data_pipelines.writer.service import write_service
from data_pipelines.writer.split import split_of_index
from data_pipelines.writer.stats import summary
from data_pipelines.writer.wording import estimated_seconds
from model.errors import UserError

WRITERS = {"service": write_service, "assistant": write_assistant}
SHORTEST_LIMIT = 15.0  # seconds: below this no script of greeting, request, answer and goodbye fits
ATTEMPTS = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", choices=sorted(WRITERS), help="service: an agent with a role; assistant: a teacher")
    parser.add_argument("--num", type=int, required=True, help="number of scripts")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scripts (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="scripts file to write, one JSON line each")
    parser.add_argument("--heldout", type=float, default=0.1, help="share of held-out scripts (default 0.1)")
    parser.add_argument("--max-seconds", type=float, help="longest estimated spoken length of a script")


def run(args: argparse.Namespace) -> None:
    scripts = write_scripts(
        args.source, num=args.num, seed=args.seed, heldout=args.heldout, max_seconds=args.max_seconds
    )
    new = save_scripts(args.out, scripts)
    print(f"{args.out}: {len(scripts)} scripts {'written' if new else 'already there, unchanged'}")
    print(summary(scripts))


def write_scripts(
    source: str, *, num: int, seed: int, heldout: float = 0.1, max_seconds: float | None = None
) -> list[Script]:
    """Writes `num` scripts; script i depends on the options and i alone, so fewer are a prefix of more.

    `heldout` is the share of held-out scripts: their scenarios and companies never occur in training ones.
    `max_seconds` bounds the estimated length (2.6 words a second and 0.25 s between turns).
    Raises: UserError for an option out of range.
    """
    if source not in WRITERS:
        raise UserError(f"source {source!r}: choose one of {', '.join(sorted(WRITERS))}")
    if num < 1:
        raise UserError(f"--num {num}: ask for at least 1 script")
    if not 0 <= heldout <= 1:
        raise UserError(f"--heldout {heldout}: give a share from 0 to 1, e.g. 0.1")
    if max_seconds is not None and not max_seconds >= SHORTEST_LIMIT:
        raise UserError(f"--max-seconds {max_seconds}: a whole dialogue needs at least {SHORTEST_LIMIT:g} s")
    numbers = tqdm(range(num), desc=f"write {source}", unit="script", disable=num < 100)
    return [_script(source, index, seed, heldout, max_seconds) for index in numbers]


def _script(source: str, index: int, seed: int, heldout: float, max_seconds: float | None) -> Script:
    name = f"{source}-{seed}-{index:06d}"
    split = split_of_index(seed, index, heldout)
    for attempt in range(ATTEMPTS):
        script = WRITERS[source](name, Random(f"{seed}/{name}/{attempt}"), split, heldout, max_seconds)
        seconds = estimated_seconds(script.turns)
        if (max_seconds is None or seconds <= max_seconds) and not problems(script):
            script.provenance.update(seed=seed, index=index, estimated_seconds=round(seconds, 2))
            return script
    raise UserError(f"--max-seconds {max_seconds}: no script came out that short: allow a few seconds more")


def save_scripts(path: Path, scripts: list[Script]) -> bool:
    """Writes a scripts file; returns False if the same content is already there.

    Raises: UserError if a file with other content is in the way, or the folder cannot be written.
    """
    return save_once(path, "".join(script.to_json() + "\n" for script in scripts).encode())
