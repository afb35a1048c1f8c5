"""Checkpoints of a run on disk: one folder each, with the resolved configuration beside the weights.

A folder appears whole or not at all (see callbacks/checkpoints.py).

RUN/checkpoints/step-0000100/checkpoint.ckpt    weights, optimiser, loader and loop state (Lightning's format)
RUN/checkpoints/step-0000100/config.yaml        the resolved run
RUN/checkpoints/step-0000100/SHA256SUMS         checksums of both, as sha256sum writes them

Weights that are frozen under adapters are not saved: they are read again from where the run found them. `base_sha256`
in the checkpoint proves that they are still the same.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from data_pipelines.files import sha256_file
from data_pipelines.shards.index import ShardReader
from model.errors import UserError
from model.weights.checkpoint import check_names
from ppx_train.config.load import Job, load_saved

FILE, CONFIG, SUMS = "checkpoint.ckpt", "config.yaml", "SHA256SUMS"
BASE = "base_sha256"
DATA = "data_sha256"
"""The key of the shards in a saved state: the SHA-256 of each index, by folder and split."""


class PlainFiles(TorchCheckpointIO):
    """Saves a checkpoint straight to its place; Lightning would write a copy to the system's temporary folder first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one file and its checksum. Raises: OSError that names it, e.g. for a full disk."""
        path = Path(path)
        try:
            with open(path, "wb") as file:
                hashed = _Hashed(file)
                torch.save(checkpoint, hashed)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as why:
            # After a full disk torch closes its archive, which fails a second time, and hides the first error.
            first = why.__context__ if isinstance(why.__context__, OSError) else why
            if isinstance(first, OSError) and first.errno is not None:
                first.filename = str(path)
            raise first from None
        add_sum(path, hashed.digest.hexdigest())


class _Hashed:
    """A file that is hashed as it is written, so that the sum is of what was meant and need not be read back."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def add_sum(path: Path, value: str) -> None:
    """Adds the SHA-256 `value`, in hex, of a file of a checkpoint to the sums beside it."""
    sums = path.with_name(SUMS)
    with open(sums, "a", encoding="utf-8") as file:
        file.write(f"{value}  {path.name}\n")


def check_sums(folder: Path) -> None:
    """Compares the files of a checkpoint with their checksums; one of an earlier version, without any, is named.

    Raises: UserError naming the first file that is not as it was saved.
    """
    path = folder / SUMS
    if not path.is_file():
        print(f"{folder} has no {SUMS}, as an earlier version made it: it is used unchecked")
        return
    found = path.read_bytes()
    for name in (FILE, CONFIG):
        file = folder / name
        line = f"{sha256_file(file)}  {name}\n".encode() if file.is_file() else b""
        if not line or not found.startswith(line):
            raise UserError(
                f"{file} is damaged (its SHA-256 is not that in {SUMS}): move {folder} away to resume from the one "
                f"before, or remove {SUMS} if you have changed it yourself",
                code="bad-checkpoint",
            )
        found = found[len(line) :]


def data_hashes(readers: Iterable[ShardReader]) -> dict[str, str]:
    """Returns the SHA-256 of the index of each split, in hex, by its folder or URL."""
    return {str(reader.storage): reader.sha256 for reader in readers}


def check_same_data(
    found: Mapping[str, str], saved: Mapping[str, str] | None, *, step: int, allow_changed: bool
) -> None:
    """Compares the shards that a run finds with those of its checkpoint, by `data_hashes`; prints what has changed.

    saved: None for a checkpoint of an earlier version, which does not say. step: of the checkpoint.
    Raises: UserError with code "checksum" naming the first split that changed, unless `allow_changed`.
    """
    if saved is None:
        print("the checkpoint does not say which shards it was trained on, as an earlier version made it: not compared")
        return
    changed = sorted(name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name))
    if changed and not allow_changed:
        what = "has changed" if changed[0] in found and changed[0] in saved else "was added or removed"
        raise UserError(
            f"{changed[0]} {what} since step {step} (by its SHA-256): give the same data, or "
            "data.allow_changed=true to go on with others",
            code="checksum",
        )
    if changed:
        print(f"data.allow_changed: from step {step} on the run reads other data than before ({', '.join(changed)})")


def checkpoints(run_dir: Path) -> list[Path]:
    """Returns the complete checkpoint folders of a run, oldest first."""
    folders = run_dir.glob("checkpoints/step-*")
    return sorted(folder for folder in folders if folder.suffix != ".partial" and (folder / CONFIG).is_file())


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Returns the saved state, memory-mapped; no object is unpickled. Raises: UserError if the file is damaged."""
    try:
        state = torch.load(folder / FILE, map_location="cpu", mmap=True, weights_only=True)
    except Exception as why:  # For damaged files torch raises RuntimeError, EOFError, UnpicklingError and others.
        raise UserError(
            f"{folder / FILE} is damaged ({type(why).__name__}): move {folder} away to resume from the one before",
            code="bad-checkpoint",
        ) from why
    if not isinstance(state, dict) or "state_dict" not in state or "global_step" not in state:
        raise UserError(f"{folder / FILE} is not a checkpoint of ppx-train", code="bad-checkpoint")
    return state


def language_model(state: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the language model's tensors of a saved state, by their names in DuplexLM."""
    return {name[3:]: value for name, value in state["state_dict"].items() if name.startswith("lm.")}


def check_weights(folder: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Checks that a checkpoint holds exactly the tensors that train in its configuration.

    Raises: UserError naming `folder` and the first tensor that is missing, extra or misshapen.
    """
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        check_names(tensors, trained, strict=True)
    except UserError as why:
        raise UserError(f"{folder / FILE} is not of the model in {CONFIG} ({why})", code="bad-checkpoint") from why


# These settings may differ when a run is resumed: they change how it is watched and stored, not what it computes.
RESUMABLE = {"resume", "run_dir", "groups", "logging", "recipe"}
RESUMABLE_KEYS = {f"trainer.{name}" for name in ("checkpoint_every", "keep_checkpoints", "heldout_every", "threads")}
RESUMABLE_KEYS |= {"data.allow_changed", "trainer.profile", "trainer.hang_seconds", "trainer.check_fast_paths"}
# These change in which order sums are taken: the result is the same up to rounding.
PARALLEL_KEYS = {f"trainer.{name}" for name in ("strategy", "devices", "num_nodes", "shard_size", "offload")}
PARALLEL_KEYS |= {"data.micro_frames"}  # Where it is null, data.micro_batch differs too.


def check_same_run(run: Job, checkpoint: Path) -> list[str]:
    """Checks that `run` computes what the run of `checkpoint` computed.

    It returns, in words, what differs in how ranks share the work.
    Raises: UserError naming the first setting that differs and would change the result.
    """
    saved = load_saved(checkpoint / CONFIG, type(run))
    shared = []
    for key, ours, theirs in _differences("", run, saved):
        if key.partition(".")[0] in RESUMABLE or key in RESUMABLE_KEYS:
            continue
        if key in PARALLEL_KEYS:
            shared.append(f"{key}={ours} instead of {theirs}")
            continue
        raise UserError(
            f"{key}={ours} but {checkpoint.parent.parent} was started with {theirs}: "
            "resume with the same settings, or start another run_dir",
            code="other-settings",
        )
    return shared


def _differences(prefix: str, ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    if not hasattr(ours, "__dataclass_fields__"):
        return [] if ours == theirs else [(prefix, ours, theirs)]
    found = []
    for name in ours.__dataclass_fields__:
        key = f"{prefix}.{name}" if prefix else name
        found += _differences(key, getattr(ours, name), getattr(theirs, name))
    return found
