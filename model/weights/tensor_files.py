"""Safetensors files: what their headers hold, the values piece by piece, and writing.

Reading holds no more than a piece of a file in memory, because the pages of the file that a piece maps go with it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import UserError
from model.files import whole_file
from model.text_safety import plain

WEIGHTS_NAME = "model.safetensors"
"""Name of the weights file of a model folder."""
INDEX_NAME = "model.safetensors.index.json"
"""Name of the file that lists the parts of weights in several files."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of weights by their names in a header."""
PIECE_BYTES = 16 << 20
"""Largest piece that is read at a time, but for a row that is longer."""
SHOWN = 5
"""Names that a message lists of each kind."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, or some of its rows, whose values are not read yet."""

    file: Path
    name: str
    shape: torch.Size
    dtype: str
    """Its type as the header names it, a key of DTYPES."""
    first: int = 0
    """Number of its first row in the tensor of the file."""

    def chunk(self, chunks: int) -> list["StoredTensor"]:
        """Equal parts along the rows, as Tensor.chunk returns them for a count that divides the rows."""
        rows = self.shape[0] // chunks
        shape = torch.Size((rows, *self.shape[1:]))
        return [replace(self, shape=shape, first=self.first + k * rows) for k in range(chunks)]

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields (rows, their values) in pieces of at most 16 MiB or one row; a piece lives until the next one.

        Raises: UserError if the file has become unreadable ("unreadable"), or a value is NaN or infinite
        ("bad-weights").
        """
        row_bytes = max(1, self.shape[1:].numel() * DTYPES[self.dtype].itemsize)
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            with open_safetensors(self.file) as opened:
                piece = opened.get_slice(self.name)[self.first + start : self.first + stop]
            # Unlike isfinite of the piece, its bounds allocate nothing; NaN among the values makes them NaN.
            if piece.numel() and not all(bound.isfinite() for bound in piece.aminmax()):
                raise UserError(
                    f"{self.file}: {self.name} holds NaN or infinite values; download or export it again",
                    code="bad-weights",
                )
            yield slice(start, stop), piece
            del piece

    def read(self) -> Tensor:
        """All values, in new memory.

        Raises: UserError as `pieces`.
        """
        values = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        for rows, piece in self.pieces():
            values[rows] = piece
        return values


def pieces(part: Tensor | StoredTensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, values) that make up a tensor: one of a file in small pieces, one in memory at once."""
    return part.pieces() if isinstance(part, StoredTensor) else iter([(slice(None), part)])


def dtype_of(part: Tensor | StoredTensor) -> torch.dtype:
    """The type of a tensor's values."""
    return DTYPES[part.dtype] if isinstance(part, StoredTensor) else part.dtype


def name_problems(found: Mapping[str, Any], expected: Mapping[str, torch.Size], *, strict: bool = True) -> list[str]:
    """What is wrong with the names and shapes of tensors: missing (if strict), extra and misshapen ones.

    Each entry counts the tensors of one kind and lists the first five, e.g. "1 missing: out_norm.alpha".
    """
    names = {
        "missing": sorted(expected.keys() - found.keys()) if strict else [],
        "extra": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} {list(found[name].shape)} instead of {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in found and found[name].shape != shape
        ],
    }
    return [f"{len(each)} {kind}: {shortened(each)}" for kind, each in names.items() if each]


def shortened(names: list[str]) -> str:
    """The first names of a list, safe to print, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(plain, names[:SHOWN])) + rest


def weights_path(path: Path) -> Path:
    """The weights file of a model folder (its index, if it is in several parts), or the file itself.

    Raises: UserError if it is missing ("not-found"), or only a pickle is there ("unsafe").
    """
    if not path.is_dir():
        if not path.is_file():
            raise _missing(path)
        return path
    for name in (WEIGHTS_NAME, INDEX_NAME):
        if (path / name).is_file():
            return path / name
    if pickles := sorted(file for file in path.iterdir() if file.suffix in PICKLES):
        raise _pickle(pickles[0])
    raise _missing(path / WEIGHTS_NAME)


def open_safetensors(file: Path) -> safe_open:
    """An open safetensors file, to use in `with`.

    Raises: UserError if it is missing ("not-found"), cut short or of another format ("unreadable"), or a pickle
    ("unsafe").
    """
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as why:
        if _is_pickle(file):
            raise _pickle(file) from why
        raise UserError(
            f"{file}: not a whole safetensors file ({plain(str(why))}); download or export it again",
            code="unreadable" if file.is_file() else "not-found",
        ) from why


def read_header(file: Path) -> dict[str, StoredTensor]:
    """All tensors of a .safetensors file, or of the files that an index lists; no values are read.

    Raises: UserError as `open_safetensors`, if an index does not fit its files ("bad-weights"), or if a tensor is of
    another type than fp32, bf16 or fp16 ("bad-weights").
    """
    if file.name.endswith(".json"):
        return _read_parts(file)
    with open_safetensors(file) as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}
        stored = {
            name: StoredTensor(file, name, torch.Size(part.get_shape()), part.get_dtype())
            for name, part in parts.items()
        }
    if wrong := [f"{name} {tensor.dtype}" for name, tensor in stored.items() if tensor.dtype not in DTYPES]:
        raise UserError(
            f"{file}: weights of another type than {', '.join(DTYPES)} ({shortened(wrong)}); convert them first",
            code="bad-weights",
        )
    return stored


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, and replaces an older one; the folder is made if necessary.

    Raises: OSError with the number of the system's error, such as a full disk, as other writers raise it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(path) as temporary:
            save_file(contiguous, temporary, metadata=dict(metadata))
    except SafetensorError as why:
        if found := re.search(r"os error (\d+)", str(why)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from why
        raise


def _read_parts(index: Path) -> dict[str, StoredTensor]:
    try:
        where: Mapping[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        files = {name: index.parent / Path(file).name for name, file in where.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as why:
        raise UserError(
            f"{index}: not an index of safetensors files ({why!r}); download it again", code="unreadable"
        ) from why
    headers = {file: read_header(file) for file in sorted(set(files.values()))}
    if lost := sorted(name for name, file in files.items() if name not in headers[file]):
        raise UserError(f"{index}: {lost[0]} is not in {files[lost[0]].name}; download both again", code="bad-weights")
    if stray := sorted(name for file, header in headers.items() for name in header if files.get(name) != file):
        raise UserError(
            f"{index}: does not place {stray[0]}, which one of its files holds; download them again",
            code="bad-weights",
        )
    return {name: headers[file][name] for name, file in files.items()}


def _is_pickle(file: Path) -> bool:
    """Whether a file that is not safetensors is a pickle, by its name or by how torch.save and pickle begin."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05") or file.suffix in PICKLES


def _pickle(file: Path) -> UserError:
    return UserError(
        f"{file}: a pickle, which can run any code when it is read; give safetensors, which most repositories have, or "
        "convert it once with torch.load(..., weights_only=True) and safetensors.torch.save_file",
        code="unsafe",
    )


def _missing(file: Path) -> UserError:
    return UserError(
        f"{file}: no such file; give a folder with {WEIGHTS_NAME} or a .safetensors file", code="not-found"
    )
