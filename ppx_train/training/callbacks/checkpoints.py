"""Writes the checkpoints of a run, each whole or not at all."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from data_pipelines.files import sha256
from model.files import write_bytes
from ppx_train.config.load import Job
from ppx_train.training.build import check_base
from ppx_train.training.checkpoint import BASE, CONFIG, DATA, FILE, add_sum, checkpoints
from ppx_train.training.module import DuplexModule
from ppx_train.training.origin import KEY, origin


class Checkpoints(L.Callback):
    """Saves every `checkpoint_every` steps, after the last step, and when a signal asks the run to stop."""

    def __init__(
        self, run: Job, data: Mapping[str, str], beside: Mapping[str, Callable[[], bytes]] | None = None
    ) -> None:
        """data: the shards of the run, by `data_hashes`, on the first rank, which alone writes.

        beside: names of further files of a checkpoint, each with what returns its content.
        """
        self.run, self.data, self.beside = run, data, beside or {}
        self.folder = Path(run.run_dir) / "checkpoints"
        self.saved = -1
        self.origin: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Makes the folder and writes the resolved configuration."""
        self.saved = trainer.global_step
        self.origin = origin(self.run)
        if trainer.is_global_zero:  # Only now, so that a run that fails to start leaves no folder behind.
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob("*.partial"):  # A run that was killed while it saved leaves it behind.
                shutil.rmtree(partial)
            write_bytes(self.folder.parent / CONFIG, self.run.to_yaml().encode())

    def on_save_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Adds the origin and the data, and takes out the weights that are frozen under adapters."""
        checkpoint[KEY] = self.origin
        checkpoint[DATA] = dict(self.data)
        if module.base_sha256 is None:
            return
        trained = {f"lm.{name}" for name, parameter in module.lm.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint[BASE] = module.base_sha256

    def on_load_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Raises UserError if the adapters of the checkpoint belong to other start weights."""
        check_base(self.run.model.init, module.base_sha256, checkpoint.get(BASE))

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
        keep = self.run.trainer.keep_checkpoints
        try:
            if trainer.is_global_zero:
                if keep:
                    self._prune(max(keep - 1, 1))  # Makes room for the new one; the newest stays until that is whole.
                partial.mkdir(parents=True)
            trainer.save_checkpoint(partial / FILE, weights_only=False)  # All ranks take part in this.
            if trainer.is_global_zero:
                config = self.run.to_yaml().encode()
                write_bytes(partial / CONFIG, config)
                add_sum(partial / CONFIG, sha256(config))
                for name, content in self.beside.items():
                    write_bytes(partial / name, content())
                # Only an incomplete one can be here, since complete ones are resumed.
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)
        except BaseException:
            if trainer.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if trainer.is_global_zero and keep:
            self._prune(keep)
        trainer.strategy.barrier()

    def _prune(self, keep: int) -> None:
        """Removes the run's own complete checkpoints but for the newest ones."""
        for old in checkpoints(self.folder.parent)[:-keep]:
            shutil.rmtree(old)
