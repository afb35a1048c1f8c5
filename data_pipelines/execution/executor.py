"""Where the work of a stage is done: in local processes, or on a Ray cluster.

A stage is a picklable function of one job that writes its own files, whole or not at all, and returns a small value.
A job may be done twice (a worker died after writing), and jobs end in any order, so the output must depend on the job
alone. What is costly to open (an engine, a codec) is opened by a function with `lru_cache`, once in each process.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.execution.jobs import Job, Losses, Result
from model.errors import UserError


@dataclass(kw_only=True, frozen=True)
class Executor:
    """Where a stage runs, and on how many workers. Raises: UserError for values that contradict each other."""

    kind: str = "local"
    """"local" or "ray"."""
    address: str = ""
    """The Ray cluster, as `ray.init` takes it; "" stands for auto."""
    workers: int = 1
    """The number of processes."""
    gpus: float = 0.0
    """The share of a GPU that each worker needs, with Ray only; 0 for none."""
    paths: tuple[Path, ...] = ()
    """The files and folders of the stage. Ray's workers first check that they see them."""
    out: Path | None = None
    """The output folder. Ray's workers first look for a mark in it, which shows that they share the file system."""

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.kind not in ("local", "ray"):
            raise UserError(f"executor {self.kind!r}: choose local or ray", code="bad-value")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be 1 or more", code="bad-value")
        if not self.gpus >= 0 or (self.gpus > 1 and self.gpus % 1):
            raise UserError(f"--gpus {self.gpus:g}: give a share below 1, or a whole number", code="bad-value")
        if self.kind == "local" and (self.address or self.gpus):
            raise UserError(
                "--address and --gpus have an effect with --executor ray only: leave them out", code="bad-combination"
            )

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, lost: Callable[[Job, str], Result] | None = None
    ) -> Iterator[Result]:
        """Yields work(job) for all jobs, in the order in which they end.

        A worker that is killed costs time alone: its job is retried. `lost(job, reason)` returns the placeholder result
        of a job that kills its worker each time; without it such jobs end the run, after all others.
        After Ctrl-C no further job starts.
        Raises: what `work` raises, or UserError for lost jobs and an unusable cluster.
        """
        if not jobs:
            return iter(())
        if self.kind == "ray":
            from data_pipelines.execution.ray import Cluster, run_on_ray

            cluster = Cluster(
                address=self.address, workers=self.workers, gpus=self.gpus, paths=self.paths, out=self.out
            )
            return run_on_ray(cluster, work, jobs, Losses(lost))
        if self.workers == 1 or (len(jobs) == 1 and lost is None):
            # With `lost` a single job gets a worker: it may be the one that killed the workers of the run before.
            return map(work, jobs)
        from data_pipelines.execution.local import run_in_processes

        return run_in_processes(min(self.workers, len(jobs)), work, jobs, Losses(lost))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every verb whose items are worked on one by one."""
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each of which uses one core")
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="where the work is done: local processes or Ray"
    )
    parser.add_argument(
        "--address", default="", help="with --executor ray: auto (default), HOST:PORT, ray://HOST:10001, or local"
    )
    parser.add_argument(
        "--gpus",
        type=float,
        default=0.0,
        help="with --executor ray: GPUs that each worker needs, e.g. 0.5",
    )


def executor_of(args: argparse.Namespace) -> Executor:
    """Returns the executor that the options of a verb ask for; its `paths` are all paths among the options.

    Raises: UserError if they contradict each other.
    """
    values = [v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    return Executor(
        kind=args.executor,
        address=args.address,
        workers=args.workers,
        gpus=args.gpus,
        paths=tuple(value for value in values if isinstance(value, Path)),
        out=getattr(args, "out", None),
    )
