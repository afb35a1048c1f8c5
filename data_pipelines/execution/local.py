"""Local processes: a pool that survives the loss of its workers. See data_pipelines.execution.executor."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from tqdm import tqdm

from data_pipelines.execution.jobs import Job, Losses, Result

TRIES = 2
"""How often a job is tried alone that was in progress when a worker was killed."""


def run_in_processes(
    workers: int, work: Callable[[Job], Result], jobs: Iterable[Job], losses: Losses[Job, Result]
) -> Iterator[Result]:
    """Yields the results of all jobs from spawned processes, in the order in which they end.

    When a worker is killed, all workers end. The jobs in progress are then retried one at a time, which shows the job
    that kills, and the rest resumes in new processes. Raises as Executor.run.
    """
    waiting = deque(jobs)
    while waiting:
        running: dict[Future[Result], Job] = {}
        try:
            with _pool(workers) as pool:
                yield from _in_pool(pool, 2 * workers, work, waiting, running, losses)
        except BrokenProcessPool:
            left = f"{len(waiting)} jobs wait"
            tqdm.write(f"a worker was killed (out of memory?): looking for the reason, {left}", file=sys.stderr)
            yield from _one_at_a_time(work, deque(running.values()), losses)
    losses.end()


def _in_pool(
    pool: ProcessPoolExecutor,
    width: int,
    work: Callable[[Job], Result],
    waiting: deque[Job],
    running: dict[Future[Result], Job],
    losses: Losses[Job, Result],
) -> Iterator[Result]:
    """Keeps `width` jobs in the pool. On BrokenProcessPool, `running` holds the jobs that gave no result."""
    while waiting or running:
        while waiting and len(running) < width:
            running[_submit(pool, work, waiting[0])] = waiting[0]
            waiting.popleft()
        done = wait(running, return_when=FIRST_COMPLETED).done
        broken = {future for future in done if isinstance(future.exception(), BrokenProcessPool)}
        for future in done - broken:
            del running[future]
            losses.num_done += 1
            yield future.result()
        if broken:
            raise BrokenProcessPool


def _one_at_a_time(
    work: Callable[[Job], Result], suspects: deque[Job], losses: Losses[Job, Result]
) -> Iterator[Result]:
    killed = 0
    while suspects:
        try:
            with _pool(1) as pool:
                while suspects:
                    result = _submit(pool, work, suspects[0]).result()
                    suspects.popleft()
                    killed = 0
                    losses.num_done += 1
                    yield result
        except BrokenProcessPool:
            killed += 1
            if killed == TRIES:
                killed = 0
                yield from losses.add(suspects.popleft())


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            tqdm.write("stopping after what is in progress", file=sys.stderr)
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, work: Callable[[Job], Result], job: Job) -> Future[Result]:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a worker that starts now inherits it
    try:
        return pool.submit(work, job)
    finally:
        signal.signal(signal.SIGINT, previous)


def _begin_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed: it would work beside the next run, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
