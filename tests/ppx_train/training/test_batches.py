"""Micro-batches of a bounded number of frames: within the budget, with the same samples on any number of ranks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.training.checkpoint import check_same_run, checkpoints
from ppx_train.training.curves import read_metrics
from ppx_train.training.data import SamplePool, StepLoader, heldout_batches
from ppx_train.training.run import train
from ppx_train.training.sequences import SequenceBuilder
from tests.ppx_train.fixtures import run_arguments
from tests.ppx_train.ranks import train_on_ranks
from tests.refusals import refused

BUDGET = ("data.micro_batch=null", "data.bucket_steps=1", "data.max_frames=150")


def pool_of(prepared: Path, *more: str, split: str = "train") -> tuple[Run, SamplePool]:
    run = load(run_arguments(prepared, prepared / "unused", *BUDGET, *more))
    codec, tokenizer = prepared / "codec.safetensors", prepared / "tokenizer.model"
    builder = SequenceBuilder(run.model.lm, run.data, run.loss, codec, tokenizer)
    return run, SamplePool(run.data, split, builder, run.seed)


def loader_of(prepared: Path, *more: str) -> tuple[Run, StepLoader]:
    run, pool = pool_of(prepared, *more)
    return run, StepLoader(pool, run.data, run.seed)


@pytest.mark.parametrize("window", [1, 4])
def test_a_step_has_the_same_samples_on_any_number_of_ranks_and_as_many_passes_on_each(
    prepared: Path, window: int
) -> None:
    run, loader = loader_of(prepared, "data.micro_frames=330", f"data.bucket_steps={window}")
    seen: Counter[str] = Counter()
    for n in range(8):
        of_one = loader.step(n, 0, 1)
        ids = Counter(name for micro in of_one for name in micro.ids)
        assert ids.total() == run.data.batch
        for ranks in (2, 4):
            by_rank = [loader.step(n, rank, ranks) for rank in range(ranks)]
            assert len({len(micros) for micros in by_rank}) == 1
            assert Counter(name for micros in by_rank for micro in micros for name in micro.ids) == ids
            assert all(micro.frames <= 330 for micros in by_rank for micro in micros)
        assert len(of_one) < run.data.batch and all(micro.frames <= 330 for micro in of_one)
        seen += ids
    # 32 samples, of service and Fisher 2 : 1, whatever the window.
    assert seen.total() == 32 and loader.plan.mixture.counts(32).total() == 32


def test_a_step_does_not_depend_on_the_budget(prepared: Path) -> None:
    loaders = [loader_of(prepared, f"data.micro_frames={budget}")[1] for budget in (150, 330, 1000)]
    for n in range(4):
        steps = [
            {name: micro.lengths[k] for micro in loader.step(n, 0, 1) for k, name in enumerate(micro.ids)}
            for loader in loaders
        ]
        assert steps[0] == steps[1] == steps[2]


def test_a_sequence_that_would_exceed_its_room_is_cut_and_the_budget_holds(prepared: Path) -> None:
    """So it goes with a role of more pieces than the index lets expect; here the rooms are made too small."""
    (_, plain), (_, tight) = loader_of(prepared, "data.micro_frames=330"), loader_of(prepared, "data.micro_frames=330")
    tight.pool.rooms = {source: np.minimum(rooms, 120) for source, rooms in tight.pool.rooms.items()}
    for n in range(3):
        lengths = {name: micro.lengths[k] for micro in plain.step(n, 0, 1) for k, name in enumerate(micro.ids)}
        for micro, places in zip(tight.step(n, 0, 1), tight.groups(n, 1), strict=True):
            rooms = [int(tight.pool.rooms[place.source][place.row]) for place in places]
            assert micro.lengths == tuple(min(lengths[name], room) for name, room in zip(micro.ids, rooms, strict=True))
            assert micro.frames <= sum(rooms) <= 330
    assert not tight.pool.bad


def test_held_out_samples_are_packed_within_the_budget(prepared: Path) -> None:
    run, pool = pool_of(prepared, "data.micro_frames=200", split="heldout")
    batches = heldout_batches(pool, run.data)
    assert all(micro.frames <= 200 for micro in batches)
    assert sum(len(micro.ids) for micro in batches) == min(3, sum(pool.sizes().values()))
    assert max(len(micro.ids) for micro in batches) < 3


def curve(run_dir: Path) -> torch.Tensor:
    metrics = read_metrics(run_dir)
    names = ("train/loss", "gradient_norm", "heldout/loss")
    return torch.tensor([value for name in names for _, value in metrics[name]], dtype=torch.float64)


def test_losses_and_gradients_do_not_depend_on_the_budget(prepared: Path, tmp_path: Path) -> None:
    """The largest budget holds all four sequences of a step together, the smallest each alone."""
    curves = []
    for budget in (150, 330, 1000):
        more = (*BUDGET, f"data.micro_frames={budget}", "steps=4", "logging.every=1", "trainer.precision=32-true")
        assert train(load(run_arguments(prepared, tmp_path / f"{budget}", *more))) == 0
        curves.append(curve(tmp_path / f"{budget}"))
    for other in curves[1:]:
        torch.testing.assert_close(other, curves[0], rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_have_the_losses_of_one(prepared: Path, tmp_path: Path, strategy: str) -> None:
    more = (*BUDGET, "data.micro_frames=330", "steps=4", "logging.every=1", "trainer.precision=32-true")
    assert train(load(run_arguments(prepared, tmp_path / "one", *more))) == 0
    settings = (*more, f"trainer.strategy={strategy}", "trainer.devices=2")
    train_on_ranks(2, run_arguments(prepared, tmp_path / "two", *settings))
    torch.testing.assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=2e-5, atol=0)


def test_a_run_may_go_on_with_another_budget_but_not_without_one(prepared: Path, tmp_path: Path) -> None:
    more = (*BUDGET, "data.micro_frames=330", "steps=2", "data.heldout_samples=0", "optim.warmup_steps=1")
    arguments = run_arguments(prepared, tmp_path / "run", *more)
    assert train(load(arguments)) == 0
    (saved,) = checkpoints(tmp_path / "run")
    assert check_same_run(load([*arguments, "data.micro_frames=1000"]), saved) == [
        "data.micro_frames=1000 instead of 330"
    ]
    with refused("other-settings", "data.micro_batch=1"):
        check_same_run(load([*arguments, "data.micro_frames=null", "data.micro_batch=1"]), saved)
