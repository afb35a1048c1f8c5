"""Reference vectors: numbers computed with the public runtimes on small models with random weights (see the tests)."""

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.weights.checkpoint import load_native
from tests.paths import GOLDEN


@cache
def metadata(name: str) -> dict[str, Any]:
    """The metadata of tests/golden/{name}.safetensors, JSON values decoded."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """All tensors of a file. Do not change them in place: the dict is shared."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def weights(name: str) -> dict[str, Tensor]:
    """The native weights of a file, without the `weights.` prefix."""
    return {key.removeprefix("weights."): value for key, value in tensors(name).items() if key.startswith("weights.")}


def lm_config(name: str) -> LMConfig:
    """The language model's configuration of a file."""
    known = {field.name for field in fields(LMConfig)}
    return LMConfig(**{key: value for key, value in metadata(name)["config"].items() if key in known})


def language_model(name: str) -> DuplexLM:
    """A fresh fp32 model with the weights of a file, in eval mode."""
    model = DuplexLM(lm_config(name))
    load_native(model, weights(name))
    return model.eval()


def write_parts(folder: Path, tensors: dict[str, Tensor], parts: int) -> None:
    """The weights dealt out over several files, with the index that the hub's tools write."""
    names = sorted(tensors)
    where = {name: f"model-{1 + n % parts:05d}-of-{parts:05d}.safetensors" for n, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The names, types and bits of the tensors are equal."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def greedy(_: int, logits_BV: Tensor) -> Tensor:
    """`choose` for DepthStream.generate: the most likely token."""
    return torch.argmax(logits_BV, dim=-1)
