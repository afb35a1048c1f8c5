"""Concurrent questions to a model: threads that wait for a server, bounded in number, results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from data_pipelines.llm.client import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 8
"""Items that are prefetched for each thread, so that one slow answer does not hold up the other threads."""


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], client: Client) -> Iterator[Result]:
    """Yields work(item) in the order of the items; as many run concurrently as the client may send requests.

    When one raises, on Ctrl-C, or when the caller takes no more results, requests in flight end and nothing more is
    sent. Raises: what `work` raised first.
    """
    failures: list[BaseException] = []

    def guarded(item: Item) -> Result:
        try:
            return work(item)
        except BaseException as why:
            failures.append(why)
            client.stop()  # The other threads stop waiting.
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
        for item in items:
            waiting.append(pool.submit(guarded, item))
            if len(waiting) >= AHEAD * client.settings.concurrency:
                yield result(waiting.popleft())
        while waiting:
            yield result(waiting.popleft())
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
