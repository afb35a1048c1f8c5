"""Checkpoints of a run: a folder each, written whole or not at all, with the resolved configuration beside the weights.

RUN/checkpoints/step-0000100/checkpoint.ckpt    weights, optimiser, loader and loop state (Lightning's format)
RUN/checkpoints/step-0000100/config.yaml        the resolved run

Weights that are frozen under adapters are left out: they are read again from where the run found them. `base_sha256`
in the checkpoint makes sure that they are the same.
"""

import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from tqdm import tqdm

from model.checkpoint import check_names
from model.errors import UserError
from ppx_train.build import check_base
from ppx_train.config import Run, load_saved
from ppx_train.module import DuplexModule
from ppx_train.origin import KEY, origin

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


class StopSignals(L.Callback):
    """Turns SIGINT and SIGTERM into a wish that all processes follow at the end of a step.

    Comes before the other callbacks, so that a signal during the first held-out score is not lost.
    """

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        def ask_to_stop(number: int, _: FrameType | None) -> None:
            if module.stop_signal:  # a second signal does not wait for the step to end
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            module.stop_signal = number
            tqdm.write("stopping after this step; a second signal stops at once")

        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, ask_to_stop)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Checkpoints(L.Callback):
    """Saves every `checkpoint_every` steps, at the end, and when a signal asks the run to stop."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.folder = Path(run.run_dir) / "checkpoints"
        self.saved = -1
        self.origin: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        self.saved = trainer.global_step
        self.origin = origin(self.run)
        if trainer.is_global_zero:  # only now: a run that fails to start leaves no folder behind
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder.parent / CONFIG).write_text(self.run.to_yaml(), "utf-8")

    def on_save_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        checkpoint[KEY] = self.origin
        if module.base_sha256 is None:
            return
        trained = {f"lm.{name}" for name, parameter in module.lm.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint[BASE] = module.base_sha256

    def on_load_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        check_base(self.run, module.base_sha256, checkpoint.get(BASE))

    def on_train_batch_end(self, trainer: L.Trainer, module: DuplexModule, *_: Any) -> None:  # type: ignore[override]
        step = trainer.global_step
        due = step % self.run.trainer.checkpoint_every == 0 or step == self.run.steps
        # every process decides the same: stop_signal was shared when the step began, a later one waits for the next
        if (due or module.stop_agreed) and step != self.saved:
            self._save(trainer, step)
        if module.stop_agreed:
            trainer.should_stop = True

    def _save(self, trainer: L.Trainer, step: int) -> None:
        self.saved = step
        final = self.folder / f"step-{step:07d}"
        partial = final.with_suffix(".partial")
        if trainer.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)  # left by a save that was cut off
            partial.mkdir(parents=True)
        trainer.save_checkpoint(partial / FILE, weights_only=False)  # a collective: every process takes part
        if trainer.is_global_zero:
            (partial / CONFIG).write_text(self.run.to_yaml(), "utf-8")
            shutil.rmtree(final, ignore_errors=True)  # only an incomplete one can be here: complete ones are resumed
            os.replace(partial, final)
            keep = self.run.trainer.keep_checkpoints
            for old in checkpoints(self.folder.parent)[:-keep] if keep else []:
                shutil.rmtree(old)
        trainer.strategy.barrier()
