"""The Ray executor against real clusters on this machine."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from data_pipelines import verbs  # noqa: E402
from data_pipelines.execution.executor import Executor  # noqa: E402
from data_pipelines.shards.encode import build_shards  # noqa: E402
from model.errors import UserError  # noqa: E402
from tests.data_pipelines import jobs, node_jobs  # noqa: E402
from tests.data_pipelines.execution.test_executor import is_alive, wait_for  # noqa: E402
from tests.data_pipelines.kill import tree  # noqa: E402
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue  # noqa: E402
from tests.ppx_train.fixtures import make_codec  # noqa: E402
from tests.refusals import refused  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core each."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def two(cluster: Cluster) -> dict[str, Any]:
    """Options of an executor for both nodes."""
    return {"kind": "ray", "address": cluster.address, "workers": 2}


def test_all_jobs_are_done_on_both_nodes(two: dict[str, Any], tmp_path: Path) -> None:
    assert sorted(Executor(**two).run(jobs.square, range(20))) == [n * n for n in range(20)]
    paths = [tmp_path / str(n) for n in range(8)]
    list(Executor(**two).run(jobs.note_process, paths))
    processes, threads, folders = zip(*(path.read_text().split() for path in paths), strict=True)
    assert str(os.getpid()) not in processes
    assert (set(threads), set(folders)) == ({"1"}, {os.getcwd()})


def test_no_more_jobs_are_in_flight_than_there_are_workers(two: dict[str, Any], tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(4)]
    list(Executor(**two | {"workers": 1}).run(jobs.note_times, paths))
    times = sorted([float(time) for time in path.read_text().split()] for path in paths)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))


def test_errors_of_the_work_come_back_as_they_are(two: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="^three is no good: leave it out$"):
        list(Executor(**two).run(jobs.refuse_three, range(6)))
    with pytest.raises(OSError) as caught:
        list(Executor(**two).run(jobs.fill_disk, range(1)))
    assert (type(caught.value), caught.value.errno, caught.value.filename) == (OSError, 28, "/data/0")


def test_a_killed_worker_costs_nothing_and_a_job_that_always_kills_it_is_named(
    two: dict[str, Any], tmp_path: Path
) -> None:
    assert sorted(Executor(**two).run(jobs.kill_once, [(n, tmp_path) for n in range(12)])) == list(range(12))
    assert (tmp_path / "killed").exists()
    done = []
    with refused("lost-work", "1 jobs", "(bad)"):
        for name in Executor(**two).run(jobs.kill_always, ["bad", "good", "fine"]):
            done.append(name)
    assert sorted(done) == ["fine", "good"]


def test_a_folder_that_workers_do_not_see_is_named(two: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    number = os.dup2(os.open(tmp_path, os.O_RDONLY), 77)
    ours = Path(f"/proc/self/fd/{number}")  # exists in this process alone
    executor = Executor(**two, paths=(tmp_path, ours), out=tmp_path / "out")
    with refused("not-found", "/proc/self/fd/77", "a folder that all nodes share"):
        list(executor.run(jobs.square, range(3)))
    assert not list((tmp_path / "out").iterdir())
    os.close(77)


def test_the_mark_in_the_output_folder_is_gone_after_a_run(two: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".shared-left-by-a-killed-run").touch()
    assert list(Executor(**two, paths=(tmp_path,), out=tmp_path).run(jobs.square, [3])) == [9]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def doomed(cluster: Cluster) -> Iterator[Any]:
    """One more node, to be killed by the test."""
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


def kill_at_work(
    cluster: Cluster, node: Any, folder: Path, condition: Callable[[], bool] = lambda: True
) -> Future[None]:
    """Kills a node when one of its processes is at work and `condition` holds. Then makes the file `go`, which all jobs
    wait for. The future fails if that never happens."""

    def processes() -> list[int]:
        return [int(path.name.rpartition(".")[2]) for path in folder.glob(f"*.{node.node_id}.*")]

    def wait_and_kill() -> None:
        try:
            wait_for(lambda: processes() and condition())
            cluster.remove_node(node, allow_graceful=False)
            wait_for(lambda: not any(map(is_alive, processes())))
        finally:
            (folder / "go").touch()

    return ThreadPoolExecutor(1).submit(wait_and_kill)


def test_jobs_of_a_lost_node_are_done_on_the_other(
    two: dict[str, Any], cluster: Cluster, doomed: Any, tmp_path: Path
) -> None:
    killer = kill_at_work(cluster, doomed, tmp_path)
    # three jobs at once on three nodes of one core: the doomed one gets one
    done = list(Executor(**two | {"workers": 3}).run(node_jobs.note_node, [tmp_path / f"{n}" for n in range(8)]))
    killer.result()
    assert sorted(done) == [f"{n}" for n in range(8)]
    begun = [path.name[0] for path in tmp_path.glob("*.*.*")]
    assert len(begun) == 9 and set(begun) == set(done), "the job in progress on the lost node is begun once more"


def test_addresses_where_no_cluster_is_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for address in (f"127.0.0.1:{free.getsockname()[1]}", f"ray://127.0.0.1:{free.getsockname()[1]}"):
            with refused("unreachable", f"--address {address}", "ray status"):
                list(Executor(kind="ray", address=address).run(jobs.square, [1]))
    with refused("bad-value", "--address somewhere"):
        list(Executor(kind="ray", address="somewhere").run(jobs.square, [1]))


@pytest.mark.slow
def test_shards_of_two_nodes_one_of_which_is_killed_halfway_are_those_of_one_process(
    two: dict[str, Any], cluster: Cluster, doomed: Any, tmp_path: Path
) -> None:
    for other in cluster.worker_nodes - {doomed}:
        cluster.remove_node(other)
    for n in range(12):
        write_dialogue(tmp_path / "dialogues", f"call-{n}", split="heldout" if n < 3 else "train")
    build_shards([tmp_path / "dialogues"], TinyCodec(), tmp_path / "one")
    codes, codec = tmp_path / "two" / ".work", node_jobs.PatientCodec(tmp_path)

    killer = kill_at_work(cluster, doomed, tmp_path, lambda: len(list(codes.glob("*.npz"))) >= 4)
    build_shards([tmp_path / "dialogues"], codec, tmp_path / "two", executor=Executor(**two))
    killer.result()
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


@pytest.mark.slow
def test_the_verb_on_a_cluster_gives_the_shards_of_one_process(two: dict[str, Any], tmp_path: Path) -> None:
    for n in range(3):
        write_dialogue(tmp_path / "dialogues", f"call-{n}")
    codec = make_codec(tmp_path / "codec.safetensors")
    argv = ["shard", "--dialogues", str(tmp_path / "dialogues"), "--codec", str(codec), "--out"]
    verbs.main([*argv, str(tmp_path / "one")])
    verbs.main([*argv, str(tmp_path / "two"), "--executor", "ray", "--address", two["address"], "--workers", "2"])
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


RUN = """
import sys
from pathlib import Path
from data_pipelines.execution.executor import Executor
from tests.data_pipelines import jobs
folder = Path(sys.argv[1])
run = Executor(kind="ray", address="local", workers=2, out=folder).run
list(run(jobs.wait_for_ever, [folder / f"{n}.txt" for n in range(6)]))
"""


@pytest.mark.slow
def test_ctrl_c_cancels_on_a_cluster_started_for_the_run(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path)]
    run = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=1200)
    assert run.returncode != 0 and b"cancelling what is in progress" in errors
    assert len(list(tmp_path.glob("*.begun"))) == 2 and not list(tmp_path.glob(".shared-*"))
