"""Makes the language model a run trains: from scratch or from weights, with or without adapters."""

from collections.abc import Sequence

import torch
from torch import nn

from model.checkpoint import from_pretrained
from model.duplex import DuplexLM
from model.errors import UserError
from model.lora import adapters, inject, native_names
from ppx_train.config import Run
from ppx_train.optim import DEPTH


def empty_lm(run: Run) -> DuplexLM:
    """The model of `run` without values (meta device), with its adapters: what its checkpoints must fit."""
    model = DuplexLM(run.model.lm, device="meta")
    if run.model.lora.rank:
        inject(model, run.model.lora.rank, run.model.lora.scaling, run.model.lora.patterns)
    return model


def build_lm(run: Run) -> DuplexLM:
    """The model of `run`, on the CPU; deterministic in run.seed when it starts from scratch.

    fp32, but for a frozen base under adapters, which is bf16 when the run computes in bf16. Raises UserError for
    weights that are missing, broken or of another architecture.
    """
    settings = run.model
    if run.model.lm.dep_q != 16:
        raise UserError(f"model.lm.dep_q={settings.lm.dep_q}: training needs 16 depth steps (the user's stream too)")
    # a frozen base needs no fp32 master
    frozen_bf16 = bool(settings.lora.rank) and run.trainer.precision == "bf16-mixed"
    base_dtype = torch.bfloat16 if frozen_bf16 else torch.float32
    if settings.init == "scratch":
        if settings.revision is not None:
            raise UserError("model.revision has no effect with model.init=scratch: leave it out")
        torch.manual_seed(run.seed)
        model = DuplexLM(settings.lm).to(base_dtype)
    else:
        model = from_pretrained(settings.init, config=settings.lm, revision=settings.revision, dtype=base_dtype)
    model.set_activation_checkpointing(settings.activation_checkpointing)
    if settings.lora.rank:
        inject(model, settings.lora.rank, settings.lora.scaling, settings.lora.patterns)
    return model


def describe_lm(run: Run) -> str:
    """How many parameters `run` has and trains, in all and by optimiser group, and its adapters. Loads no weights."""
    model = empty_lm(run)
    groups: dict[str, list[nn.Parameter]] = {"temporal": [], "depth": []}
    for name, parameter in model.named_parameters():
        groups["depth" if DEPTH.match(name) else "temporal"].append(parameter)
    lines = [f"model: {_counts([*groups['temporal'], *groups['depth']])}"]
    lines += [f"  {group}: {_counts(parameters)}" for group, parameters in groups.items()]
    lora = run.model.lora
    if lora.rank:
        adapted = sum(len(native_names(path, module)) for path, module in adapters(model))
        lines.append(
            f"  LoRA: rank {lora.rank}, scaling {lora.scaling:g}, on {adapted} linear layers; the rest is frozen"
        )
    return "\n".join(lines)


def _counts(parameters: Sequence[nn.Parameter]) -> str:
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return f"{total:,} parameters, {trainable:,} trainable ({trainable / total:.2%})"
