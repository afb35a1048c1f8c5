"""Tensors of safetensors files: all that their headers say, and the values piece by piece.

Nothing here holds more than a piece of a file in memory: the pages of the file that a piece maps are let go with it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import UserError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Rows:
    """A tensor of a file, or rows `first`, `first + 1`, ... of one, not read yet. `dtype` as in the header."""

    file: Path
    name: str
    shape: torch.Size
    dtype: str
    first: int = 0

    def chunk(self, chunks: int) -> list["Rows"]:
        """Equal parts along the rows, as Tensor.chunk for a count that divides them."""
        rows = self.shape[0] // chunks
        shape = torch.Size((rows, *self.shape[1:]))
        return [replace(self, shape=shape, first=self.first + k * rows) for k in range(chunks)]

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows of this part, their values) of at most 16 MiB or one row; a value lives until the next is asked for.

        Raises: UserError if the file has become unreadable or a value is NaN or infinite.
        """
        row_bytes = max(1, self.shape[1:].numel() * DTYPES[self.dtype].itemsize)
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            with open_safetensors(self.file) as opened:
                piece = opened.get_slice(self.name)[self.first + start : self.first + stop]
            # unlike isfinite, this allocates nothing; NaN comes out of it as NaN
            if piece.numel() and not all(bound.isfinite() for bound in piece.aminmax()):
                raise UserError(f"{self.file}: {self.name} holds NaN or infinite values: download or export it again")
            yield slice(start, stop), piece
            del piece

    def read(self) -> Tensor:
        """All values, in memory of their own."""
        values = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        for rows, piece in self.pieces():
            values[rows] = piece
        return values


def pieces(part: Tensor | Rows) -> Iterator[tuple[slice, Tensor]]:
    """(rows, values) that make up a part: those of a file in small pieces, a tensor at once."""
    return part.pieces() if isinstance(part, Rows) else iter([(slice(None), part)])


def dtype_of(part: Tensor | Rows) -> torch.dtype:
    return DTYPES[part.dtype] if isinstance(part, Rows) else part.dtype


def weights_path(path: Path) -> Path:
    """The weights file of a model folder (its index, if it is in several parts), or the file itself.

    Raises: UserError if there is none, or only a pickle.
    """
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: no such file: give a folder with {WEIGHTS_NAME} or a .safetensors file")
        return path
    for name in (WEIGHTS_NAME, INDEX_NAME):
        if (path / name).is_file():
            return path / name
    if pickles := sorted(file for file in path.iterdir() if file.suffix in PICKLES):
        raise _pickle(pickles[0])
    raise UserError(f"{path / WEIGHTS_NAME}: no such file: give a folder with {WEIGHTS_NAME} or a .safetensors file")


def open_safetensors(file: Path) -> safe_open:
    """An open safetensors file, to use in `with`. Raises: UserError if it is missing, cut short, a pickle."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as why:
        if _is_pickle(file):
            raise _pickle(file) from why
        raise UserError(f"{file}: not a whole safetensors file ({why}): download or export it again") from why


def read_header(file: Path) -> dict[str, Rows]:
    """All tensors of a .safetensors file, or of the files that an index lists. Reads no values.

    Raises: UserError if a file is missing, cut short, a pickle or not safetensors, or a tensor is of another type than
    fp32, bf16 or fp16.
    """
    if file.name.endswith(".json"):
        return _read_parts(file)
    with open_safetensors(file) as opened:
        found = {name: opened.get_slice(name) for name in opened.keys()}
        rows = {name: Rows(file, name, torch.Size(part.get_shape()), part.get_dtype()) for name, part in found.items()}
    if wrong := [f"{name} {part.dtype}" for name, part in rows.items() if part.dtype not in DTYPES]:
        rest = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{file}: weights of another type than {', '.join(DTYPES)}: {', '.join(wrong[:5])}{rest}")
    return rows


def _read_parts(index: Path) -> dict[str, Rows]:
    try:
        where: Mapping[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        files = {name: index.parent / Path(file).name for name, file in where.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as why:
        raise UserError(f"{index}: not an index of safetensors files ({why!r}): download it again") from why
    headers = {file: read_header(file) for file in sorted(set(files.values()))}
    if lost := sorted(name for name, file in files.items() if name not in headers[file]):
        raise UserError(f"{index}: {lost[0]} is not in {files[lost[0]].name}: download both again")
    if stray := sorted(name for file, header in headers.items() for name in header if files.get(name) != file):
        raise UserError(f"{index}: does not place {stray[0]}, which one of its files holds: download them again")
    return {name: headers[file][name] for name, file in files.items()}


def _is_pickle(file: Path) -> bool:
    """Whether a file that is not safetensors is a pickle: by its name, or by how torch.save and pickle begin."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05") or file.suffix in PICKLES


def _pickle(file: Path) -> UserError:
    return UserError(
        f"{file}: a pickle, which can run any code when it is read: give safetensors; most repositories have it, or "
        "convert it once with torch.load(..., weights_only=True) and safetensors.torch.save_file"
    )
