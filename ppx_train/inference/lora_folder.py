"""A folder in layout `lora`: an adapter, and the name of the base model it is added to."""

from pathlib import Path
from typing import Any

import torch

from model.adapters.lora import load_adapter, merge
from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import config_from_dict, from_pretrained
from model.weights.tensor_files import read_header

ADAPTER_NAME = "lora.safetensors"


def load_adapted(folder: Path, sidecar: dict[str, Any], where: str, dtype: torch.dtype, device: str) -> DuplexLM:
    """The base that the sidecar names with the folder's adapter merged into it.

    where: the sidecar's file, for messages.
    The base is read as `dtype`; the sum is made in fp32 and rounded to it.
    Raises: UserError if the base cannot be had, or the adapter does not fit it.
    """
    base, scaling = sidecar.get("base") or {}, (sidecar.get("adapter") or {}).get("scaling")
    if not isinstance(base.get("name"), str) or not isinstance(scaling, float | int):
        raise UserError(f"{where}: names no base and scaling for {ADAPTER_NAME}: export the adapter again")
    config = config_from_dict(sidecar["lm"], where)
    tensors = {name: rows.read() for name, rows in read_header(folder / ADAPTER_NAME).items()}
    try:
        lm = from_pretrained(base["name"], config=config, revision=base.get("commit"), dtype=dtype, device=device)
    except UserError as why:
        raise UserError(f"{folder} is an adapter and needs its base model: {why}") from why
    try:
        load_adapter(lm, tensors, float(scaling))
    except UserError as why:
        raise UserError(f"{folder / ADAPTER_NAME}: {why}") from why
    merge(lm)
    return lm
