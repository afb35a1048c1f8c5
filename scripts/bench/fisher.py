"""Speed of the Fisher import on stand-in calls: the stages before alignment, the whole import, and each stage's share.

    python scripts/bench/fisher.py --calls 4 --workers 2

`decode` unpacks shorten SPHERE, `parse` reads transcript, typed original and tables, `resample` makes 24 kHz of the
whole call; `align`, `plan` and `write` (FLAC) are what the import adds. Shares are CPU time of one process; the rates
are wall time of `--workers` processes, started before the clock.
"""

# Shapes: C channels, S samples

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import machine, table, write_json

from data_pipelines.listening.align import shared_aligner
from data_pipelines.recordings.fisher import call as stages
from data_pipelines.recordings.fisher import cut_call as cut
from data_pipelines.recordings.fisher import source
from data_pipelines.recordings.fisher.call import import_call
from data_pipelines.recordings.fisher.call_tables import read_tables
from data_pipelines.recordings.fisher.importer import jobs_of
from data_pipelines.recordings.fisher.job import Job, Settings
from data_pipelines.recordings.fisher.layout import find_corpus
from data_pipelines.recordings.fisher.source import read_call, to_24k
from data_pipelines.recordings.windows import Limits
from data_pipelines.sound.audio import RATE_HZ, RESAMPLERS
from data_pipelines.standin.standin import make_truth_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of the stages before alignment")
    parser.add_argument("--resampler", choices=sorted(RESAMPLERS), default="soxr-hq")
    parser.add_argument("--no-align", action="store_true", help="measure the stages before alignment only")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = Settings(
        seed=0, limits=Limits(max_seconds=140.0), voice_seconds=5.0, licence="none", resampler=args.resampler
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder, "corpus"), Path(folder, "out")
        make_truth_corpus(corpus, args.calls, args.seconds, 0, "espeak")
        found = find_corpus([corpus])
        began = time.process_time()
        jobs = jobs_of(found, read_tables(found.tables))
        shares = {"parse": (time.process_time() - began) / len(jobs)}
        audio = sum(stage_seconds(job, settings, shares, len(jobs)) for job in jobs)
        rows = [
            {"what": "decode + parse + resample"}
            | rate(partial(prepare, settings=settings), jobs * args.rounds, args, audio * args.rounds)
        ]
        if not args.no_align:
            whole_seconds(jobs[0], settings, out / "one", shares)
            out.mkdir(exist_ok=True)
            rows.append(
                {"what": "whole import"} | rate(partial(import_call, settings=settings, out=out), jobs, args, audio)
            )
    total = sum(shares.values())
    parts = [{"stage": name, "CPU s a call": value, "share %": 100 * value / total} for name, value in shares.items()]
    print(f"{machine('cpu')}\n{len(jobs)} calls, {audio / 60:.1f} min, {args.workers} processes, {args.resampler}\n")
    print(f"{table(parts)}\n\n{table(rows)}")
    write_json(args.json, {"machine": machine("cpu"), "stages": parts, "rates": rows, "audio_seconds": audio})


def prepare(job: Job, settings: Settings) -> float:
    """The stages before alignment; answers seconds of audio."""
    read = read_call(job, settings.filters)
    return to_24k(read.audio_CS, read.rate, settings).shape[1] / RATE_HZ


def stage_seconds(job: Job, settings: Settings, shares: dict[str, float], num_jobs: int) -> float:
    """Adds one call's CPU time of the stages before alignment; answers its seconds of audio."""
    clock = Clock(shares, num_jobs)
    undo = clock.wrap(source, "decode", "decode")
    began, decoded = time.process_time(), shares.get("decode", 0.0)
    read = read_call(job, settings.filters)
    shares["parse"] += (time.process_time() - began) / num_jobs - (shares["decode"] - decoded)
    undo()
    began = time.process_time()
    to_24k(read.audio_CS, read.rate, settings)
    shares["resample"] = shares.get("resample", 0.0) + (time.process_time() - began) / num_jobs
    return read.seconds


def whole_seconds(job: Job, settings: Settings, out: Path, shares: dict[str, float]) -> None:
    """Adds the CPU time of what the import does beyond that, measured on one call."""
    shared_aligner()
    clock = Clock(shares, 1)
    undo = [
        clock.wrap(stages, "align_all", "align"),
        clock.wrap(stages, "candidate_clips", "plan"),
        clock.wrap(stages, "plan_windows", "plan"),
        clock.wrap(cut, "write_flac", "write"),
    ]
    import_call(job, settings, out)
    for restore in undo:
        restore()


class Clock:
    """Measures functions of a module in place."""

    def __init__(self, shares: dict[str, float], num_calls: int) -> None:
        self.shares, self.num_calls = shares, num_calls

    def wrap(self, module: Any, name: str, stage: str) -> Callable[[], None]:
        """Adds the function's CPU time to a stage from now on; answers what undoes it."""
        function = getattr(module, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = (time.process_time() - began) / self.num_calls
                self.shares[stage] = self.shares.get(stage, 0.0) + spent

        setattr(module, name, measured)
        return lambda: setattr(module, name, function)


def rate(work: Callable[[Job], Any], jobs: list[Job], args: argparse.Namespace, audio: float) -> dict[str, Any]:
    """Wall time of some work on all processes."""
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(warm, range(4 * args.workers)))
        began = time.perf_counter()
        list(pool.map(work, jobs))
        wall = time.perf_counter() - began
    return {"wall s": wall, "x real time": audio / wall}


def warm(number: int) -> None:
    """Loads in each process what it needs."""
    shared_aligner()
    time.sleep(0.2)


if __name__ == "__main__":
    main()
