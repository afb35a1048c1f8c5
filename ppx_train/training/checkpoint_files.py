"""Writes the files of a checkpoint, in the background if the run asks for that, and reads them for Lightning.

What training changes while the files are written does not reach them: the state is copied to host memory first. Every
rank writes one file of tensors, or none; the first one writes what lies around them too.
"""

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from ppx_train.training.checkpoint import FILE, FILES, read_checkpoint
from ppx_train.training.saved_tensors import Part, file_name, split, whole_tensors, write_hashed, write_tensors


class CheckpointFiles(CheckpointIO):
    """What this rank writes of one checkpoint at a time."""

    def __init__(self, background: bool) -> None:
        self.background = background
        self.sums: dict[str, str] = {}
        """SHA-256 of each file that was written, in hex, by name."""
        self.error: Exception | None = None
        """Why the last files could not be written."""
        self._thread: threading.Thread | None = None
        self._copies: dict[str, Tensor] = {}
        """Host memory for the copy of the state; it is kept, because a GPU's pinned memory is slow to get."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Starts to write FILE (`path`) and this rank's file of tensors, or writes them; errors are kept for `wait`.

        storage_options: (number of this rank's file, how many files there are); alone by default.
        """
        self.wait()
        number, files = storage_options or (0, 1)
        state, parts = split(checkpoint)
        around = None
        if number == 0:
            buffer = io.BytesIO()
            torch.save(state | {FILES: files}, buffer)
            around = buffer.getvalue()
        if self.background:
            parts = self._copied(parts)
        self.sums, self.error = {}, None
        arguments = (Path(path).parent, file_name(number, files), around, parts)
        if not self.background:
            self._write(*arguments)
            return
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def _copied(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """The same parts in host memory. The host waits until a GPU has delivered them."""
        on_gpu = any(part.values.is_cuda for part in parts.values())
        for name, part in parts.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != part.values.shape:
                copy = torch.empty_like(part.values, device="cpu", pin_memory=on_gpu)
            self._copies[name] = copy.copy_(part.values, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return {name: Part(part.first, self._copies[name]) for name, part in parts.items()}

    def _write(self, folder: Path, name: str, around: bytes | None, parts: Mapping[str, Part]) -> None:
        try:
            if around is not None:
                self.sums[FILE] = write_hashed(folder / FILE, [around])
            self.sums[name] = write_tensors(folder / name, parts)
        except Exception as why:  # noqa: BLE001 - the training thread raises it
            self.error = why

    @property
    def is_writing(self) -> bool:
        """Whether this rank has not finished its files yet."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits until this rank has finished its files, or failed to write them."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns the saved state with whole tensors on the CPU, memory-mapped where they lie in one file."""
        return whole_tensors(read_checkpoint(Path(path).parent))

    def remove_checkpoint(self, path: Any) -> None:
        """Is not used: callbacks/checkpoints.py removes folders."""
        raise NotImplementedError
