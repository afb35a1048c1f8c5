"""What a run says about its parameters before it trains."""

from pathlib import Path

import torch

from model.adapters.lora import adapters
from model.duplex import DuplexLM
from model.weights.checkpoint import save_native
from ppx_train.config.load import load
from ppx_train.training.build import describe_lm
from tests.ppx_train.fixtures import build_lm, run_arguments


def test_parameters_of_a_full_run_are_counted_by_group(tmp_path: Path) -> None:
    run = load(run_arguments(tmp_path, tmp_path / "run"))
    depth = sum(p.numel() for p in DuplexLM(run.model.lm).depth.parameters())
    total = DuplexLM(run.model.lm).num_parameters()
    assert describe_lm(run).splitlines() == [
        f"model: {total:,} parameters, {total:,} trainable (100.00%)",
        f"  temporal: {total - depth:,} parameters, {total - depth:,} trainable (100.00%)",
        f"  depth: {depth:,} parameters, {depth:,} trainable (100.00%)",
    ]


def test_parameters_of_a_lora_run_are_those_that_get_optimiser_state(tmp_path: Path) -> None:
    more = ["model.lora.rank=3", "model.lora.patterns=[self_attn]", "trainer.precision=bf16-mixed"]
    run = load(run_arguments(tmp_path, tmp_path / "run", *more))
    lm = build_lm(run)
    trainable = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    # 2 temporal layers of width 32, 16 steps of one depth layer of width 16; in_proj and out_proj of each
    assert trainable == 3 * (2 * (32 + 96 + 32 + 32) + 16 * (16 + 48 + 16 + 16))
    model, temporal, depth, lora = describe_lm(run).splitlines()
    assert f"{lm.num_parameters():,} parameters, {trainable:,} trainable" in model
    assert f" {3 * 2 * 192:,} trainable" in temporal and f" {3 * 16 * 96:,} trainable" in depth
    assert lora == "  LoRA: rank 3, scaling 2, on 36 linear layers; frozen base: full"
    assert {p.dtype for p in lm.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_adapters_on_given_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    save_native(tmp_path / "weights", build_lm(load(run_arguments(tmp_path, tmp_path / "run"))))
    more = ["model.lora.rank=3", f"model.init={tmp_path / 'weights'}"]

    def drawn(seed: int) -> torch.Tensor:
        torch.rand(7)  # whatever happened before
        lm = build_lm(load(run_arguments(tmp_path, tmp_path / "run", *more, f"seed={seed}")))
        return dict(adapters(lm))["temporal.layers.0.attention.in_proj"].lora_A.detach()

    first = drawn(5)
    assert torch.equal(drawn(5), first) and not torch.equal(drawn(6), first)
