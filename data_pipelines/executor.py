"""Where the work of a stage is done: in local processes, or on a Ray cluster.

A stage is a picklable function of one job that writes its own files, whole or not at all, and answers a small value.
It may be done twice (a worker died after writing), and in any order, so its output must depend on the job alone.
What is costly to open (an engine, a codec) is opened by a function with `lru_cache`, once in each process.
"""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from model.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

TRIES = 3
"""How often a local pool is started anew after a worker was killed, before the run gives up."""


@dataclass(kw_only=True, frozen=True)
class Executor:
    """Where and how wide a stage runs.

    `workers` counts processes; `gpus` is the share of a GPU that each of them needs (0: none; Ray only).
    """

    kind: str = "local"
    address: str = ""
    workers: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("local", "ray"):
            raise UserError(f"executor {self.kind!r}: choose local or ray")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be 1 or more")
        if self.kind == "local" and (self.address or self.gpus):
            raise UserError("--address and --gpus have an effect with --executor ray only: leave them out")

    def run(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """work(job) for all jobs, in the order in which they end.

        Ctrl-C ends what is in progress whole and starts nothing more. Raises: what `work` raises, or UserError if
        workers keep being killed.
        """
        if self.kind == "ray":
            raise UserError("executor ray: not there yet")  # data_pipelines.executor_ray
        if self.workers == 1 or len(jobs) < 2:
            return map(work, jobs)
        return _in_processes(min(self.workers, len(jobs)), work, jobs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every verb whose items are worked on one by one."""
    parser.add_argument("--workers", type=int, default=1, help="processes; each uses one core")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="where the work is done")
    parser.add_argument("--address", default="", help="with --executor ray: the cluster, e.g. auto or ray://HOST:10001")
    parser.add_argument("--gpus", type=float, default=0.0, help="with --executor ray: GPUs for each worker, e.g. 0.5")


def executor_of(args: argparse.Namespace) -> Executor:
    """The executor that the options of a verb ask for. Raises UserError if they contradict each other."""
    return Executor(kind=args.executor, address=args.address, workers=args.workers, gpus=args.gpus)


def _in_processes(workers: int, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Runs on fresh processes; when one is killed from outside, what was not finished starts anew on others."""
    left = dict(enumerate(jobs))
    for attempt in range(TRIES):
        try:
            for number, result in _in_pool(workers, work, left):
                del left[number]
                yield result
            return
        except BrokenProcessPool:
            if attempt < TRIES - 1:
                tqdm.write(f"a worker was killed; {len(left)} jobs go on in new ones", file=sys.stderr)
    raise UserError(f"workers were killed {TRIES} times (out of memory?): run it again with fewer --workers")


def _in_pool(workers: int, work: Callable[[Job], Result], jobs: dict[int, Job]) -> Iterator[tuple[int, Result]]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_one_thread) as pool:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the workers start now and inherit it
        try:
            futures = {pool.submit(work, job): number for number, job in jobs.items()}
        finally:
            signal.signal(signal.SIGINT, previous)
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except KeyboardInterrupt:
            tqdm.write("stopping after what is in progress", file=sys.stderr)
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
