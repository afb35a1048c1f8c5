"""A tiny language model with random weights, random codes for it, and its gradients."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM

TINY = LMConfig(
    dim=32, num_heads=2, num_layers=2, context=16, text_card=40, card=32,
    depformer_dim=16, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=66,
)  # fmt: skip


def tiny(seed: int = 0, **changes: Any) -> DuplexLM:
    """A fresh model; changes: fields of its configuration."""
    torch.manual_seed(seed)
    return DuplexLM(dataclasses.replace(TINY, **changes))


def random_codes(config: LMConfig, batch: int, num_frames: int, seed: int = 1) -> Tensor:
    """Codes [B, 17, T], a twentieth of which are ZERO_ID."""
    generator = torch.Generator().manual_seed(seed)
    codes_BKT = torch.randint(0, config.card, (batch, 17, num_frames), generator=generator)
    codes_BKT[:, 0] = torch.randint(0, config.text_card, (batch, num_frames), generator=generator)
    codes_BKT[torch.rand(codes_BKT.shape, generator=generator) < 0.05] = -1
    return codes_BKT


def random_weights(codes_BKT: Tensor, seed: int = 2) -> Tensor:
    """Weights with zero entries, and a prompt (first quarter) without any loss."""
    generator = torch.Generator().manual_seed(seed)
    weights_BKT = torch.rand(codes_BKT.shape, generator=generator)
    weights_BKT[torch.rand(codes_BKT.shape, generator=generator) < 0.2] = 0
    weights_BKT[:, :, : codes_BKT.shape[2] // 4] = 0
    return weights_BKT


def gradients(model: DuplexLM) -> dict[str, Tensor]:
    """Copies of all gradients by the names of their parameters."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """The gradients differ by less than `tolerance` of each parameter's largest one."""
    assert ours.keys() == theirs.keys()
    for name, theirs_grad in theirs.items():
        scale = theirs_grad.abs().max().clamp(min=1e-3)
        assert (ours[name] - theirs_grad).abs().max() / scale < tolerance, name
