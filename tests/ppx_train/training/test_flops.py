"""Model FLOP use against closed forms, PyTorch's own counter of FLOPs, and data sheets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.adapters.lora import inject
from model.config import LMConfig
from model.duplex import DuplexLM
from ppx_train.config.load import load
from ppx_train.training.callbacks import meters
from ppx_train.training.curves import read_metrics
from ppx_train.training.flops import TrainingFlops, device_peak, keys_seen, peak_flops
from ppx_train.training.run import train
from tests.ppx_train.fixtures import run_arguments

LM = LMConfig(
    dim=64, num_heads=2, num_layers=3, depformer_dim=32, depformer_num_heads=2, depformer_num_layers=2,
    text_card=100, card=40, context=3000,
)  # fmt: skip


@pytest.mark.parametrize(("config", "frames"), [(LM, 120), (replace(LM, context=50), 120), (LMConfig(), 2048)])
def test_with_a_loss_everywhere_it_is_three_forward_passes_of_every_frame(config: LMConfig, frames: int) -> None:
    lm = DuplexLM(config, device="meta")
    ours = TrainingFlops(lm)(frames, keys_seen(frames, config.context), [frames] * config.num_streams)
    assert ours == pytest.approx(3 * frames * lm.flops_per_frame(frames), rel=1e-9)


def test_the_published_shape_needs_what_was_worked_out_for_it() -> None:
    """49.9 GFLOP a frame in full training of 2048 frames, 33.8 with a frozen base, adapters not counted."""
    lm = DuplexLM(LMConfig(), device="meta")
    whole = TrainingFlops(lm)
    assert whole(2048, keys_seen(2048, 3000), [2048] * 17) / 2048 == pytest.approx(49.9e9, rel=0.01)
    inject(lm, 1, 2.0, [".*"])
    assert TrainingFlops(lm)(2048, keys_seen(2048, 3000), [2048] * 17) / 2048 == pytest.approx(33.8e9, rel=0.01)


def test_rows_without_a_loss_need_no_heads_and_no_depth_steps() -> None:
    flops = TrainingFlops(DuplexLM(LM, device="meta"))
    temporal, text, step = (flops.weights[name] for name in ("temporal", "text_head", "depth"))
    assert temporal == 3 * (4 * 64**2 + 3 * 64 * LM.feedforward_hidden)
    assert flops(10, 0.0, [0] * 17) == 6 * 10 * temporal
    assert flops(10, 0.0, [4] + [0] * 16) == 6 * (10 * temporal + 4 * text)
    assert flops(10, 0.0, [0, 3, *[2] * 7, *[0] * 8]) == 6 * (10 * temporal + (3 + 14) * step)
    assert text == 100 * 64 and step == 2 * (4 * 32**2 + 3 * 32 * LM.depformer_hidden) + 64 * 32 + 40 * 32


def test_adapters_are_trained_and_the_weights_below_them_are_not() -> None:
    lm = DuplexLM(LM, device="meta")
    full = TrainingFlops(lm)
    inject(lm, 2, 2.0, [".*"])
    ours = TrainingFlops(lm)
    sizes = dict.fromkeys(full.weights, 0)
    for name, parameter in lm.named_parameters():
        if parameter.requires_grad:
            sizes[name.partition(".")[0]] += parameter.numel()
    assert all(sizes.values())
    expected = 2 * 5 * (2 * full.weights["temporal"] + 3 * sizes["temporal"])
    expected += 2 * 4 * (2 * full.weights["text_head"] + 3 * sizes["text_head"])
    expected += 2 * 16 * 4 * (2 * full.weights["depth"] + 3 * sizes["depth"] / 16)
    assert ours(5, 0.0, [4] * 17) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_peaks_are_found_by_whole_names(name: str, teraflops: float | None) -> None:
    assert peak_flops(name) == (None if teraflops is None else teraflops * 1e12)


def test_no_peak_is_known_of_a_cpu() -> None:
    assert device_peak(torch.device("cpu"), "bf16-mixed") is None


def test_a_run_reports_its_use_only_where_a_peak_is_known(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("steps=2", "optim.warmup_steps=0", "logging.every=2", "data.heldout_samples=0")
    assert train(load(run_arguments(prepared, tmp_path / "cpu", *more))) == 0
    assert "mfu" not in read_metrics(tmp_path / "cpu")
    monkeypatch.setattr(meters, "device_peak", lambda *_: 1e9)
    calls: list[tuple[float, float, list[float]]] = []
    count = TrainingFlops.__call__

    def counted(self: TrainingFlops, frames: float, keys: float, count_K: list[float]) -> float:
        calls.append((frames, keys, count_K))
        return count(self, frames, keys, count_K)

    monkeypatch.setattr(TrainingFlops, "__call__", counted)
    assert train(load(run_arguments(prepared, tmp_path / "gpu", *more))) == 0
    metrics = read_metrics(tmp_path / "gpu")
    ((frames, _, count_K),) = calls
    seconds = frames / metrics["frames_per_second"][0][1]
    lm = DuplexLM(load(run_arguments(prepared, tmp_path / "gpu")).model.lm, device="meta")
    assert metrics["mfu"][0][1] == pytest.approx(count(TrainingFlops(lm), *calls[0]) / seconds / 1e9, rel=1e-4)
    assert 0 < count_K[0] < frames  # the prompts carry no loss
