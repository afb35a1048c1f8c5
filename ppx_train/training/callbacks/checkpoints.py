"""Writes the checkpoints of a run, each whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L

from ppx_train.config import Run
from ppx_train.training.build import check_base
from ppx_train.training.checkpoint import BASE, CONFIG, FILE, checkpoints
from ppx_train.training.module import DuplexModule
from ppx_train.training.origin import KEY, origin


class Checkpoints(L.Callback):
    """Saves every `checkpoint_every` steps, after the last step, and when a signal asks the run to stop."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.folder = Path(run.run_dir) / "checkpoints"
        self.saved = -1
        self.origin: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Makes the folder and writes the resolved configuration."""
        self.saved = trainer.global_step
        self.origin = origin(self.run)
        if trainer.is_global_zero:  # Only now, so that a run that fails to start leaves no folder behind.
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder.parent / CONFIG).write_text(self.run.to_yaml(), "utf-8")

    def on_save_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Adds the origin, and takes out the weights that are frozen under adapters."""
        checkpoint[KEY] = self.origin
        if module.base_sha256 is None:
            return
        trained = {f"lm.{name}" for name, parameter in module.lm.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint[BASE] = module.base_sha256

    def on_load_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Raises UserError if the adapters of the checkpoint belong to other start weights."""
        check_base(self.run, module.base_sha256, checkpoint.get(BASE))

    def on_train_batch_end(self, trainer: L.Trainer, module: DuplexModule, *_: Any) -> None:  # type: ignore[override]
        """Saves if this step is due or a signal was caught, and then stops the run."""
        step = trainer.global_step
        due = step % self.run.trainer.checkpoint_every == 0 or step == self.run.steps
        # All ranks decide alike: stop_agreed was shared when the step began; a later signal waits for the next step.
        if (due or module.stop_agreed) and step != self.saved:
            self._save(trainer, step)
        if module.stop_agreed:
            trainer.should_stop = True

    def _save(self, trainer: L.Trainer, step: int) -> None:
        self.saved = step
        final = self.folder / f"step-{step:07d}"
        partial = final.with_suffix(".partial")
        if trainer.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)  # A save that was cut off leaves it behind.
            partial.mkdir(parents=True)
        trainer.save_checkpoint(partial / FILE, weights_only=False)  # All ranks take part in this.
        if trainer.is_global_zero:
            (partial / CONFIG).write_text(self.run.to_yaml(), "utf-8")
            shutil.rmtree(
                final, ignore_errors=True
            )  # Only an incomplete one can be here, since complete ones are resumed.
            os.replace(partial, final)
            keep = self.run.trainer.keep_checkpoints
            for old in checkpoints(self.folder.parent)[:-keep] if keep else []:
                shutil.rmtree(old)
        trainer.strategy.barrier()
