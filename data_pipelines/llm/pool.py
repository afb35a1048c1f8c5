"""Many questions at a time: threads that wait for a server, bounded in number, with progress and cost in sight."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm

from data_pipelines.llm.client import Client

Job = TypeVar("Job")
Result = TypeVar("Result")


def ask_all(
    work: Callable[[Job], Result], jobs: Sequence[Job], client: Client, *, desc: str, unit: str
) -> list[Result]:
    """work(job) for all jobs, in the order of the jobs, `concurrency` of them at a time.

    When one raises, or on Ctrl-C, what is in progress ends and nothing more is started. Raises: what `work` raises.
    """
    pool = ThreadPoolExecutor(client.settings.concurrency)
    futures = {pool.submit(work, job): number for number, job in enumerate(jobs)}
    results: dict[int, Result] = {}
    try:
        with tqdm(total=len(jobs), desc=desc, unit=unit, disable=None) as bar:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                bar.set_postfix_str(client.usage.line(), refresh=False)
                bar.update()
    except KeyboardInterrupt:
        tqdm.write("stopping after what is in progress", file=sys.stderr)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[number] for number in range(len(jobs))]
