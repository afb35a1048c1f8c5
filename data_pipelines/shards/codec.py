"""The codec of a stage whose work is spread over processes: it is pickled as a path and opened once in each process."""

# Shapes: B batch, S samples

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.devices import check_device
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi


class Codec(Protocol):
    """What the data stages need of model.mimi.codec.Mimi."""

    @property
    def card(self) -> int:
        """How many codes a codebook has."""
        ...

    @property
    def num_codebooks(self) -> int:
        """How many codes a frame has."""
        ...

    @property
    def device(self) -> Any:
        """Where it encodes."""
        ...

    def encode(self, wav_B1S: Tensor) -> Tensor:
        """Shapes: audio [B, 1, S] at 24 kHz -> codes [B, num_codebooks, T], a frame for each 80 ms."""
        ...

    def constants(self) -> tuple[Any, Any]:
        """Codes of silence and of a sine, one for each codebook."""
        ...

    def fingerprint(self) -> str:
        """Identifies the weights."""
        ...


@dataclass(frozen=True)
class SharedCodec:
    """A Codec that is pickled as its file and device. What identifies it is always computed on the CPU."""

    path: Path
    device: str = "cpu"

    @property
    def card(self) -> int:
        """How many codes a codebook has."""
        return _open(self.path, "cpu").card

    @property
    def num_codebooks(self) -> int:
        """How many codes a frame has."""
        return _open(self.path, "cpu").num_codebooks

    def encode(self, wav_B1S: Tensor) -> Tensor:
        """Encodes on `device`.

        Shapes: audio [B, 1, S] -> codes [B, 8, T], both on the CPU.
        Raises: UserError with code "no-device" if the device cannot be used here.
        """
        return _open(self.path, self.device).encode(wav_B1S.to(self.device)).cpu()

    def constants(self) -> tuple[Any, Any]:
        """Codes of silence and of a sine, one for each codebook."""
        return _open(self.path, "cpu").constants()

    def fingerprint(self) -> str:
        """Identifies the weights."""
        return _open(self.path, "cpu").fingerprint()


@lru_cache(maxsize=2)
def _open(path: Path, device: str) -> Mimi:
    check_device(device)
    # TF32 would round the encoder's products, which changes codes.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return load_mimi(path).to(device).eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block with one thread: sums of floats depend on the number of threads, and codes must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
