"""Parameter groups and the learning-rate schedule, a pure function of the step."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import UserError
from model.kernels.fast_paths import ADAMW, is_on
from ppx_train.config.codec import CodecOptim
from ppx_train.config.parts import Optim

DEPTH = re.compile(r"^depth\.")
"""Names of the depth transformer with its input matrices, embeddings and audio heads; all others are temporal."""
TEXT_TABLES = ("text_emb.weight", "text_head.weight", "depth.text_emb.weight")
"""Names of the weights that have a row for each piece of the text vocabulary."""


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], optim: Optim) -> list[dict[str, Any]]:
    """Returns the groups of AdamW: temporal and depth, each with weight decay (matrices) and without (norms).

    TEXT_TABLES are a group of their own if optim.lr.text is set.

    Names are those of DuplexLM.
    Raises: UserError if nothing is trainable.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            part = "depth" if DEPTH.match(name) else "temporal"
            if optim.lr.text is not None and name in TEXT_TABLES:
                part = "text"
            groups.setdefault((part, not name.endswith("alpha")), []).append(parameter)
    if not groups:
        raise UserError("no parameter is trainable: check model.lora.patterns", code="bad-value")
    return [
        {
            "params": parameters,
            "name": part + ("" if decays else "_norms"),
            "lr": getattr(optim.lr, part),
            "peak_lr": getattr(optim.lr, part),
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in sorted(groups.items())
    ]


def make_optimizer(named: Iterable[tuple[str, nn.Parameter]], optim: Optim) -> torch.optim.AdamW:
    """Returns AdamW over `parameter_groups`; on a GPU in one kernel, which needs no room for what lies in between."""
    first, second = optim.betas
    groups = parameter_groups(named, optim)
    on_gpu = all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, betas=(first, second), fused=(on_gpu and is_on(ADAMW)) or None)


def moments_by_name(saved: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Returns the state of an optimiser with the names of parameters in place of their numbers.

    saved: as `state_dict` of an optimiser returns it, or with names already; then it is only checked.
    order: the names, group by group.
    Raises: UserError if the state is not of these parameters.
    """
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    has_names = all(isinstance(key, str) for key in keys)
    if len(keys) != len(order) or (has_names and keys != list(order)):
        raise UserError("the checkpoint's optimiser state is not of the parameters that train", code="bad-checkpoint")
    names = dict(zip(keys, order, strict=True))
    groups = [{**group, "params": [names[key] for key in group["params"]]} for group in saved["param_groups"]]
    return {"state": {names[key]: moments for key, moments in saved["state"].items()}, "param_groups": groups}


def gradient_norms(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Returns the gradient norm of the temporal and the depth parts, and of the adapters in each by themselves.

    Names are those of DuplexLM. The norms stay on their device, and are of whole tensors also if these are sharded.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in named:
        if parameter.grad is not None:
            part = "depth" if DEPTH.match(name) else "temporal"
            parts.setdefault(f"{part}_adapters" if "lora_" in name else part, []).append(parameter.grad)
    norms = {part: nn.utils.get_total_norm(gradients) for part, gradients in sorted(parts.items())}
    return {part: norm.full_tensor() if hasattr(norm, "full_tensor") else norm for part, norm in norms.items()}


def lr_scale(step: int, optim: Optim | CodecOptim, steps: int) -> float:
    """Returns the factor on the peak learning rate at a 0-based step: linear warm-up, then cosine to final_lr_ratio.

    It depends on the step alone, so that a resumed run needs no scheduler state.
    """
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optim.final_lr_ratio + (1 - optim.final_lr_ratio) * cosine
