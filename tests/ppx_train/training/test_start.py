"""A sharded model starts with the values of a whole one, and no rank ever holds all of them."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from model.weights.checkpoint import save_native
from ppx_train.config.load import load
from ppx_train.training.build import base_lm, fingerprint
from ppx_train.training.start import base_values, sharded_lm
from tests.ppx_train.fixtures import build_lm, run_arguments
from tests.refusals import refused


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start weights of another seed in the public layout, in bf16."""
    folder = tmp_path_factory.mktemp("start")
    save_native(folder / "weights", build_lm(load(run_arguments(folder, folder, "seed=5"))), dtype=torch.bfloat16)
    return folder / "weights"


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("more", [[], ["model.lora.rank=3", "trainer.precision=bf16-mixed"], ["model.lora.rank=3"]])
def test_every_value_is_that_of_a_whole_model(
    tmp_path: Path, one_rank: DeviceMesh, weights: Path, more: list[str], from_file: bool
) -> None:
    init = [f"model.init={weights}"] if from_file else []
    run = load(run_arguments(tmp_path, tmp_path / "run", "trainer.strategy=fsdp2", *more, *init))
    lm, base_sha256 = sharded_lm(run, one_rank, torch.device("cpu"))
    whole = dict(build_lm(run).named_parameters())
    assert [name for name, _ in lm.named_parameters()] == list(whole)
    for name, value in lm.named_parameters():
        assert isinstance(value, DTensor) and value.requires_grad == whole[name].requires_grad
        assert value.dtype == whole[name].dtype and torch.equal(value.to_local(), whole[name]), name
    assert base_sha256 == (fingerprint(base_lm(run)) if run.model.lora.rank else None)


@pytest.mark.parametrize("from_file", [False, True])
def test_one_whole_tensor_lives_at_a_time(tmp_path: Path, weights: Path, from_file: bool) -> None:
    init = [f"model.init={weights}"] if from_file else []
    run = load(run_arguments(tmp_path, tmp_path / "run", *init))
    seen: list[weakref.ref[torch.UntypedStorage]] = []
    names = []
    for name, value in base_values(run):
        names.append(name)
        seen.append(weakref.ref(value.untyped_storage()))
        assert sum(storage() is not None for storage in seen) <= 1
        del value
    assert names == list(base_lm(run).state_dict())


def test_weights_that_do_not_fit_are_named_before_a_value_is_read(tmp_path: Path, weights: Path) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run", f"model.init={weights}", "model.lm.dim=64"))
    with refused("bad-weights", weights, "misshapen"):
        next(base_values(run))
