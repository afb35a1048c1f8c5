"""Checkpoints of a run: a folder each, written whole or not at all, with the resolved configuration beside the weights.

RUN/checkpoints/step-0000100/checkpoint.ckpt    weights, optimiser, loader and loop state (Lightning's format)
RUN/checkpoints/step-0000100/config.yaml        the resolved run

Weights that are frozen under adapters are left out: they are read again from where the run found them. `base_sha256`
in the checkpoint makes sure that they are the same.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from model.errors import UserError
from model.weights.checkpoint import check_names
from ppx_train.config import Run, load_saved

FILE, CONFIG = "checkpoint.ckpt", "config.yaml"
BASE = "base_sha256"


class PlainFiles(TorchCheckpointIO):
    """Saves straight to its place. Lightning would write a copy to the system's temporary folder first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as why:  # torch closes its archive after a full disk, and fails once more
            if isinstance(why.__context__, OSError):
                raise why.__context__ from None
            raise


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoint folders of a run, oldest first."""
    folders = run_dir.glob("checkpoints/step-*")
    return sorted(folder for folder in folders if folder.suffix != ".partial" and (folder / CONFIG).is_file())


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The saved state, memory-mapped, without unpickling objects. Raises UserError if the file is damaged."""
    try:
        state = torch.load(folder / FILE, map_location="cpu", mmap=True, weights_only=True)
    except Exception as why:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for damaged files
        raise UserError(
            f"{folder / FILE} is damaged ({type(why).__name__}): move {folder} away to go on from the one before"
        ) from why
    if not isinstance(state, dict) or "state_dict" not in state or "global_step" not in state:
        raise UserError(f"{folder / FILE} is not a checkpoint of ppx-train")
    return state


def language_model(state: dict[str, Any]) -> dict[str, Tensor]:
    """The language model's tensors in a saved state."""
    return {name[3:]: value for name, value in state["state_dict"].items() if name.startswith("lm.")}


def check_weights(folder: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Raises UserError naming `folder` if a checkpoint's tensors are not those that train in its configuration."""
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        check_names(tensors, trained, strict=True)
    except UserError as why:
        raise UserError(f"{folder / FILE} is not of the model in {CONFIG}: {why}") from why


# what may differ when a run goes on: it changes how the run is watched and stored, not what is computed
RESUMABLE = {"resume", "run_dir", "groups", "logging", "recipe"}
RESUMABLE_TRAINER = {"checkpoint_every", "keep_checkpoints", "heldout_every", "threads"}


def check_same_run(run: Run, checkpoint: Path) -> None:
    """Raises UserError naming the first setting that differs from the checkpoint's in a way that changes the result."""
    saved = load_saved(checkpoint / CONFIG)
    for key, ours, theirs in _differences("", run, saved):
        top, _, rest = key.partition(".")
        if top in RESUMABLE or (top == "trainer" and rest in RESUMABLE_TRAINER):
            continue
        raise UserError(
            f"{key}={ours} but {checkpoint.parent.parent} was started with {theirs}: "
            "resume with the same settings, or start another run_dir"
        )


def _differences(prefix: str, ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    if not hasattr(ours, "__dataclass_fields__"):
        return [] if ours == theirs else [(prefix, ours, theirs)]
    found = []
    for name in ours.__dataclass_fields__:
        key = f"{prefix}.{name}" if prefix else name
        found += _differences(key, getattr(ours, name), getattr(theirs, name))
    return found
