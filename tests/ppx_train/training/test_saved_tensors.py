"""Tensors of a checkpoint in several files, written in the background: any part is read back, whatever goes wrong."""

import errno
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppx_train.training import checkpoint_files
from ppx_train.training.checkpoint import FILE, FILES, read_checkpoint
from ppx_train.training.checkpoint_files import CheckpointFiles
from ppx_train.training.saved_tensors import (
    FIRST,
    SavedTensor,
    file_name,
    whole_tensors,
    with_values,
    write_tensors,
)
from tests.ppx_train.fixtures import cut, spread
from tests.refusals import refused


def state() -> dict[str, Any]:
    """The state of a small run: tensors of several types among lists, names and numbers."""
    torch.manual_seed(1)
    weights = {"lm.a": torch.randn(7, 5), "lm.b": torch.randn(3), "lm.c": torch.randn(2, 4, 6).bfloat16()}
    moments = {name: {"step": torch.tensor(3.0), "exp_avg": value.float() * 2} for name, value in weights.items()}
    groups = [{"params": [*weights], "lr": 0.5}]
    others = {"empty": torch.zeros(0, 3), "seen": [torch.arange(4), {"is": torch.ones(2, dtype=torch.bool)}]}
    optimizer = [{"state": moments, "param_groups": groups}]
    return {"global_step": 3, "state_dict": weights, "optimizer_states": optimizer, **others}


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert {*ours} - {FILES} == theirs.keys()
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


def save(folder: Path, background: bool = False) -> Path:
    folder.mkdir()
    files = CheckpointFiles(background)
    files.save_checkpoint(state(), folder / FILE)
    files.wait()
    assert files.error is None
    return folder


@pytest.mark.parametrize(
    ("shape", "axis", "ranks"), [((7, 5), 0, 3), ((4, 9), 1, 3), ((2, 3, 8), 2, 4), ((2, 3), 0, 5)]
)
def test_any_box_of_a_tensor_is_read_from_the_parts_of_many_ranks(
    tmp_path: Path, shape: tuple[int, ...], axis: int, ranks: int
) -> None:
    whole = torch.randn(shape)
    for number, part in enumerate(cut(whole, axis, ranks)):
        write_tensors(tmp_path / file_name(number, ranks), {"a": part})
    skeleton = {"a": torch.empty(shape, device="meta")}
    saved = with_values(skeleton, tmp_path, ranks)["a"]
    assert isinstance(saved, SavedTensor) and saved.shape == whole.shape and saved.dtype == whole.dtype
    assert torch.equal(saved.whole(), whole)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ends = [sorted(torch.randint(0, size + 1, (2,), generator=generator).tolist()) for size in shape]
        box = tuple(slice(*pair) for pair in ends)
        assert torch.equal(saved[box], whole[box])


def test_a_state_comes_back_with_all_that_lies_around_its_tensors(tmp_path: Path) -> None:
    found = whole_tensors(read_checkpoint(save(tmp_path / "one")))
    assert_same(found, state())
    # The library that others read such files with sees the same tensors.
    tensors = load_file(tmp_path / "one" / file_name(0, 1))
    assert torch.equal(tensors["state_dict/lm.c"], state()["state_dict"]["lm.c"])


def test_files_are_the_same_in_the_background(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one"), save(tmp_path / "other", background=True)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) == [FILE, file_name(0, 1)]
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_what_training_changes_meanwhile_does_not_reach_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(path: Path, parts: Any) -> str:
        assert go_on.wait(60)
        return write_tensors(path, parts)

    monkeypatch.setattr(checkpoint_files, "write_tensors", slow)
    trained, files = state(), CheckpointFiles(background=True)
    files.save_checkpoint(trained, tmp_path / FILE)
    assert files.is_writing
    for moments in trained["optimizer_states"][0]["state"].values():
        moments["exp_avg"].zero_()
        moments["step"].add_(1)
    for value in trained["state_dict"].values():
        value.fill_(9)
    go_on.set()
    files.wait()
    assert files.error is None and not files.is_writing
    assert_same(whole_tensors(read_checkpoint(tmp_path)), state())
    # The memory of the copy is used again, and holds the new values then.
    (tmp_path / "next").mkdir()
    files.save_checkpoint(trained, tmp_path / "next" / FILE)
    files.wait()
    assert_same(whole_tensors(read_checkpoint(tmp_path / "next")), trained)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_kept_for_training_and_names_the_file(tmp_path: Path, background: bool) -> None:
    (tmp_path / FILE).symlink_to("/dev/full")
    files = CheckpointFiles(background)
    files.save_checkpoint(state(), tmp_path / FILE)
    files.wait()
    assert isinstance(files.error, OSError)
    assert (files.error.errno, files.error.filename) == (errno.ENOSPC, str(tmp_path / FILE))


def two_files(folder: Path) -> Path:
    """A checkpoint of two ranks."""
    folder.mkdir()
    torch.save(state(), folder / FILE)
    spread(folder, 2)
    return folder


def test_files_of_two_ranks_are_one_state(tmp_path: Path) -> None:
    assert_same(whole_tensors(read_checkpoint(two_files(tmp_path / "step"))), state())


def test_a_file_that_is_missing_damaged_or_another_one_is_named(tmp_path: Path) -> None:
    folder = two_files(tmp_path / "step")
    second, first = folder / file_name(1, 2), folder / file_name(0, 2)
    content = second.read_bytes()
    second.unlink()
    with refused("bad-checkpoint", second, "is missing"):
        read_checkpoint(folder)
    for damaged in (content[:-5], content[:40], b"", b"\xff" * 100):
        second.write_bytes(damaged)
        with refused("bad-checkpoint", second, "is damaged"):
            read_checkpoint(folder)
    shutil.copyfile(first, second)
    with refused("bad-checkpoint", folder, "another checkpoint"):
        read_checkpoint(folder)
    second.write_bytes(content)
    tensors = load_file(second)
    shape = tensors["state_dict/lm.a"].shape
    for place, values in (([6, 0], shape), ([-1, 0], shape), ([0], shape), ([4, 0], (3, 4)), (["x", 0], shape)):
        first_of = {name: [0] * value.dim() for name, value in tensors.items()} | {"state_dict/lm.a": place}
        hostile = {**tensors, "state_dict/lm.a": torch.zeros(values)}
        save_file(hostile, second, metadata={FIRST: json.dumps(first_of)})
        with refused("bad-checkpoint", folder):
            read_checkpoint(folder)
