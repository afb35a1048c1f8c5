"""Where the work of a stage is done: in local processes, or on a Ray cluster.

A stage is a picklable function of one job that writes its own files, whole or not at all, and answers a small value.
It may be done twice (a worker died after writing), and in any order, so its output must depend on the job alone.
What is costly to open (an engine, a codec) is opened by a function with `lru_cache`, once in each process.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.execution.jobs import Job, Losses, Result
from model.errors import UserError


@dataclass(kw_only=True, frozen=True)
class Executor:
    """Where and how wide a stage runs.

    `workers` counts processes; `gpus` is the share of a GPU that each of them needs (0: none; Ray only).
    Ray's workers first look for `paths`, the files and folders of the stage, and for a mark that was put into `out`.
    """

    kind: str = "local"
    address: str = ""
    workers: int = 1
    gpus: float = 0.0
    paths: tuple[Path, ...] = ()
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("local", "ray"):
            raise UserError(f"executor {self.kind!r}: choose local or ray")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be 1 or more")
        if not self.gpus >= 0 or (self.gpus > 1 and self.gpus % 1):
            raise UserError(f"--gpus {self.gpus:g}: give a share below 1, or a whole number")
        if self.kind == "local" and (self.address or self.gpus):
            raise UserError("--address and --gpus have an effect with --executor ray only: leave them out")

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, lost: Callable[[Job, str], Result] | None = None
    ) -> Iterator[Result]:
        """work(job) for all jobs, in the order in which they end.

        A worker that is killed costs nothing but time: its job is done again. `lost(job, reason)` gives the result of
        a job that kills its worker each time; without it such jobs end the run, after all others.
        Ctrl-C starts nothing more. Raises: what `work` raises, or UserError for lost jobs and an unusable cluster.
        """
        if not jobs:
            return iter(())
        if self.kind == "ray":
            from data_pipelines.execution.ray import Cluster, run_on_ray

            cluster = Cluster(
                address=self.address, workers=self.workers, gpus=self.gpus, paths=self.paths, out=self.out
            )
            return run_on_ray(cluster, work, jobs, Losses(lost))
        if self.workers == 1 or (len(jobs) == 1 and lost is None):  # one item left may be the one that kills
            return map(work, jobs)
        from data_pipelines.execution.local import run_in_processes

        return run_in_processes(min(self.workers, len(jobs)), work, jobs, Losses(lost))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every verb whose items are worked on one by one."""
    parser.add_argument("--workers", type=int, default=1, help="processes; each uses one core")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="where the work is done")
    parser.add_argument(
        "--address", default="", help="with --executor ray: auto (default), HOST:PORT, ray://HOST:10001, or local"
    )
    parser.add_argument("--gpus", type=float, default=0.0, help="with --executor ray: GPUs for each worker, e.g. 0.5")


def executor_of(args: argparse.Namespace) -> Executor:
    """The executor that the options of a verb ask for; its paths are all paths among them.

    Raises UserError if they contradict each other.
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
