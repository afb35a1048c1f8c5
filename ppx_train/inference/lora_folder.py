"""A folder in layout `lora`: an adapter, and the name of the base model it is added to."""

from pathlib import Path

import torch

from model.adapters.lora import load_adapter, merge
from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import from_pretrained
from model.weights.tensor_files import read_header
from ppx_train.inference.sidecar import AdapterBase, AdapterShape

ADAPTER_NAME = "lora.safetensors"
"""The file with A and B of every linear layer."""


def load_adapted(
    folder: Path, config: LMConfig, base: AdapterBase, adapter: AdapterShape, dtype: torch.dtype, device: str
) -> DuplexLM:
    """Returns the base with the folder's adapter merged into it.

    The base is read as `dtype`; the sum is made in fp32 and rounded to it.
    Raises: UserError if the base is not found or cannot be fetched, or the adapter does not fit it.
    """
    tensors = {name: rows.read() for name, rows in read_header(folder / ADAPTER_NAME).items()}
    try:
        lm = from_pretrained(base.name, config=config, revision=base.commit, dtype=dtype, device=device)
    except UserError as why:
        raise UserError(f"{folder} is an adapter and needs its base model: {why}", code=why.code) from why
    try:
        load_adapter(lm, tensors, adapter.scaling)
    except UserError as why:
        raise UserError(f"{folder / ADAPTER_NAME}: {why}", code=why.code) from why
    merge(lm)
    return lm
