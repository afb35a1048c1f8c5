"""Codec files: safetensors with the public tensor names, and the configuration as metadata."""

from pathlib import Path

import torch

from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.weights.sources import CODEC_FILE
from model.weights.tensor_files import name_problems, open_safetensors, write_safetensors

CODEC_NAME = "mimi.safetensors"
"""Name of a codec file of ours; the file of the public repositories, CODEC_FILE, holds no configuration."""


def load_mimi(path: str | Path) -> Mimi:
    """Reads a codec from a `.safetensors` file, or from the one in a folder: frozen, on the CPU, in fp32.

    Weights of half precision become fp32 of exactly their values. A file without a configuration has the public sizes.
    Raises: UserError if there is no such file ("not-found"), it is not safetensors ("unreadable", "unsafe"), or its
    names or shapes are not the configuration's ("bad-weights").
    """
    path = _find(Path(path))
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    config = MimiConfig.from_json(metadata["config"]) if "config" in metadata else MimiConfig.full()
    with torch.device("meta"):
        model = Mimi(config)
    if problems := name_problems(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}):
        raise UserError(f"{path} does not hold this codec ({'; '.join(problems)}): give another", code="bad-weights")
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (CODEC_NAME, CODEC_FILE):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} is no codec: give a .safetensors file, or a folder with {CODEC_NAME} or {CODEC_FILE}",
        code="not-found",
    )


def save_mimi(model: Mimi, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes folder/mimi.safetensors and returns its path; the constant frames are computed first if they are not yet.

    Raises: UserError if the file exists.
    """
    path = Path(folder) / CODEC_NAME
    if path.exists():
        raise UserError(f"{path} exists: choose another folder or remove it", code="exists")
    write_mimi(model, path, dtype)
    return path


def write_mimi(model: Mimi, path: Path, dtype: torch.dtype) -> None:
    """Writes or replaces one codec file, whole or not at all."""
    model.constants()
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    write_safetensors(path, tensors, {"config": model.config.to_json()})
