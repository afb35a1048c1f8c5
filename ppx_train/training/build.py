"""Makes the language model a run trains: from scratch or from weights, with or without adapters."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.adapters.lora import adapters, inject, native_names
from model.adapters.quantized import quantize_base
from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import from_pretrained
from ppx_train.config.run import Run
from ppx_train.training.optim import DEPTH
from ppx_train.training.ranks import is_launcher
from ppx_train.training.vocabulary import new_vocabulary


def empty_lm(run: Run) -> DuplexLM:
    """Returns the model of `run` without values (meta device), with its adapters.

    Its trainable parameters are those that the checkpoints of the run hold.
    """
    return _with_adapters(run, DuplexLM(run.model.lm, device="meta"))


def base_lm(run: Run) -> DuplexLM:
    """Returns the start weights of `run` as a plain model on the CPU.

    The weights are fp32, or bf16 if they stay frozen under adapters and the run computes in bf16. Weights from scratch,
    and adapters that are drawn after this call, depend on run.seed alone.
    Raises: UserError for weights that are missing, broken or of another architecture.
    """
    check_start(run)
    settings, dtype = run.model, base_dtype(run)
    torch.manual_seed(run.seed)  # Weights from scratch are drawn from this seed, and adapters after them.
    if settings.init == "scratch":
        return DuplexLM(settings.lm).to(dtype)
    model = from_pretrained(settings.init, config=settings.lm, revision=settings.revision, dtype=dtype)
    if vocabulary := new_vocabulary(run):
        for name, parameter in model.named_parameters():
            parameter.data = vocabulary.rows(name, parameter.data)
    return model


def check_start(run: Run) -> None:
    """Says what becomes of the text vocabulary. Raises: UserError if no start weights can be made of these settings."""
    settings = run.model
    if settings.lm.dep_q != 16:
        raise UserError(
            f"model.lm.dep_q={settings.lm.dep_q}: training needs 16, to predict the user's codes too",
            code="bad-value",
        )
    if settings.init == "scratch" and settings.revision is not None:
        raise UserError("model.revision has no effect with model.init=scratch: leave it out", code="bad-combination")
    if (vocabulary := new_vocabulary(run)) and is_launcher():
        print(vocabulary.describe())


def base_dtype(run: Run) -> torch.dtype:
    """Returns the type of the start weights: frozen ones get no update, so they need no fp32 master copy."""
    frozen_bf16 = bool(run.model.lora.rank) and run.trainer.precision == "bf16-mixed"
    return torch.bfloat16 if frozen_bf16 else torch.float32


def trainable_lm(run: Run, base: DuplexLM) -> DuplexLM:
    """Turns the start weights, in place, into what `run` trains: adapters, quantized base, how blocks are computed."""
    model = _with_adapters(run, base)
    if run.model.lora.base != "full":
        has_gpu = run.trainer.accelerator != "cpu" and torch.cuda.is_available()
        quantize_base(model, run.model.lora.base, torch.device("cuda") if has_gpu else None)
    model.set_activation_checkpointing(run.model.activation_checkpointing)
    if run.model.compile:
        model.compile_blocks()
    return model


def restore_lm(run: Run, tensors: Mapping[str, Tensor], base_sha256: str | None) -> DuplexLM:
    """Returns the model of a checkpoint, with its adapters over the start weights in full precision, on the CPU.

    `tensors` and `base_sha256` are those of the checkpoint (ppx_train/training/checkpoint.py), and `check_weights` has
    checked them.
    Raises: UserError if the start weights cannot be read again or are no longer the same.
    """
    model = empty_lm(run)
    if run.model.lora.rank:
        base = base_lm(run)
        check_base(run.model.init, fingerprint(base), base_sha256)
        model = _with_adapters(run, base)
    model.load_state_dict(tensors, strict=not run.model.lora.rank, assign=True)
    return model


def fingerprint(model: DuplexLM) -> str:
    """Returns the SHA-256 over names and values of all weights, in hex."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        add_to_digest(digest, name, tensor)
    return digest.hexdigest()


def add_to_digest(digest: Any, name: str, tensor: Tensor) -> None:
    """Adds a weight, with its name, type and shape, to a hash such as that of `fingerprint`."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def check_base(init: str, found: str | None, saved: str | None) -> None:
    """Raises UserError if a checkpoint's adapters were trained on other start weights than are found now."""
    if found != saved:
        raise UserError(
            f"model.init={init}: these are not the start weights that the checkpoint's adapters were trained "
            "on: give the same files (model.revision for a repository), or the same torch for scratch",
            code="bad-weights",
        )


def _with_adapters(run: Run, model: DuplexLM) -> DuplexLM:
    lora = run.model.lora
    if lora.rank:
        inject(model, lora.rank, lora.scaling, lora.patterns)
    return model


def describe_lm(run: Run) -> str:
    """Describes how many parameters `run` has and trains, in all and by optimiser group, and its adapters.

    It loads no weights.
    """
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
            f"  LoRA: rank {lora.rank}, scaling {lora.scaling:g}, on {adapted} linear layers; frozen base: {lora.base}"
        )
    return "\n".join(lines)


def _counts(parameters: Sequence[nn.Parameter]) -> str:
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return f"{total:,} parameters, {trainable:,} trainable ({trainable / total:.2%})"
