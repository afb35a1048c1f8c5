"""Many questions at a time: threads that wait for a server, bounded in number, results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from data_pipelines.llm.client import Client

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 8
"""Jobs taken ahead for each thread, so that one slow answer holds up nobody."""


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], client: Client) -> Iterator[Result]:
    """work(job) for all jobs, in the order of the jobs, as many at a time as the client may send requests.

    When one raises, on Ctrl-C, or when nobody takes more results, requests in flight end and nothing more is sent.
    Raises: what `work` raised first.
    """
    failures: list[BaseException] = []

    def guarded(job: Job) -> Result:
        try:
            return work(job)
        except BaseException as why:
            failures.append(why)
            client.stop()  # the others stop waiting
            raise

    def result(future: Future[Result]) -> Result:
        try:
            return future.result()
        finally:
            if failures:
                raise failures[0]

    pool = ThreadPoolExecutor(client.settings.concurrency)
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(guarded, job))
            if len(waiting) >= AHEAD * client.settings.concurrency:
                yield result(waiting.popleft())
        while waiting:
            yield result(waiting.popleft())
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
