"""Strategies: what is refused, what `auto` picks, equal losses on any number of ranks, and one checkpoint for all."""

import errno
import os
import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from model.duplex import DuplexLM
from model.errors import Code
from ppx_train.config.load import load
from ppx_train.training import checkpoint_files, strategies
from ppx_train.training.checkpoint import check_sums, checkpoints, read_checkpoint
from ppx_train.training.curves import read_metrics
from ppx_train.training.module import DuplexModule
from ppx_train.training.optim import moments_by_name
from ppx_train.training.ranks import rank
from ppx_train.training.run import train
from ppx_train.training.saved_tensors import file_name, local_part, read_parts, whole_tensors, write_tensors
from ppx_train.training.strategies import checked_strategy, copy_bytes
from tests.ppx_train.fixtures import run_arguments
from tests.ppx_train.ranks import train_on_ranks
from tests.refusals import refused

SHORT = ("steps=4", "logging.every=1", "trainer.checkpoint_every=2", "trainer.precision=32-true", "trainer.threads=1")
LORA = ("model.lora.rank=4", "optim=lora", "optim.warmup_steps=2", "optim.lr.temporal=0.01", "optim.lr.depth=0.01")


@pytest.mark.parametrize(
    ("more", "code", "names"),
    [
        ("trainer.offload=true", "bad-combination", ["trainer.offload=true", "trainer.strategy=ddp", "zero2"]),
        ("trainer.shard_size=2", "bad-combination", ["trainer.shard_size=2", "trainer.strategy=ddp", "hybrid"]),
        ("trainer.strategy=hybrid trainer.devices=4", "bad-combination", ["4 processes", "trainer.shard_size=4"]),
        ("trainer.strategy=hybrid trainer.devices=4 trainer.shard_size=3", "bad-combination", ["shard_size=3"]),
        ("trainer.strategy=hybrid trainer.devices=4 trainer.shard_size=1", "bad-combination", ["shard_size=1"]),
        ("trainer.strategy=hybrid trainer.devices=2 trainer.shard_size=0", "bad-combination", ["shard_size=0"]),
        ("trainer.strategy=zero3 model.compile=true", "bad-combination", ["model.compile=true", "zero3"]),
        ("trainer.strategy=zero2 model.lora.rank=2 model.lora.base=nf4", "bad-combination", ["model.lora.base=nf4"]),
    ],
)
def test_what_cannot_take_effect_or_work_is_refused(tmp_path: Path, more: str, code: Code, names: list[str]) -> None:
    with refused(code, *names):
        load(run_arguments(tmp_path, tmp_path / "run", *more.split()))


def test_hybrid_shards_over_one_node_by_default(tmp_path: Path) -> None:
    words = ("trainer.strategy=hybrid", "trainer.devices=2", "trainer.num_nodes=2")
    run = load(run_arguments(tmp_path, tmp_path / "run", *words))
    made: Any = strategies.make_strategy(run)
    assert (made.copies, made._data_parallel_size, made._tensor_parallel_size) == (2, 2, 2)


def test_processes_that_were_started_must_be_those_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run", "trainer.devices=2"))
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert checked_strategy(run) == run  # salloc alone has started nothing
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with refused("bad-combination", "srun started 8", "is 2"):
        checked_strategy(run)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with refused("bad-combination", "started 4", "is 2"):
        checked_strategy(run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_zero_without_a_gpu_is_one_line_before_any_work(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    with refused("no-device", "zero2"):
        train(load(run_arguments(prepared, tmp_path / "run", "trainer.strategy=zero2")))
    assert not (tmp_path / "run").exists()


def test_auto_shards_where_a_whole_copy_does_not_fit_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run", "trainer.strategy=auto", "trainer.devices=2"))
    needed = copy_bytes(run)
    assert needed > 16 * DuplexLM(run.model.lm).num_parameters()  # fp32 weight, gradient and two moments
    for memory, expected in ((needed + 1, "ddp"), (needed - 1, "fsdp2")):
        monkeypatch.setattr(strategies, "memory_bytes", lambda _, memory=memory: memory)
        assert checked_strategy(run).trainer.strategy == expected
        (line,) = capsys.readouterr().out.splitlines()
        assert f"auto: {expected}, because ddp takes" in line
    alone = replace(run, trainer=replace(run.trainer, devices=1))
    assert checked_strategy(alone).trainer.strategy == "ddp" and "one process" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(7, 4), (8, 4), (2, 5), (16, 3)])
def test_the_parts_of_a_tensor_are_those_that_torch_cuts(shape: tuple[int, int]) -> None:
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    pieces = [*whole.chunk(4), *[whole[:0]] * 4]  # Behind the end a rank holds nothing.
    for number in range(4):
        mesh = SimpleNamespace(size=lambda dim: (2, 4)[dim], get_local_rank=lambda dim, n=number: (1, n)[dim])
        parameter: Any = SimpleNamespace(shape=whole.shape, placements=(Replicate(), Shard(0)), device_mesh=mesh)
        assert torch.equal(whole[local_part(parameter)], pieces[number])


def test_an_optimisers_state_is_named_whatever_its_numbers_were() -> None:
    order = ["b", "c", "a"]
    by_group = {"state": {0: "of b", 1: "of c", 2: "of a"}, "param_groups": [{"params": [0, 1]}, {"params": [2]}]}
    by_model = {"state": {1: "of b", 2: "of c", 0: "of a"}, "param_groups": [{"params": [1, 2]}, {"params": [0]}]}
    named = moments_by_name(by_group, order)
    assert named == moments_by_name(by_model, order) == moments_by_name(named, order)
    assert named["state"] == {name: f"of {name}" for name in order}
    for other in (["b", "c"], ["c", "b", "a"]):
        with refused("bad-checkpoint", "optimiser state"):
            moments_by_name(named, other)


def words(folder: Path, run_dir: Path, strategy: str, ranks: int, *more: str) -> list[str]:
    """Arguments for so many ranks on one node."""
    return run_arguments(folder, run_dir, *SHORT, f"trainer.strategy={strategy}", *more, f"trainer.devices={ranks}")


def figures(run_dir: Path) -> list[tuple[int, float]]:
    metrics = read_metrics(run_dir)
    return [point for name in ("train/loss", "gradient_norm", "heldout/loss") for point in metrics[name]]


def assert_same_figures(run_dir: Path, other: Path) -> None:
    ours, theirs = figures(run_dir), figures(other)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-5)


@pytest.fixture(scope="module")
def single(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, four micro-batches a step."""
    run_dir = tmp_path_factory.mktemp("single") / "run"
    assert train(load(words(prepared, run_dir, "ddp", 1))) == 0
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "more"),
    [
        ("hybrid", 4, ["trainer.shard_size=2"]),
        ("zero2", 2, []),
        ("zero2", 2, ["trainer.offload=true"]),
        ("zero3", 2, []),
    ],
)
def test_losses_and_norms_are_those_of_one_process(
    prepared: Path, single: Path, tmp_path: Path, strategy: str, ranks: int, more: Sequence[str]
) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    train_on_ranks(ranks, words(prepared, tmp_path / "run", strategy, ranks, *more))
    assert_same_figures(tmp_path / "run", single)


@pytest.mark.slow
def test_adapters_train_alike_sharded_and_not(prepared: Path, tmp_path: Path) -> None:
    for strategy, ranks in (("ddp", 1), ("fsdp2", 2)):
        train_on_ranks(ranks, words(prepared, tmp_path / strategy, strategy, ranks, *LORA))
    assert_same_figures(tmp_path / "fsdp2", tmp_path / "ddp")
    saved = read_checkpoint(tmp_path / "fsdp2" / "checkpoints" / "step-0000004")
    assert all("lora" in name for name in saved["state_dict"])
    assert saved["optimizer_states"][0]["state"].keys() == saved["state_dict"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("ddp", 1), ("fsdp2", 2)),
        (("fsdp2", 2), ("ddp", 1)),
        (("fsdp2", 2), ("fsdp2", 4)),
        (("fsdp2", 2), ("zero3", 2)),
        (("zero3", 2), ("zero2", 2)),
        (("zero2", 2), ("ddp", 1)),
    ],
)
def test_a_run_goes_on_under_another_strategy_and_number_of_ranks(
    prepared: Path, single: Path, tmp_path: Path, first: tuple[str, int], then: tuple[str, int]
) -> None:
    if any(strategy.startswith("zero") for strategy, _ in (first, then)):
        pytest.importorskip("deepspeed")
    run_dir = tmp_path / "run"
    train_on_ranks(first[1], words(prepared, run_dir, *first))
    shutil.rmtree(run_dir / "checkpoints" / "step-0000004")
    train_on_ranks(then[1], words(prepared, run_dir, *then, "resume=true"), log=tmp_path / "log")
    differs = f"strategy={then[0]} instead of {first[0]}" if then[0] != first[0] else f"devices={then[1]} instead of"
    told = next(line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("resume with"))
    assert f"trainer.{differs}" in told
    assert_same_figures(run_dir, single)
    ours, theirs = (
        whole_tensors(read_checkpoint(folder / "checkpoints" / "step-0000004")) for folder in (run_dir, single)
    )
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    for name, moments in theirs["optimizer_states"][0]["state"].items():
        assert ours["optimizer_states"][0]["state"][name]["step"] == moments["step"] == 4


@pytest.mark.slow
def test_every_rank_saves_its_part_and_the_same_ranks_go_on_bitwise(prepared: Path, tmp_path: Path) -> None:
    run = load(words(prepared, tmp_path / "run", "fsdp2", 2))
    for name, more in (("whole", ()), ("sync", ("trainer.async_save=false",))):
        train_on_ranks(2, words(prepared, tmp_path / name, "fsdp2", 2, *more))
    folder = tmp_path / "whole" / "checkpoints" / "step-0000004"
    for number in range(2):
        ours, theirs = (
            tmp_path / name / "checkpoints" / folder.name / file_name(number, 2) for name in ("whole", "sync")
        )
        assert ours.read_bytes() == theirs.read_bytes()
        values = sum(part.values.numel() for name, part in read_parts(ours) if name.startswith("state_dict"))
        assert abs(values / DuplexLM(run.model.lm, device="meta").num_parameters() - 0.5) < 0.05
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / folder.name)
    train_on_ranks(2, words(prepared, tmp_path / "run", "fsdp2", 2, "resume=true"))
    for number in range(2):
        ours = tmp_path / "run" / "checkpoints" / folder.name / file_name(number, 2)
        assert ours.read_bytes() == (folder / ours.name).read_bytes()


@pytest.mark.slow
def test_a_signal_that_one_rank_catches_saves_the_part_of_each(
    prepared: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DuplexModule.training_step

    def training_step(self: DuplexModule, *args: Any) -> None:
        if self.global_step == 2 and rank() == 1:
            signal.raise_signal(signal.SIGUSR1)
        step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(DuplexModule, "training_step", training_step)
        train_on_ranks(2, words(prepared, tmp_path / "run", "fsdp2", 2))
    saved = checkpoints(tmp_path / "run")
    assert [folder.name for folder in saved] == ["step-0000002", "step-0000003", "step-0000004"]
    for folder in saved:
        check_sums(folder)
        assert int(read_checkpoint(folder)["global_step"]) == int(folder.name[5:])
    assert_same_figures(tmp_path / "run", single)


@pytest.mark.slow
def test_a_rank_that_cannot_write_ends_all_and_the_checkpoint_before_stays(
    prepared: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path, parts: Any) -> str:
        if rank() == 1 and "step-0000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_tensors(path, parts)

    with monkeypatch.context() as patched, pytest.raises(AssertionError) as caught:
        patched.setattr(checkpoint_files, "write_tensors", fill)  # The ranks are forked.
        train_on_ranks(2, words(prepared, tmp_path / "run", "fsdp2", 2))
    assert re.search(r"OSError: .*No space left on device: '\S+step-0000004.partial/tensors-00001", str(caught.value))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002"]
    train_on_ranks(2, words(prepared, tmp_path / "run", "fsdp2", 2, "resume=true"))
    assert_same_figures(tmp_path / "run", single)
