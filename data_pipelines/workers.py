"""Work in several processes that a Ctrl-C ends cleanly."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from model.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    workers: int,
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """work(job) for all jobs on fresh processes, in the order in which they end; `work` must be picklable.

    Ctrl-C reaches this process alone: jobs in progress end whole, the others are never started.
    Raises: UserError if a worker is killed from outside, as for memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=initializer, initargs=initargs) as pool:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the workers start now and inherit it
        try:
            futures = [pool.submit(work, job) for job in jobs]
        finally:
            signal.signal(signal.SIGINT, previous)
        try:
            for future in as_completed(futures):
                yield future.result()
        except KeyboardInterrupt:
            tqdm.write("stopping after what is in progress", file=sys.stderr)
            raise
        except BrokenProcessPool as why:
            raise UserError("a worker was killed (out of memory?): run it again with fewer --workers") from why
        finally:
            pool.shutdown(cancel_futures=True)
