"""Layout `lora`: base + adapter against the merged export, against plain arithmetic, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import save_native
from ppx_train.config.load import load
from ppx_train.export.export_settings import ExportSettings
from ppx_train.export.folder import export_checkpoint
from ppx_train.inference.loading import load_release
from tests.ppx_train.fixtures import greedy_tokens, run_arguments, write_checkpoint
from tests.refusals import refused

LORA = ("model.lora.rank=3", "model.lora.scaling=1.5", "model.lora.patterns=['self_attn', 'linears', 'text_linear']")
LAYERS, STEPS = 2, 8


def make(checkpoint: Path, out: Path, **settings: Any) -> Path:
    return export_checkpoint(checkpoint, out, ExportSettings(**settings))


def make_base(data: Path, folder: Path, dep_q: int) -> Path:
    """Start weights in bf16, as public ones are."""
    torch.manual_seed(11)
    save_native(folder, DuplexLM(load(run_arguments(data, folder)).model.lm), dtype=torch.bfloat16, dep_q=dep_q)
    return folder


@pytest.fixture(scope="module", params=[8, 16], ids=["base of 8 steps", "base of 16 steps"])
def base(prepared: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_base(prepared, tmp_path_factory.mktemp("base") / "start", request.param)


@pytest.fixture(scope="module")
def trained(prepared: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DuplexLM]:
    """A checkpoint of adapters on a frozen base in bf16."""
    run_dir = tmp_path_factory.mktemp("run")
    return write_checkpoint(prepared, run_dir, 5, *LORA, f"model.init={base}", "trainer.precision=bf16-mixed")


@pytest.fixture(scope="module")
def adapter(trained: tuple[Path, DuplexLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(trained[0], tmp_path_factory.mktemp("out") / "mine", layout="lora", dtype="fp32")


@pytest.fixture(scope="module")
def merged(trained: tuple[Path, DuplexLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(trained[0], tmp_path_factory.mktemp("out") / "merged", dtype="fp32")


def logits(lm: DuplexLM) -> tuple[Tensor, Tensor]:
    codes = torch.randint(64, (1, 17, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = lm.logits(codes)
    return out.text_BTV, out.audio_BQTV[:, :8]


def test_base_and_adapter_say_what_the_merged_export_and_the_trained_model_say(
    trained: tuple[Path, DuplexLM], adapter: Path, merged: Path
) -> None:
    apart, together = load_release(adapter).lm, load_release(merged).lm
    for ours, theirs in zip(logits(apart), logits(together), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(greedy_tokens(apart), greedy_tokens(together))
    live = trained[1].float()
    for ours, theirs in zip(logits(apart), logits(live), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_merged_weights_are_the_base_plus_scaled_b_a_summed_in_fp32(
    base: Path, adapter: Path, merged: Path
) -> None:
    start, pairs, sums = (load_file(path) for path in (base / "model.safetensors", adapter / "lora.safetensors",
                                                       merged / "model.safetensors"))  # fmt: skip
    low, high = pairs["linears.3.lora_A.weight"], pairs["linears.3.lora_B.weight"]
    expected = start["linears.3.weight"].float() + 1.5 * high @ low
    torch.testing.assert_close(sums["linears.3.weight"], expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(expected, expected.bfloat16().float())  # rounding to bf16 on the way would be seen
    fused = "transformer.layers.1.self_attn.in_proj_weight"
    name = "transformer.layers.1.self_attn.in_projs.0"
    expected = start[fused].float() + 1.5 * pairs[f"{name}.lora_B.weight"] @ pairs[f"{name}.lora_A.weight"]
    torch.testing.assert_close(sums[fused], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(sums["emb.3.weight"], start["emb.3.weight"].float())


def test_the_file_has_a_pair_for_every_linear_layer_of_a_stock_model_with_eight_steps(adapter: Path) -> None:
    layers = ["text_linear"]
    for i in range(LAYERS):
        layers += [f"transformer.layers.{i}.{name}" for name in (
            "self_attn.in_projs.0", "self_attn.out_projs.0", "gating.linear_in", "gating.linear_out"
        )]  # fmt: skip
    for k in range(STEPS):
        layers += [f"depformer_in.{k}", f"linears.{k}"]
        layers += [f"depformer.layers.0.{name}" for name in (
            f"self_attn.in_projs.{k}", f"self_attn.out_projs.{k}", f"gating.{k}.linear_in", f"gating.{k}.linear_out"
        )]  # fmt: skip
    tensors = load_file(adapter / "lora.safetensors")
    assert set(tensors) == {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"}
    assert not tensors["depformer_in.2.lora_B.weight"].any() and tensors["linears.2.lora_B.weight"].any()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not (adapter / "model.safetensors").exists()


def test_the_config_names_the_base_for_stock_moshi_unless_it_has_sixteen_steps(base: Path, adapter: Path) -> None:
    config, sidecar = (json.loads((adapter / name).read_text()) for name in ("config.json", "personaplex.json"))
    assert sidecar["base"] == {"name": str(base), "commit": None}
    assert sidecar["adapter"] == {"rank": 3, "scaling": 1.5} and sidecar["lm"]["dep_q"] == 8
    if "linears.8.weight" in load_file(base / "model.safetensors"):
        assert set(config) == {"model_type", "version"}
        return
    assert (config["lora"], config["lora_rank"], config["lora_scaling"]) == (True, 3, 1.5)
    assert config["lora_name"] == "lora.safetensors" and config["dep_q"] == 8
    assert config["moshi_name"] == f"file://{base / 'model.safetensors'}"


def test_the_card_names_the_base_but_not_where_it_lies(base: Path, adapter: Path) -> None:
    card = (adapter / "README.md").read_text()
    assert "A LoRA adapter" in card and "for `start`, which it needs" in card
    assert str(base.parent) not in card


def test_a_run_of_all_weights_has_no_adapter(prepared: Path, tmp_path: Path) -> None:
    full, _ = write_checkpoint(prepared, tmp_path / "run", 2)
    with refused("bad-combination", "--layout lora", "there is no adapter"):
        make(full, tmp_path / "out", layout="lora")
    folder, _ = write_checkpoint(prepared, tmp_path / "run2", 2, *LORA)
    with refused("bad-combination", "--layout lora", "model.init=scratch"):
        make(folder, tmp_path / "out", layout="lora")
    with refused("bad-combination", "--base a/b has no effect"):
        make(full, tmp_path / "out", layout="nvidia", base="a/b")
    assert not (tmp_path / "out").exists()


def test_another_base_than_the_trained_one_is_refused(
    prepared: Path, trained: tuple[Path, DuplexLM], base: Path, tmp_path: Path
) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["transformer.layers.0.self_attn.out_proj.weight"][0, 0] += 1
    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    with pytest.raises(UserError, match="other: these are not the start weights"):
        make(trained[0], tmp_path / "out", layout="lora", base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="nowhere: no such path"):
        make(trained[0], tmp_path / "out", layout="lora", base="nowhere")
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_its_base_is_one_line(prepared: Path, tmp_path: Path) -> None:
    start = make_base(prepared, tmp_path / "start", 8)
    folder, _ = write_checkpoint(prepared, tmp_path / "run", 2, *LORA, f"model.init={start}")
    out = make(folder, tmp_path / "out", layout="lora")
    start.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is an adapter and needs its base model: .*start") as why:
        load_release(out)
    assert "\n" not in str(why.value)


def test_start_weights_that_have_moved_are_found_again_by_base(prepared: Path, tmp_path: Path) -> None:
    start = make_base(prepared, tmp_path / "start", 8)
    folder, _ = write_checkpoint(prepared, tmp_path / "run", 2, *LORA, f"model.init={start}")
    before = load_file(make(folder, tmp_path / "before", voices="none") / "model.safetensors")
    start.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="start: no such path"):
        make(folder, tmp_path / "out", voices="none")
    after = load_file(make(folder, tmp_path / "out", voices="none", base=str(tmp_path / "moved")) / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_adapter_for_another_shape_is_one_line(adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "lora.safetensors")
    tensors["text_linear.lora_A.weight"] = torch.zeros(3, LMConfig().dim)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in adapter.iterdir():
        if path.is_file() and path.name != "lora.safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    save_file(tensors, broken / "lora.safetensors")
    with pytest.raises(UserError, match="lora.safetensors: .*text_linear.lora_A.weight") as why:
        load_release(broken)
    assert "\n" not in str(why.value)
