"""Codec files: safetensors with the public tensor names and the config as metadata."""

from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

from model.errors import UserError
from model.files import write_bytes
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig
from model.weights.tensor_files import open_safetensors

NAME = "mimi.safetensors"
PUBLIC_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"  # in the public repositories; holds no config
SHOWN = 5  # names listed in an error


def load_mimi(path: str | Path) -> Mimi:
    """Reads a `.safetensors` file, or the one in a folder: frozen, on the CPU, in fp32 (exact also for half precision).

    Raises: UserError if there is no such file, it is not safetensors, or its names or shapes are not the config's.
    """
    path = find(Path(path))
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    config = MimiConfig.from_json(metadata["config"]) if "config" in metadata else MimiConfig.full()
    with torch.device("meta"):
        model = Mimi(config)
    check_tensors(path, tensors, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def find(path: Path) -> Path:
    """The codec file at a path. Raises: UserError that names what was looked for."""
    if path.is_file():
        return path
    for name in (NAME, PUBLIC_NAME):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} is no codec: give a .safetensors file, or a folder with {NAME} or {PUBLIC_NAME}")


def check_tensors(path: Path, tensors: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError with the missing, extra and misshapen names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = {
        "missing": sorted(set(wanted) - set(shapes)),
        "extra": sorted(set(shapes) - set(wanted)),
        "misshapen": [
            f"{name} {shapes[name]} instead of {wanted[name]}"
            for name in sorted(set(wanted) & set(shapes))
            if shapes[name] != wanted[name]
        ],
    }
    told = [f"{len(names)} {what} ({', '.join(names[:SHOWN])})" for what, names in problems.items() if names]
    if told:
        raise UserError(f"{path} does not hold this codec: {'; '.join(told)}")


def save_mimi(model: Mimi, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes folder/mimi.safetensors, the constants computed if they were not. Returns its path.

    Raises: UserError if the file exists.
    """
    folder = Path(folder)
    path = folder / NAME
    if path.exists():
        raise UserError(f"{path} exists: choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write(model, path, dtype)
    return path


def write(model: Mimi, path: Path, dtype: torch.dtype) -> None:
    """Writes or replaces one file, whole or not at all."""
    model.constants()
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, to_bytes(tensors, metadata={"config": model.config.to_json()}))
