"""Runs that train adapters: what checkpoints hold, exact resume, quantized bases, and the way back to full weights."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from model.errors import Code
from model.weights.checkpoint import from_pretrained, save_native
from ppx_train.config.load import load
from ppx_train.export.export_settings import ExportSettings
from ppx_train.export.folder import export_checkpoint
from ppx_train.training.build import base_lm
from ppx_train.training.checkpoint import SUMS, read_checkpoint
from ppx_train.training.curves import read_metrics
from ppx_train.training.run import train
from ppx_train.training.saved_tensors import whole_tensors
from tests.ppx_train.fixtures import build_lm, run_arguments
from tests.refusals import refused

LORA = ("model.lora.rank=4", "optim=lora", "optim.warmup_steps=2", "data.heldout_samples=0", "optim.lr.temporal=0.01",
        "optim.lr.depth=0.01")  # fmt: skip


def state(run_dir: Path, step: int) -> dict:
    return whole_tensors(read_checkpoint(run_dir / "checkpoints" / f"step-{step:07d}"))


@pytest.mark.parametrize("base", ["full", "int8", "nf4"])
def test_adapters_learn_and_a_resumed_run_ends_bitwise_like_an_unbroken_one(
    prepared: Path, tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if base != "full":
        pytest.importorskip("bitsandbytes")
    arguments = run_arguments(
        prepared, tmp_path / "run", *LORA, f"model.lora.base={base}", "trainer.precision=bf16-mixed"
    )
    assert train(load(arguments)) == 0
    assert f"rank 4, scaling 2, on 105 linear layers; frozen base: {base}" in capsys.readouterr().out
    losses = [value for _, value in read_metrics(tmp_path / "run")["train/loss"]]
    assert losses[-1] < 0.98 * losses[0]
    whole = state(tmp_path / "run", 8)
    for step in (6, 8):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:07d}")
    assert train(load([*arguments, "resume=true"])) == 0
    again = state(tmp_path / "run", 8)
    assert whole["state_dict"].keys() == again["state_dict"].keys()
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())


@pytest.fixture(scope="module")
def lora_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run from a weights file, in fp32, on an nf4 base."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("lora")
    arguments = run_arguments(prepared, folder / "run", *LORA, "trainer.precision=32-true", "steps=4")
    save_native(folder / "weights", build_lm(load(arguments[: -len(LORA) - 2])))
    arguments += ["model.lora.base=nf4", f"model.init={folder / 'weights'}"]
    assert train(load(arguments)) == 0
    return folder, arguments


def test_a_checkpoint_holds_adapters_and_their_moments_alone(lora_run: tuple[Path, list[str]]) -> None:
    saved = state(lora_run[0] / "run", 4)
    assert all(name.endswith(("lora_A", "lora_B")) for name in saved["state_dict"])
    moments = saved["optimizer_states"][0]["state"]
    assert len(moments) == len(saved["state_dict"])
    assert len(saved["base_sha256"]) == 64


def test_an_export_adds_adapters_to_the_full_start_weights(lora_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, arguments = lora_run
    out = export_checkpoint(
        folder / "run", tmp_path / "out", ExportSettings(layout="nvidia", dtype="fp32", voices="none")
    )
    exported = from_pretrained(out, load(arguments).model.lm)
    # by hand: the start weights, plus scaling x B x A of the checkpoint
    start, saved = base_lm(load(arguments)), state(folder / "run", 4)["state_dict"]
    moved = 0
    for name, weight in start.named_parameters():
        path = "lm." + name.removesuffix(".weight")
        expected = weight.detach()
        if f"{path}.lora_A" in saved:
            expected = expected + 2.0 * saved[f"{path}.lora_B"] @ saved[f"{path}.lora_A"]
            moved += not torch.equal(expected, weight)
        torch.testing.assert_close(exported.get_parameter(name), expected, atol=1e-6, rtol=1e-5)
    assert moved > 10


def test_other_start_weights_than_the_checkpoints_are_refused(lora_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, arguments = lora_run
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    saved = tmp_path / "run" / "checkpoints" / "step-0000003" / "config.yaml"
    saved.write_text(saved.read_text().replace(str(folder), str(tmp_path)))
    (saved.parent / SUMS).unlink()  # they are those of the former text
    lm = base_lm(load(arguments))
    with torch.no_grad():
        lm.text_head.weight[0, 0] += 1e-3
    save_native(tmp_path / "weights", lm)
    resume = [argument.replace(str(folder), str(tmp_path)) for argument in arguments] + ["resume=true"]
    for act in (
        lambda: train(load(resume)),
        lambda: export_checkpoint(saved.parent, tmp_path / "out", ExportSettings(voices="none")),
    ):
        with refused("bad-weights", "model.init=", "weights"):
            act()


def test_a_quantized_base_without_its_library_is_one_line_before_any_work(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.adapters.quantized import bitsandbytes

    bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with refused("missing-package", "pip install 'ppx-train[quantized]'"):
        train(load(run_arguments(prepared, tmp_path / "run", *LORA, "model.lora.base=nf4")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "code", "name"),
    [
        (["model.lora.base=nf4"], "bad-combination", "model.lora.base=nf4"),
        (["model.lora.base=int4", "model.lora.rank=4"], "bad-value", "int4"),
        (
            ["model.lora.base=int8", "model.lora.rank=4", "trainer.strategy=fsdp2"],
            "bad-combination",
            "trainer.strategy",
        ),
    ],
)
def test_settings_of_the_base_that_cannot_work_are_refused(
    tmp_path: Path, more: list[str], code: Code, name: str
) -> None:
    with refused(code, name):
        load(run_arguments(tmp_path, tmp_path / "run", *more))
