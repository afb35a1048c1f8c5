"""Stored weights one parameter at a time, for a model that is never whole in one place."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import check_names, copy_values, open_weights, split_layout
from model.weights.tensor_files import StoredTensor


def stored_parameters(
    path_or_repo: Path | str, config: LMConfig, revision: str | None = None, *, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yields what `from_pretrained` puts into a model, one parameter at a time, by names and in the order of DuplexLM.

    All names and shapes are checked before a value is read.
    Raises: UserError as `from_pretrained`.
    """
    opened = open_weights(path_or_repo, config, revision)
    empty = DuplexLM(config, device="meta")
    layout, own = split_layout(empty), dict(empty.named_parameters())
    try:
        expected = {native: own[name].shape[0 if k is None else 1 :] for native, (name, k) in layout.items()}
        check_names(opened.split, expected)
    except UserError as why:
        raise UserError(f"{opened.file}: {why}", code=why.code) from why
    parts: dict[str, list[tuple[int | None, StoredTensor]]] = {}
    for native, (name, k) in layout.items():
        parts.setdefault(name, []).append((k, opened.split[native]))
    opened.log_changes(path_or_repo)
    for name, parameter in own.items():
        values = torch.empty(parameter.shape, dtype=dtype, device="cpu")
        copy_values((part, values if k is None else values[k]) for k, part in parts[name])
        yield name, values
        del values  # otherwise it lives on while the next one is read
