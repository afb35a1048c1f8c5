"""Checkpoints of a run on disk: one folder each, with the resolved configuration beside the weights.

A folder appears whole or not at all (see callbacks/checkpoints.py).

RUN/checkpoints/step-0000100/checkpoint.ckpt    weights, optimiser, loader and loop state (Lightning's format)
RUN/checkpoints/step-0000100/config.yaml        the resolved run

Weights that are frozen under adapters are not saved: they are read again from where the run found them. `base_sha256`
in the checkpoint proves that they are still the same.
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
    """Saves a checkpoint straight to its place; Lightning would write a copy to the system's temporary folder first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one file. Raises: OSError as the system reports it, e.g. for a full disk."""
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as why:  # After a full disk torch closes its archive, which fails a second time.
            if isinstance(why.__context__, OSError):
                raise why.__context__ from None
            raise


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
RESUMABLE_TRAINER = {"checkpoint_every", "keep_checkpoints", "heldout_every", "threads"}


def check_same_run(run: Run, checkpoint: Path) -> None:
    """Checks that `run` computes what the run of `checkpoint` computed.

    Raises: UserError naming the first setting that differs and would change the result.
    """
    saved = load_saved(checkpoint / CONFIG)
    for key, ours, theirs in _differences("", run, saved):
        top, _, rest = key.partition(".")
        if top in RESUMABLE or (top == "trainer" and rest in RESUMABLE_TRAINER):
            continue
        raise UserError(
            f"{key}={ours} but {checkpoint.parent.parent} was started with {theirs}: "
            "resume with the same settings, or start another run_dir",
            code="other-settings",
        )


def _differences(prefix: str, ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    if not hasattr(ours, "__dataclass_fields__"):
        return [] if ours == theirs else [(prefix, ours, theirs)]
    found = []
    for name in ours.__dataclass_fields__:
        key = f"{prefix}.{name}" if prefix else name
        found += _differences(key, getattr(ours, name), getattr(theirs, name))
    return found
