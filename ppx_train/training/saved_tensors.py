"""Tensors of a checkpoint in safetensors files: each rank writes the parts that it holds, any rank reads any part.

One file, where one rank holds all, is the simplest case. The state around the tensors is kept apart, with tensors
without values (on the meta device) in their places.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from model.errors import UserError
from model.text_safety import plain

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of types in the header of a safetensors file."""
FIRST = "first"
"""The key of a file's metadata that says, as JSON, where each of its parts begins in the whole tensor."""


def file_name(number: int, files: int) -> str:
    """Returns the name of one of several files of tensors, counted from 0."""
    return f"tensors-{number:05d}-of-{files:05d}.safetensors"


@dataclass(frozen=True)
class Part:
    """The values of a tensor that one rank holds, and the index on each axis where they begin in the whole."""

    first: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a checkpoint, whose values are read from the memory-mapped files when they are asked for."""

    shape: torch.Size
    dtype: torch.dtype
    parts: tuple[Part, ...]

    def __getitem__(self, asked: tuple[slice, ...]) -> Tensor:
        """Returns the values of a box of indices, one slice with a start and a stop for each axis."""
        if len(self.parts) == 1:
            return self.parts[0].values[asked]
        found = torch.empty([each.stop - each.start for each in asked], dtype=self.dtype)
        for part in self.parts:
            into, out_of = [], []
            for each, first, size in zip(asked, part.first, part.values.shape, strict=True):
                start, stop = max(each.start, first), min(each.stop, first + size)
                stop = max(start, stop)  # They do not meet.
                into.append(slice(start - each.start, stop - each.start))
                out_of.append(slice(start - first, stop - first))
            if all(each.stop > each.start for each in out_of):
                found[tuple(into)] = part.values[tuple(out_of)]
        return found

    def whole(self) -> Tensor:
        """Returns all values: mapped memory where they lie in one file, new memory otherwise."""
        return self[tuple(slice(0, size) for size in self.shape)]


def local_part(parameter: DTensor) -> tuple[slice, ...]:
    """Returns which part of the whole tensor this rank holds."""
    part = [slice(0, size) for size in parameter.shape]
    for dim, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            whole = part[placement.dim]
            rows = -(-(whole.stop - whole.start) // parameter.device_mesh.size(dim))  # As torch.chunk cuts.
            start = min(whole.start + rows * parameter.device_mesh.get_local_rank(dim), whole.stop)
            part[placement.dim] = slice(start, min(start + rows, whole.stop))
    return tuple(part)


def held(tensor: Tensor) -> Part:
    """Returns the values that this rank holds, on their device."""
    if isinstance(tensor, DTensor):
        return Part(tuple(each.start for each in local_part(tensor)), tensor.to_local().detach())
    return Part((0,) * tensor.dim(), tensor.detach())


def each_tensor(state: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """Returns a copy of nested dicts and lists in which every tensor is what `change` makes of its path and itself."""
    if isinstance(state, Tensor | SavedTensor):
        return change(path, state)
    if isinstance(state, Mapping):
        return {key: each_tensor(value, change, f"{path}/{key}".lstrip("/")) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(each_tensor(value, change, f"{path}/{at}".lstrip("/")) for at, value in enumerate(state))
    return state


def whole_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state with a Tensor for each of its saved ones."""
    whole: dict[str, Any] = each_tensor(state, lambda _, each: each.whole() if isinstance(each, SavedTensor) else each)
    return whole


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Part]]:
    """Returns a state without the values of its tensors, and what this rank holds of them, by path.

    Single numbers stay in the state, as copies on the CPU.
    """
    parts: dict[str, Part] = {}

    def without_values(path: str, tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor.detach().to("cpu", copy=True)
        parts[path] = held(tensor)
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return each_tensor(state, without_values), parts


def write_tensors(path: Path, parts: Mapping[str, Part]) -> str:
    """Writes a safetensors file, one tensor in memory at a time, and returns its SHA-256 in hex.

    Raises: OSError that names the file, e.g. for a full disk.
    """
    parts = {name: part for name, part in parts.items() if part.values.numel()}
    header: dict[str, Any] = {
        "__metadata__": {FIRST: json.dumps({name: part.first for name, part in parts.items()})},
    }
    at = 0
    for name, part in parts.items():
        end = at + part.values.numel() * part.values.element_size()
        shape, dtype = list(part.values.shape), DTYPES[part.values.dtype]
        header[name], at = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return write_hashed(path, [len(text).to_bytes(8, "little") + text], (part.values for part in parts.values()))


def write_hashed(path: Path, pieces: list[bytes], tensors: Iterator[Tensor] | None = None) -> str:
    """Writes a file to the disk and returns its SHA-256 in hex, of what was meant: nothing is read back.

    Raises: OSError that names the file.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            for tensor in tensors or ():
                values = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
                digest.update(values)
                file.write(values)
            file.flush()
            os.fsync(file.fileno())
    except OSError as why:
        why.filename = why.filename or str(path)
        raise
    return digest.hexdigest()


def with_values(state: Any, folder: Path, files: int) -> Any:
    """Returns a state that `split` made, or one with all values inside, with a SavedTensor for every tensor.

    files: how many files of tensors there are in `folder`.
    Raises: UserError with code "bad-checkpoint" that names a file that is missing or not one of them, or a tensor of
    which values are missing.
    """
    parts: dict[str, list[Part]] = {}
    for number in range(files):
        for name, part in read_parts(folder / file_name(number, files)):
            parts.setdefault(name, []).append(part)

    def saved(path: str, tensor: Tensor) -> Any:
        if not tensor.dim():
            return tensor
        if not tensor.is_meta:
            return SavedTensor(tensor.shape, tensor.dtype, (Part((0,) * tensor.dim(), tensor),))
        found = tuple(parts.get(path, ()))
        fits = all(
            part.values.dtype == tensor.dtype and len(part.first) == tensor.dim() == part.values.dim() for part in found
        ) and all(
            0 <= first <= first + size <= whole
            for part in found
            for first, size, whole in zip(part.first, part.values.shape, tensor.shape, strict=True)
        )
        if not fits or sum(part.values.numel() for part in found) != tensor.numel():
            raise UserError(
                f"{folder}: the files of tensors do not hold {plain(path)} as it was saved, one of them is of another "
                f"checkpoint: move {folder} away to resume from the one before",
                code="bad-checkpoint",
            )
        if not found:  # It has no values.
            found = (Part((0,) * tensor.dim(), torch.empty_like(tensor, device="cpu")),)
        return SavedTensor(tensor.shape, tensor.dtype, found)

    return each_tensor(state, saved)


def read_parts(path: Path) -> Iterator[tuple[str, Part]]:
    """Yields names and parts of one file, memory-mapped. Raises: UserError that names it if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            first = json.loads((file.metadata() or {})[FIRST])
            for name in file.keys():
                yield name, Part(tuple(int(number) for number in first[name]), file.get_tensor(name))
    except Exception as why:  # Damaged files raise SafetensorError, KeyError, ValueError and others.
        what = "is missing" if not path.is_file() else f"is damaged ({type(why).__name__})"
        raise UserError(
            f"{path} {what}: put all files of the checkpoint there, or move {path.parent} away to resume from the one "
            "before",
            code="bad-checkpoint",
        ) from why
