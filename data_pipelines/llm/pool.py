"""Many questions at a time: threads that wait for a server, bounded in number, results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 8
"""Jobs taken ahead for each thread, so that one slow answer holds up nobody."""


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], threads: int) -> Iterator[Result]:
    """work(job) for all jobs, in the order of the jobs, `threads` of them at a time.

    When one raises, on Ctrl-C, or when nobody takes more results, what is in progress ends and nothing more is
    started. Raises: what `work` raises.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) >= AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
