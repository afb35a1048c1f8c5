"""The codec of a stage whose work is spread over processes: passed on by name, opened once in each of them."""

# Shapes: B batch, S samples

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi


class DeviceError(UserError):
    """The device cannot be used: the fault of no dialogue."""


class Codec(Protocol):
    """What the data stages need of model.mimi.codec.Mimi."""

    @property
    def card(self) -> int: ...
    @property
    def num_codebooks(self) -> int: ...
    @property
    def device(self) -> Any: ...
    def encode(self, wav_B1S: Tensor) -> Tensor: ...
    def constants(self) -> tuple[Any, Any]: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class SharedCodec:
    """A Codec that is pickled as its file and device; what identifies it is computed on the CPU in any case."""

    path: Path
    device: str = "cpu"

    @property
    def card(self) -> int:
        return _open(self.path, "cpu").card

    @property
    def num_codebooks(self) -> int:
        return _open(self.path, "cpu").num_codebooks

    def encode(self, wav_B1S: Tensor) -> Tensor:
        """[B, 1, S] -> codes [B, 8, T], both on the CPU. Raises DeviceError if the device cannot be used here."""
        return _open(self.path, self.device).encode(wav_B1S.to(self.device)).cpu()

    def constants(self) -> tuple[Any, Any]:
        return _open(self.path, "cpu").constants()

    def fingerprint(self) -> str:
        return _open(self.path, "cpu").fingerprint()


@lru_cache(maxsize=2)
def _open(path: Path, device: str) -> Mimi:
    check_device(device)
    # TF32 would round the encoder's products and change codes
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return load_mimi(path).to(device).eval()


def check_device(device: str) -> None:
    """Raises DeviceError if torch cannot use a device on this machine."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as why:
        reason = str(why).splitlines()[0]
        raise DeviceError(f"--device {device}: not usable on {platform.node()} ({reason}): use --device cpu") from why


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads: codes must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
