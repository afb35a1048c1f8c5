"""The moving average of the weights: its values, what it leaves alone, resuming, sharding and export."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppx_train.config.load import load
from ppx_train.export.export_settings import ExportSettings
from ppx_train.export.folder import export_checkpoint
from ppx_train.inference.loading import load_release
from ppx_train.training.checkpoint import AVERAGE, read_checkpoint
from ppx_train.training.curves import read_metrics
from ppx_train.training.run import train
from ppx_train.training.saved_tensors import whole_tensors
from tests.ppx_train.fixtures import build_lm, run_arguments
from tests.ppx_train.ranks import train_on_ranks
from tests.refusals import refused

DECAY = 0.3
EACH = ("steps=4", "logging.every=1", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=0",
        "optim.warmup_steps=1", "trainer.precision=32-true", "trainer.heldout_every=2")  # fmt: skip
LORA = ("model.lora.rank=4", "optim.lr.temporal=0.01", "optim.lr.depth=0.01")
WITH = f"optim.ema_decay={DECAY}"


def saved(run_dir: Path, step: int) -> dict[str, Any]:
    return whole_tensors(read_checkpoint(run_dir / "checkpoints" / f"step-{step:07d}"))


@pytest.fixture(scope="module", params=[(), LORA], ids=["full", "adapters"])
def averaged(request: pytest.FixtureRequest, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run that has ended."""
    arguments = run_arguments(prepared, tmp_path_factory.mktemp("ema") / "run", *EACH, WITH, *request.param)
    assert train(load(arguments)) == 0
    return arguments


def test_the_average_follows_the_weights_of_every_step(averaged: list[str]) -> None:
    run = load(averaged)
    expected: dict[str, Tensor] = {
        f"lm.{name}": value.detach().double() for name, value in build_lm(run).named_parameters() if value.requires_grad
    }
    for step in range(1, 5):
        state = saved(Path(run.run_dir), step)
        decay = min(DECAY, (1 + step) / (10 + step))
        assert state[AVERAGE].keys() == expected.keys()
        for name, value in state[AVERAGE].items():
            weight = state["state_dict"][name].double()
            expected[name] = decay * expected[name] + (1 - decay) * weight
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, state["state_dict"][name]) for name, value in state[AVERAGE].items())


def test_training_and_its_scores_are_those_without_an_average(
    prepared: Path, averaged: list[str], tmp_path: Path
) -> None:
    run = load(averaged)
    plain = [word for word in averaged if not word.startswith(("optim.ema", "run_dir="))]
    assert train(load([*plain, f"run_dir={tmp_path / 'run'}"])) == 0
    ours, theirs = read_metrics(Path(run.run_dir)), read_metrics(tmp_path / "run")
    for name in ("train/loss", "gradient_norm", "heldout/loss"):
        assert ours[name] == theirs[name]
    assert "heldout_ema/loss" not in theirs
    assert [step for step, _ in ours["heldout_ema/loss"]] == [2, 4]
    assert ours["heldout_ema/loss"] != ours["heldout/loss"][1:]


def test_a_resumed_run_ends_with_the_same_average(averaged: list[str], tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(load(averaged).run_dir, tmp_path / "run"))
    for step in (3, 4):
        shutil.rmtree(run_dir / "checkpoints" / f"step-{step:07d}")
    words = [word for word in averaged if not word.startswith("run_dir=")]
    assert train(load([*words, f"run_dir={run_dir}", "resume=auto"])) == 0
    ours, theirs = (saved(Path(folder), 4) for folder in (run_dir, load(averaged).run_dir))
    for key in (AVERAGE, "state_dict"):
        assert all(torch.equal(value, theirs[key][name]) for name, value in ours[key].items())
    assert read_metrics(run_dir)["heldout_ema/loss"] == read_metrics(Path(load(averaged).run_dir))["heldout_ema/loss"]


def test_the_average_is_exported_on_request(prepared: Path, tmp_path: Path) -> None:
    words = run_arguments(prepared, tmp_path / "run", *EACH, WITH)
    assert train(load(words)) == 0
    settings = ExportSettings(layout="nvidia", dtype="fp32", voices="none", ema=True)
    out = export_checkpoint(tmp_path / "run", tmp_path / "out", settings)
    state = saved(tmp_path / "run", 4)
    for name, value in load_release(out).lm.state_dict().items():
        assert torch.equal(value, state[AVERAGE][f"lm.{name}"])
    loss = read_metrics(tmp_path / "run")["heldout_ema/text_loss"][-1][1]
    assert f"{loss:.4f}" in (out / "README.md").read_text("utf-8")


def test_an_average_that_is_not_there_is_one_line(prepared: Path, tmp_path: Path) -> None:
    assert train(load(run_arguments(prepared, tmp_path / "run", *EACH, "data.heldout_samples=0"))) == 0
    with refused("bad-combination", "--ema", "optim.ema_decay"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", ExportSettings(voices="none", ema=True))


@pytest.mark.parametrize(
    ("more", "code"),
    [("1", "bad-value"), ("0", "bad-value"), (".nan", "bad-value"), ("0.9 trainer.strategy=zero2", "bad-combination")],
)
def test_an_average_that_cannot_be_is_refused(tmp_path: Path, more: str, code: Any) -> None:
    with refused(code, "optim.ema_decay="):
        load(run_arguments(tmp_path, tmp_path / "run", *f"optim.ema_decay={more}".split()))


@pytest.mark.slow
def test_the_average_of_shards_is_that_of_whole_weights(prepared: Path, tmp_path: Path) -> None:
    for strategy, ranks in (("ddp", 1), ("fsdp2", 2)):
        words = run_arguments(prepared, tmp_path / strategy, *EACH, WITH, f"trainer.strategy={strategy}")
        train_on_ranks(ranks, [*(word for word in words if "devices" not in word), f"trainer.devices={ranks}"])
    ours, theirs = (saved(tmp_path / strategy, 4)[AVERAGE] for strategy in ("fsdp2", "ddp"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    for name in ("train/loss", "heldout/loss", "heldout_ema/loss"):
        one, other = (read_metrics(tmp_path / strategy)[name] for strategy in ("fsdp2", "ddp"))
        assert [value for _, value in one] == pytest.approx([value for _, value in other], rel=1e-5)
