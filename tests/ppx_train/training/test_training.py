"""Whole runs of a model of a few thousand weights: exact resume, independence of the split, bad data."""

import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.rows import NAME, Index
from model.errors import Code, UserError
from model.files import LOCK, lock
from ppx_train import __version__
from ppx_train.config.load import load
from ppx_train.training import checkpoint_files, origin
from ppx_train.training.callbacks import held_out
from ppx_train.training.checkpoint import DATA, FILE, FILES, SUMS, check_sums, checkpoints, read_checkpoint
from ppx_train.training.curves import read_metrics
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import is_launcher
from ppx_train.training.run import train
from ppx_train.training.saved_tensors import file_name, whole_tensors
from tests.data_pipelines.range_server import serve
from tests.data_pipelines.tiny_dialogues import overwrite, stored
from tests.paths import ROOT
from tests.ppx_train.fixtures import bad_samples, build_lm, run_arguments
from tests.refusals import refused


def start(arguments: list[str], launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """ppx-train in a process of its own, as a person would start it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, "-m", "ppx_train", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=1200)
    return process.returncode, output


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 1200
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return whole_tensors(read_checkpoint(run_dir / "checkpoints" / f"step-{step:07d}"))["state_dict"]


def assert_bitwise_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def whole_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, four micro-batches a step, never interrupted."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train(load(run_arguments(prepared, run_dir))) == 0
    return run_dir


def test_a_run_learns_and_leaves_its_files(whole_run: Path) -> None:
    metrics = read_metrics(whole_run)
    for stream in ("text", "semantic", "acoustic", "user_semantic", "user_acoustic"):
        heldout = metrics[f"heldout/{stream}_loss"]
        assert [step for step, _ in heldout] == [0, 4, 8]
        assert heldout[-1][1] < heldout[0][1], stream
        assert f"train/{stream}_accuracy" in metrics
    for name in ("gradient_norm", "frames_per_second", "audio_seconds_per_second", "lr/depth", "lr/temporal"):
        assert name in metrics
    assert [folder.name for folder in checkpoints(whole_run)] == ["step-0000003", "step-0000006", "step-0000008"]
    assert (whole_run / "curves.png").stat().st_size > 10_000
    assert load(["recipe=quickstart"]).recipe in (whole_run / "config.yaml").read_text("utf-8")
    assert read_checkpoint(checkpoints(whole_run)[-1])[origin.KEY]["version"] == __version__


@pytest.mark.slow
def test_a_killed_run_ends_bitwise_as_if_never_killed(prepared: Path, whole_run: Path, tmp_path: Path) -> None:
    arguments = run_arguments(prepared, tmp_path / "run")
    process = start(arguments)
    wait_for(tmp_path / "run" / "checkpoints" / "step-0000003", process)
    process.kill()
    process.communicate()
    done = checkpoints(tmp_path / "run")[-1]
    code, output = finish(start([*arguments, "resume=true"]))
    assert code == 0, output
    assert done.name < "step-0000008"
    assert_bitwise_equal(weights(tmp_path / "run", 8), weights(whole_run, 8))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(prepared: Path, tmp_path: Path) -> None:
    """Each life is killed up to a second after its start or after its log appears; PPX_KILLS=20 kills more often."""
    kills, moments = int(os.environ.get("PPX_KILLS", "2")), random.Random(int(os.environ.get("PPX_KILL_SEED", "1")))
    steps = 15 * kills
    more = (f"steps={steps}", "trainer.checkpoint_every=1", "trainer.heldout_every=1000", "data.heldout_samples=0")
    assert train(load(run_arguments(prepared, tmp_path / "whole", *more))) == 0
    arguments = [*run_arguments(prepared, tmp_path / "run", *more), "resume=true"]
    for _ in range(kills):
        before = len(list(tmp_path.glob("run/logs/*")))
        process = start(arguments)
        if moments.random() < 0.8:  # The others die while they start.
            while process.poll() is None and len(list(tmp_path.glob("run/logs/*"))) == before:
                time.sleep(0.02)
        time.sleep(moments.random())
        process.kill()
        process.communicate()
        print("killed after", *checkpoints(tmp_path / "run")[-1:])
    code, output = finish(start(arguments))
    assert code == 0, output
    assert_bitwise_equal(weights(tmp_path / "run", steps), weights(tmp_path / "whole", steps))
    assert [path.name for path in (tmp_path / "run").glob("checkpoints/*.partial")] == []


@pytest.mark.slow
def test_an_interrupted_run_saves_says_how_to_go_on_and_does(prepared: Path, tmp_path: Path) -> None:
    more = ("steps=40", "trainer.checkpoint_every=100", "trainer.heldout_every=40")  # long enough to be caught in time
    assert train(load(run_arguments(prepared, tmp_path / "whole", *more))) == 0
    arguments = run_arguments(prepared, tmp_path / "run", *more)
    process = start(arguments)
    wait_for(tmp_path / "run" / "logs" / "version_0" / "metrics.csv", process)  # step 0 was scored: training runs
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 128 + signal.SIGINT, output
    assert "resume=true" in output
    (saved,) = checkpoints(tmp_path / "run")
    assert saved.name < "step-0000040"
    assert train(load([*arguments, "resume=true"])) == 0
    assert_bitwise_equal(weights(tmp_path / "run", 40), weights(tmp_path / "whole", 40))


def test_a_signal_saves_after_the_step_and_the_run_goes_on_from_nothing_and_from_there(
    prepared: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DuplexModule.training_step

    def training_step(self: DuplexModule, *args: Any) -> None:
        if self.global_step == 3:
            signal.raise_signal(signal.SIGUSR1)
        step(self, *args)

    arguments = run_arguments(prepared, tmp_path / "run", "resume=auto", "trainer.checkpoint_every=100")
    with monkeypatch.context() as patched:
        patched.setattr(DuplexModule, "training_step", training_step)
        assert train(load(arguments)) == 0
    saved = checkpoints(tmp_path / "run")
    assert [folder.name for folder in saved] == ["step-0000004", "step-0000008"]
    assert_bitwise_equal(weights(tmp_path / "run", 8), weights(whole_run, 8))
    shutil.rmtree(saved[-1])
    assert train(load(arguments)) == 0
    assert_bitwise_equal(weights(tmp_path / "run", 8), weights(whole_run, 8))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "strategy"), [(4, "ddp"), (2, "fsdp2")], ids=lambda value: str(value))
def test_loss_and_norm_do_not_depend_on_the_split(
    prepared: Path, whole_run: Path, tmp_path: Path, devices: int, strategy: str
) -> None:
    more = (f"trainer.devices={devices}", f"trainer.strategy={strategy}")
    code, output = finish(start(run_arguments(prepared, tmp_path / "run", *more)))
    assert code == 0, output
    expected, got = read_metrics(whole_run), read_metrics(tmp_path / "run")
    for name in ("train/loss", "gradient_norm", "heldout/loss"):
        for (step, ours), (other_step, theirs) in zip(got[name], expected[name], strict=True):
            assert step == other_step
            assert ours == pytest.approx(theirs, rel=2e-5), (name, step)


@pytest.mark.slow
def test_processes_of_torchrun_train_one_run_together(prepared: Path, whole_run: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = run_arguments(prepared, tmp_path / "run")
    code, output = finish(start(arguments, launcher))
    assert code != 0 and "error[bad-combination]: command line: trainer.devices=1" in output, output
    assert not (tmp_path / "run").exists()
    code, output = finish(start([word for word in arguments if word != "trainer.devices=1"], launcher))
    assert code == 0, output
    expected, got = read_metrics(whole_run), read_metrics(tmp_path / "run")
    assert [ours for _, ours in got["heldout/loss"]] == pytest.approx(
        [v for _, v in expected["heldout/loss"]], rel=2e-5
    )
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == [f.name for f in checkpoints(whole_run)]


@pytest.mark.parametrize("resume", ["auto", "true"])
def test_a_finished_run_is_left_alone(
    prepared: Path, whole_run: Path, resume: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole_run / "config.yaml").stat().st_mtime_ns
    assert train(load(run_arguments(prepared, whole_run, f"resume={resume}"))) == 0
    assert "is complete" in capsys.readouterr().out
    assert (whole_run / "config.yaml").stat().st_mtime_ns == before


def test_shards_by_url_give_the_same_weights(prepared: Path, whole_run: Path, tmp_path: Path) -> None:
    with serve(prepared / "shards") as served:
        served.together, served.gather = 4, "/train/*.tar"
        assert train(load(run_arguments(prepared, tmp_path / "run", f"data.paths=[{served.url}]"))) == 0
        assert len({path for path, _ in served.requests if path.endswith(".tar")}) >= 2
        assert served.most_at_once >= 4  # the The samples of a step are fetched concurrently.
    assert_bitwise_equal(weights(tmp_path / "run", 8), weights(whole_run, 8))


def test_an_existing_run_is_not_overwritten(prepared: Path, whole_run: Path) -> None:
    with pytest.raises(UserError, match="exists: resume=true goes on with it"):
        train(load(run_arguments(prepared, whole_run)))


def test_a_run_dir_in_which_another_process_trains_is_refused(prepared: Path, tmp_path: Path) -> None:
    for resume in ("true", "false"):
        arguments = run_arguments(prepared, tmp_path / "run", f"resume={resume}")
        with lock(tmp_path / "run"), refused("in-use", tmp_path / "run", f"process {os.getpid()} on"):
            train(load(arguments))
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_killed_run_is_no_obstacle_and_every_lock_is_gone_in_the_end(
    prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text("process 1 on another-machine")
    arguments = run_arguments(prepared, tmp_path / "run", "steps=1", "optim.warmup_steps=0", "data.heldout_samples=0")
    assert train(load(arguments)) == 0
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),  # a process that Lightning started
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun numbers nodes by itself
        ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_one_process_of_all_is_the_first(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_launcher() is expected


def test_resuming_with_other_settings_is_refused(prepared: Path, whole_run: Path) -> None:
    with refused("other-settings", "optim.lr.depth=0.5", "0.0015"):
        train(load(run_arguments(prepared, whole_run, "resume=true", "optim.lr.depth=0.5")))


def test_sums_beside_a_checkpoint_are_those_of_sha256sum(whole_run: Path) -> None:
    for folder in checkpoints(whole_run):
        lines = (folder / SUMS).read_text().splitlines()
        scored = ["heldout.json"] if folder.name == "step-0000008" else []
        names = [FILE, "config.yaml", *scored, "seen.json", file_name(0, 1)]
        assert lines == [f"{hashlib.sha256((folder / f).read_bytes()).hexdigest()}  {f}" for f in names]
        assert sorted(path.name for path in folder.iterdir()) == sorted([*names, SUMS])


@pytest.mark.parametrize("with_sums", [True, False])
def test_a_damaged_checkpoint_is_named(prepared: Path, whole_run: Path, tmp_path: Path, with_sums: bool) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-0000008" / FILE
    file.write_bytes(file.read_bytes()[:1000])
    if not with_sums:
        (file.parent / SUMS).unlink()
    with refused("bad-checkpoint", "step-0000008/checkpoint.ckpt"):
        train(load(run_arguments(prepared, tmp_path / "run", "resume=true")))


@pytest.mark.parametrize("name", [FILE, "config.yaml", file_name(0, 1), SUMS])
def test_whatever_bit_of_a_checkpoint_flips_it_is_refused(whole_run: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(checkpoints(whole_run)[-1], tmp_path / "step"))
    whole = (folder / name).read_bytes()
    places = random.Random(1)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        (folder / name).write_bytes(damaged)
        with refused("bad-checkpoint", folder):
            check_sums(folder)
    (folder / name).write_bytes(whole)
    check_sums(folder)


def numbered(moments: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser with numbers for the names of parameters."""
    number = {name: at for at, name in enumerate(name for group in moments["param_groups"] for name in group["params"])}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in moments["param_groups"]]
    return {"state": {number[name]: value for name, value in moments["state"].items()}, "param_groups": groups}


def test_a_checkpoint_of_an_earlier_version_resumes_and_says_what_is_not_known(
    prepared: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000008")
    folder = checkpoints(tmp_path / "run")[-1]
    state = whole_tensors(read_checkpoint(folder))  # all in one file
    del state[DATA], state[FILES]
    state["optimizer_states"] = [numbered(moments) for moments in state["optimizer_states"]]
    torch.save(state, folder / "new")  # Values are mapped from the old file, which must not change.
    (folder / "new").replace(folder / FILE)
    for name in (SUMS, file_name(0, 1)):
        (folder / name).unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("  allow_changed: false\n", ""))
    assert train(load(run_arguments(prepared, tmp_path / "run", "resume=true"))) == 0
    out = capsys.readouterr().out
    assert f"{folder} has no {SUMS}" in out and "does not say which shards" in out
    assert_bitwise_equal(weights(tmp_path / "run", 8), weights(whole_run, 8))


def test_shards_that_changed_are_refused_by_name_or_said_to_be_others(
    prepared: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Path(shutil.copytree(prepared / "shards", tmp_path / "shards"))
    arguments = run_arguments(prepared, tmp_path / "run", f"data.paths=[{shards}]")
    assert train(load([*arguments, "trainer.checkpoint_every=5"])) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000008")
    index = shards / "train" / "index.safetensors"
    sides = Index.load(shards / "train").columns["side"]
    content = bytearray(index.read_bytes())
    at = content.index(sides.tobytes())
    content[at : at + len(sides)] = sides[::-1].tobytes()  # the sides of some calls are swapped
    index.write_bytes(content)
    manifest = json.loads((shards / "manifest.json").read_text())  # as if the folder had been made anew
    manifest["index"]["train"] = hashlib.sha256(content).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with refused("checksum", shards / "train", "step 5", "data.allow_changed=true"):
        train(load([*arguments, "resume=true"]))
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-0000005"]
    capsys.readouterr()
    assert train(load([*arguments, "resume=true", "data.allow_changed=true"])) == 0
    assert f"from step 5 on the run reads other data than before ({shards / 'train'})" in capsys.readouterr().out
    saved = read_checkpoint(checkpoints(tmp_path / "run")[-1])[DATA]
    assert saved[str(shards / "train")] == hashlib.sha256(index.read_bytes()).hexdigest()
    assert saved.keys() == {str(shards / split) for split in ("train", "heldout")}


def test_other_data_is_allowed_only_where_that_has_an_effect(prepared: Path, tmp_path: Path) -> None:
    with refused("bad-combination", "data.allow_changed=true"):
        load(run_arguments(prepared, tmp_path / "run", "data.allow_changed=true"))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_of_the_new_one(
    prepared: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    arguments = run_arguments(prepared, tmp_path / "run", f"trainer.keep_checkpoints={keep}")
    write = checkpoint_files.write_tensors
    before: list[list[str]] = []

    def fill(path: Path, parts: Any) -> str:
        before.append([folder.name for folder in checkpoints(tmp_path / "run")])
        if len(before) == 3:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, parts)

    with monkeypatch.context() as patched, pytest.raises(OSError) as caught:
        patched.setattr(checkpoint_files, "write_tensors", fill)
        train(load(arguments))
    assert caught.value.errno == errno.ENOSPC and "step-0000008.partial" in str(caught.value.filename)
    # Older ones go before the new one is written, but never the newest whole one.
    assert before == [[], ["step-0000003"], ["step-0000006"]]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000006"]
    (tmp_path / "run" / "checkpoints" / "step-0000007.partial").mkdir()  # as a killed run leaves it
    assert train(load([*arguments, "resume=true"])) == 0
    assert [folder.name for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())] == (
        ["step-0000006", "step-0000008"] if keep == 2 else ["step-0000008"]
    )
    assert_bitwise_equal(weights(tmp_path / "run", 8), weights(whole_run, 8))


def test_the_best_checkpoints_stay_beside_the_newest(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {2: 5.0, 4: 1.0, 6: 3.0, 8: math.nan, 10: 2.0, 12: 4.0}
    measured = held_out.stream_metrics

    def stream_metrics(sums: torch.Tensor, module: DuplexModule, prefix: str) -> dict[str, float]:
        return measured(sums, module, prefix) | {"heldout/loss": losses.get(module.global_step, 9.0)}

    monkeypatch.setattr(held_out, "stream_metrics", stream_metrics)
    more = (
        "trainer.checkpoint_every=1",
        "trainer.heldout_every=2",
        "trainer.keep_checkpoints=2",
        "trainer.keep_best=2",
    )
    arguments = run_arguments(prepared, tmp_path / "run", "steps=12", "resume=auto", *more)

    def stop(self: DuplexModule, *args: Any) -> None:
        if self.global_step == 8:
            signal.raise_signal(signal.SIGTERM)
        step(self, *args)

    with monkeypatch.context() as patched:
        step = DuplexModule.training_step
        patched.setattr(DuplexModule, "training_step", stop)
        assert train(load(arguments)) == 128 + signal.SIGTERM
    assert [folder.name[-2:] for folder in checkpoints(tmp_path / "run")] == ["04", "06", "08", "09"]
    assert train(load(arguments)) == 0
    kept = checkpoints(tmp_path / "run")
    assert [folder.name[-2:] for folder in kept] == ["04", "10", "11", "12"]
    assert json.loads((kept[0] / "heldout.json").read_text()) == {"step": 4, "loss": 1.0}
    assert not (kept[2] / "heldout.json").exists()  # It was not scored.
    for folder in kept:
        check_sums(folder)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ("trainer.keep_best=-1", "bad-value"),
        ("trainer.keep_best=1 trainer.keep_checkpoints=0", "bad-value"),
        ("trainer.keep_best=1 data.heldout_samples=0", "bad-combination"),
        ("trainer.keep_best=1 trainer.checkpoint_every=3 trainer.heldout_every=4", "bad-combination"),  # 12 of 8 steps
    ],
)
def test_best_checkpoints_need_scores(prepared: Path, tmp_path: Path, more: str, code: Code) -> None:
    with refused(code, "trainer.keep_best="):
        load(run_arguments(prepared, tmp_path / "run", *more.split()))


def test_bad_samples_are_skipped_counted_and_named(prepared: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(prepared / "shards", shards)
    index = Index.load(shards / "train")
    name = index.shard_names[-1]
    with open(shards / "train" / name, "r+b") as file:
        content = file.read()
        at = content.index(b"\x93NUMPY")  # the codes of the first dialogue in that tar
        file.seek(at)
        file.write(b"garbage")
    arguments = run_arguments(prepared, tmp_path / "run", f"data.paths=[{shards}]", "steps=4", "trainer.threads=1")
    assert train(load(arguments)) == 0
    bad = bad_samples(tmp_path / "run")
    assert len(bad) == 1
    assert next(iter(bad)).startswith("service-")


def test_samples_of_other_types_and_values_are_skipped_counted_and_named(prepared: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(prepared / "shards", shards)

    def no_text(data: bytes) -> bytes:
        return re.sub(rb'"words":\["\w+"', lambda found: b'"words":[' + b"1" * (len(found[0]) - 9), data)

    changes: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("text.json", no_text),
        ("text.json", lambda data: data.replace(b'"starts":[0.4', b'"starts":[NaN')),
        ("text.json", lambda data: b"[" * len(data)),
        ("text.json", lambda data: data.replace(b"You work for CitySan.", b"\\ud800...............")),
        ("voice.npy", lambda data: data[:-2] + b"\xe8\x03"),
    ]
    ids = sorted({row.id for row in ShardReader(shards / "train").rows if row.source == "service"})
    for id, (member, change) in zip(ids, changes, strict=False):
        before = stored(shards / "train", id)[1][f"left.{member}"]
        overwrite(shards / "train", id, f"left.{member}", change)
        assert before != stored(shards / "train", id)[1][f"left.{member}"]
    arguments = run_arguments(prepared, tmp_path / "run", f"data.paths=[{shards}]", "steps=4", "trainer.threads=1")
    assert train(load(arguments)) == 0
    bad = bad_samples(tmp_path / "run")
    assert sorted(bad) == ids[: len(changes)] and len(ids) > len(changes)
    assert "code 1000 is outside 0..63" in bad[ids[4]]


def test_an_index_that_was_changed_since_is_refused_before_training(prepared: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(prepared / "shards", shards)
    index = Index.load(shards / "train")
    index.columns["side"] = 1 - index.columns["side"]
    index.save(shards / "train" / NAME)
    with refused("checksum", shards / "train" / NAME, "`ppx-data check`"):
        train(load(run_arguments(prepared, tmp_path / "run", f"data.paths=[{shards}]")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "code", "name"),
    [
        (["data.paths=[nowhere]"], "not-found", "nowhere"),
        (["data.paths=[a,b,a]"], "bad-value", "data.paths names a "),
        (["data.mix={assistant: 1}"], "no-data", "assistant"),
        (["model.lm.card=32"], "bad-combination", "set model.lm.card=64"),
        (["model.lm.text_card=300"], "bad-combination", "set model.lm.text_card=320"),
        (["model.codec=nowhere.safetensors"], "not-found", "codec=nowhere.safetensors"),
        (["model.tokenizer=nowhere.model"], "not-found", "tokenizer=nowhere.model"),
        (["model.codec=small", "model.lm.card=512"], "bad-combination", "mimi_small.safetensors"),
        (["model.revision=main"], "bad-combination", "model.revision"),
        (["data.max_frames=40"], "no-data", "of 40 frames left after a prompt"),
        (["trainer.accelerator=gpu"], "no-device", "trainer.accelerator=gpu"),
    ],
)
def test_what_does_not_fit_is_refused(prepared: Path, tmp_path: Path, more: list[str], code: Code, name: str) -> None:
    with refused(code, name):
        train(load(run_arguments(prepared, tmp_path / "run", *more)))


def test_a_truncated_tar_is_found_before_training(prepared: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(prepared / "shards", shards)
    tar = next((shards / "train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:5000])
    with refused("bad-shards", tar.name, 5000):
        train(load(run_arguments(prepared, tmp_path / "run", f"data.paths=[{shards}]")))
    assert not (tmp_path / "run").exists()


def test_adapters_train_alone_and_bf16_computes(prepared: Path, tmp_path: Path) -> None:
    more = ("model.lora.rank=4", "trainer.precision=bf16-mixed", "steps=4", "data.heldout_samples=0")
    assert train(load(run_arguments(prepared, tmp_path / "run", *more))) == 0
    losses = [value for _, value in read_metrics(tmp_path / "run")["train/loss"]]
    assert losses[-1] < losses[0]
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-0000004")
    optimised = sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"])
    assert optimised == sum("lora" in name for name in state["state_dict"])


@pytest.mark.slow
def test_tensorboard_and_offline_wandb_are_written_on_request(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    more = ("steps=4", "data.heldout_samples=0", "logging.tensorboard=true", "logging.wandb=offline")
    code, output = finish(start(run_arguments(prepared, tmp_path / "run", *more)))
    assert code == 0, output
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("resume", ["true", "false"])
def test_a_run_dir_that_is_a_file_is_one_line(prepared: Path, tmp_path: Path, resume: str) -> None:
    (tmp_path / "file").write_text("mine")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused("cannot-write", tmp_path / "file"):
            train(load(run_arguments(prepared, run_dir, f"resume={resume}")))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checkpoint_of_another_shape_is_named_on_resume(prepared: Path, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    for saved in (tmp_path / "run").glob("checkpoints/*/config.yaml"):
        saved.write_text(saved.read_text().replace("\n    dim: 32", "\n    dim: 64"))
        (saved.parent / SUMS).unlink()
    other = run_arguments(prepared, tmp_path / "run", "resume=true", "model.lm.dim=64", "trainer.devices=1")
    with refused("bad-checkpoint", "step-0000008"):
        train(load(other))


def test_start_weights_with_a_nan_are_refused_before_training(prepared: Path, tmp_path: Path) -> None:
    from model.weights.checkpoint import save_native

    run = load(run_arguments(prepared, tmp_path / "run"))
    lm = build_lm(run)
    with torch.no_grad():
        lm.text_head.weight[3, 4] = float("nan")
    save_native(tmp_path / "weights", lm)
    with refused("bad-weights", "text_linear.weight"):
        train(load(run_arguments(prepared, tmp_path / "run", f"model.init={tmp_path / 'weights'}")))
    assert not (tmp_path / "run" / "checkpoints").exists()
