"""Executors: the same results wherever the work is done, and whatever happens to the workers."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.execution.executor import Executor
from model.errors import Code, UserError
from tests.data_pipelines import jobs
from tests.data_pipelines.jobs import wait_for
from tests.paths import ROOT
from tests.refusals import refused

TWO = Executor(workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_jobs_are_done(workers: int) -> None:
    assert sorted(Executor(workers=workers).run(jobs.square, range(20))) == [n * n for n in range(20)]
    assert list(Executor(workers=workers).run(jobs.square, [])) == []


def test_workers_are_other_processes_with_one_thread_each(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(8)]
    list(TWO.run(jobs.meet, paths))
    processes, threads, _ = zip(*(path.read_text().split() for path in paths), strict=True)
    assert len(set(processes)) == 2 and str(os.getpid()) not in processes
    assert set(threads) == {"1"}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_work_come_back_as_they_are(workers: int) -> None:
    executor = Executor(workers=workers)
    with pytest.raises(UserError, match="^three is no good: leave it out$"):
        list(executor.run(jobs.refuse_three, range(6)))
    with pytest.raises(OSError) as caught:
        list(executor.run(jobs.fill_disk, range(2)))
    assert (caught.value.errno, caught.value.filename) == (28, "/data/0") or caught.value.filename == "/data/1"


def test_a_worker_killed_once_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(TWO.run(jobs.kill_once, [(n, tmp_path) for n in range(12)])) == list(range(12))
    assert (tmp_path / "killed").exists()
    assert "a worker was killed" in capsys.readouterr().err


def test_a_job_that_always_kills_its_worker_is_named_and_all_others_are_done() -> None:
    names = [*"abcdefg", "bad", *"hij"]
    done = []
    with refused("lost-work", "1 jobs", "(bad)"):
        for name in TWO.run(jobs.kill_always, names):
            done.append(name)
    assert sorted(done) == sorted(set(names) - {"bad"})
    results = list(TWO.run(jobs.kill_always, names, lost=lambda job, reason: f"{job}: {reason}"))
    assert sorted(results) == sorted(
        {*names, "bad: its worker was killed each time: out of memory, or a crash in native code"} - {"bad"}
    )


def test_the_last_job_left_kills_a_worker_not_the_run() -> None:
    (result,) = TWO.run(jobs.kill_always, ["bad"], lost=lambda job, reason: f"{job}: {reason}")
    assert result.startswith("bad: its worker was killed each time")


def test_a_run_in_which_most_jobs_kill_their_workers_stops() -> None:
    with refused("lost-work", "4 jobs", "(bad, bad, bad, ...)"):
        list(TWO.run(jobs.kill_always, ["bad"] * 50, lost=lambda job, reason: job))


RUN = """
import sys
from pathlib import Path
from data_pipelines.execution.executor import Executor
from tests.data_pipelines import jobs
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    list(Executor(workers=2).run(getattr(jobs, sys.argv[2]), [folder / f"{n}.txt" for n in range(6)]))
"""


def start(tmp_path: Path, job: str) -> subprocess.Popen[bytes]:
    """A run of six slow jobs in a process group of its own, with two jobs or more begun."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, script, tmp_path, job], env=environment, start_new_session=True, stderr=-1)
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) >= 2)
    return run


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended stays in the table until its parent reads its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_ends_what_is_in_progress_and_starts_nothing_more(tmp_path: Path) -> None:
    run = start(tmp_path, "wait_for_go")
    os.killpg(run.pid, signal.SIGINT)
    assert run.stderr is not None
    assert any(b"stopping after what is in progress" in line for line in run.stderr)
    (tmp_path / "go").touch()
    run.communicate(timeout=1200)
    assert run.returncode != 0
    begun = {path.stem for path in tmp_path.glob("*.begun")}
    assert {path.stem for path in tmp_path.glob("*.txt")} == begun and 2 <= len(begun) < 6


def test_workers_of_a_killed_run_end_with_it(tmp_path: Path) -> None:
    run = start(tmp_path, "wait_for_ever")
    workers = [int(path.read_text()) for path in tmp_path.glob("*.begun")]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not any(is_alive(worker) for worker in workers))
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize(
    ("options", "code", "name"),
    [
        ({"kind": "slurm"}, "bad-value", "'slurm'"),
        ({"workers": 0}, "bad-value", "--workers 0"),
        ({"address": "auto"}, "bad-combination", "--address"),
        ({"gpus": 1}, "bad-combination", "--gpus"),
        ({"kind": "ray", "gpus": 1.5}, "bad-value", "--gpus 1.5"),
        ({"kind": "ray", "gpus": -1}, "bad-value", "--gpus -1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], code: Code, name: str) -> None:
    with refused(code, name):
        Executor(**options)
