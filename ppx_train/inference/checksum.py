"""What tells apart two models, in whatever precision they are loaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch

from model.weights.tensor_files import StoredTensor

SAMPLED_VALUES = 256
"""Values of each tensor that are looked at: training changes all of them, and reading all would take minutes at 7B."""


def checksum(weights: Mapping[str, StoredTensor], *others: bytes) -> str:
    """The sha256, in hex, of names, shapes and first values of weights in files, and of what else belongs to a model.

    Raises: UserError as `StoredTensor.pieces`.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        rows = max(1, SAMPLED_VALUES // max(1, tensor.shape[1:].numel()))
        first = replace(tensor, shape=torch.Size((min(rows, tensor.shape[0]), *tensor.shape[1:])))
        found.update(first.read().float().numpy().tobytes())
    for other in others:
        found.update(hashlib.sha256(other).digest())
    return found.hexdigest()
