"""A Ray cluster: each job is a task. Ray places it, and retries it elsewhere when its worker or node is lost.

All nodes need the same installation, and one file system for inputs and outputs.
"""

import os
import platform
import socket
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from data_pipelines.execution.jobs import Job, Losses, Result
from model.errors import UserError
from model.extras import require

RETRIES = 3
"""How often Ray retries a job whose worker or node was lost."""
STORE_BYTES = 100_000_000
"""Object store of a cluster that is started here, in bytes: jobs and results are small, files carry the data."""


@dataclass(kw_only=True, frozen=True)
class Cluster:
    """Which cluster does the work, and how much of it is used; the fields are those of `Executor`."""

    address: str
    workers: int
    gpus: float
    paths: tuple[Path, ...]
    out: Path | None


def run_on_ray(
    cluster: Cluster, work: Callable[[Job], Result], jobs: Iterable[Job], losses: Losses[Job, Result]
) -> Iterator[Result]:
    """Yields the results of all jobs, with at most `cluster.workers` tasks in flight. Raises as Executor.run."""
    ray = connect(cluster)
    here = os.getcwd()
    with _mark(cluster) as paths:

        def task(job: Job) -> Result:
            move_in(here, paths)
            return work(job)

        remote = ray.remote(num_cpus=1, num_gpus=cluster.gpus, max_retries=RETRIES)(task)
        yield from _in_flight(ray, remote, cluster.workers, jobs, losses)
    losses.end()


def _in_flight(
    ray: ModuleType, remote: Any, width: int, jobs: Iterable[Job], losses: Losses[Job, Result]
) -> Iterator[Result]:
    killed = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
    waiting, running = deque(jobs), dict[Any, Job]()
    try:
        while waiting or running:
            while waiting and len(running) < width:
                job = waiting.popleft()
                running[remote.remote(job)] = job
            (done,), _ = ray.wait(list(running))
            job = running.pop(done)
            try:
                result = ray.get(done)
            except killed:
                yield from losses.add(job)
            except ray.exceptions.RayTaskError as why:
                raise _own(why) from why
            else:
                losses.num_done += 1
                yield result
    except KeyboardInterrupt:
        tqdm.write("cancelling what is in progress", file=sys.stderr)
        raise
    finally:
        for reference in running:
            ray.cancel(reference)


def _own(why: Any) -> BaseException:
    """Returns the error that `work` raised, without Ray's wrapping."""
    if isinstance(why.cause, ModuleNotFoundError):
        return UserError(
            f"a node of the cluster lacks the package {why.cause.name}: install the same on all nodes",
            code="missing-package",
        )
    return why.cause if isinstance(why.cause, Exception) else why


def connect(cluster: Cluster) -> ModuleType:
    """Returns Ray, connected to `cluster.address`; a connection that is open already is used.

    Raises: UserError if Ray is not installed, no cluster responds, or a cluster started here has too few GPUs.
    """
    ray = require("ray", extra="ray")
    # Ray would print the errors of tasks that are still in flight when another task has failed.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = cluster.address or "auto"
    if not ray.is_initialized():
        _knock(address)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            cores = max(cluster.workers, os.cpu_count() or 1)
            options |= {"num_cpus": cores, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as why:
            reason = str(why).strip().splitlines()[0]
            raise UserError(
                f"--address {address} is no Ray cluster to work with ({reason}): see `ray status`", code="unreachable"
            ) from why
    there = ray.cluster_resources().get("GPU", 0)
    if cluster.gpus > there and address == "local":
        raise UserError(
            f"--gpus {cluster.gpus:g} for each worker, but this machine has {there:g}: leave it out", code="no-device"
        )
    if cluster.gpus > there:
        tqdm.write(f"the cluster has {there:g} GPUs, each worker asks for {cluster.gpus:g}: waiting", file=sys.stderr)
    return ray


def _knock(address: str) -> None:
    """Raises UserError if nothing listens at HOST:PORT, where Ray would try for minutes and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not colon or not port.isdigit():
        raise UserError(f"--address {address}: give auto, local, HOST:PORT or ray://HOST:PORT", code="bad-value")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as why:
        raise UserError(
            f"--address {address} does not connect ({why}): see `ray status` on the cluster", code="unreachable"
        ) from why


@contextmanager
def _mark(cluster: Cluster) -> Iterator[tuple[Path, ...]]:
    """Yields the paths that workers must see, among them a new file in OUT that exists while the run lasts."""
    paths = tuple(path.absolute() for path in cluster.paths if path.exists())
    folder = next((f for f in (cluster.out, cluster.out and cluster.out.parent) if f and f.is_dir()), None)
    if folder is None:
        yield paths
        return
    for old in folder.glob(".shared-*"):  # a run that was killed leaves its mark
        old.unlink(missing_ok=True)
    mark = folder.absolute() / f".shared-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield (*paths, mark)
    finally:
        mark.unlink(missing_ok=True)


@lru_cache(maxsize=8)
def move_in(here: str, paths: tuple[Path, ...]) -> None:
    """Changes to the folder that relative paths start from and checks that `paths` are there, once in each worker.

    Raises: UserError that names the first path that is not there.
    """
    if os.path.isdir(here):
        os.chdir(here)
    for path in paths:
        if not path.exists():
            folder = path.parent if path.name.startswith(".shared-") else path
            raise UserError(
                f"node {platform.node()} does not see {folder}: use a folder that all nodes share, under the same path",
                code="not-found",
            )
