"""Writes the checkpoints of a run, each whole or not at all."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L

from model.errors import UserError
from model.files import write_bytes
from ppx_train.config.load import Job
from ppx_train.config.trainer import FSDP
from ppx_train.training.build import check_base
from ppx_train.training.checkpoint import BASE, CONFIG, DATA, FILE, SUMS, best_checkpoints, checkpoints, sum_lines
from ppx_train.training.checkpoint_files import CheckpointFiles
from ppx_train.training.module import DuplexModule
from ppx_train.training.origin import KEY, origin
from ppx_train.training.ranks import all_gather, world_size
from ppx_train.training.saved_tensors import write_hashed


class Checkpoints(L.Callback):
    """Saves every `checkpoint_every` steps, after the last step, and when a signal asks for it."""

    def __init__(
        self, run: Job, data: Mapping[str, str], beside: Mapping[str, Callable[[], bytes | None]] | None = None
    ) -> None:
        """data: the shards of the run, by `data_hashes`, on the first rank, which alone writes.

        beside: names of further files of a checkpoint, each with what returns its content, or None.
        """
        self.run, self.data, self.beside = run, data, beside or {}
        self.folder = Path(run.run_dir) / "checkpoints"
        self.saved = -1
        self.pending: Path | None = None
        """The folder of the checkpoint that is being written; it gets its final name once all ranks have written."""
        self.contents: dict[str, bytes] = {}
        """Its further files, by name."""
        self.origin: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Makes the folder and writes the resolved configuration."""
        self.saved = trainer.global_step
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        module.agreement.is_writing = lambda: files.is_writing
        self.origin = origin(self.run)
        if trainer.is_global_zero:  # Only now, so that a run that fails to start leaves no folder behind.
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob("*.partial"):  # A run that was killed while it saved leaves it behind.
                shutil.rmtree(partial)
            write_bytes(self.folder.parent / CONFIG, self.run.to_yaml().encode())
        trainer.strategy.barrier()
        if self.run.trainer.strategy in FSDP and not self.folder.is_dir():
            raise UserError(
                f"run_dir={self.folder.parent} is not the same folder on all nodes: each rank writes its part of a "
                "checkpoint there, so give a place that they share",
                code="cannot-write",
            )

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
        """Saves if this step is due or a signal asks for it, and then perhaps stops the run."""
        step, agreement = trainer.global_step, module.agreement
        # All ranks decide alike: they agreed when the step began; what came later waits for the next step.
        if not agreement.writing:
            self._finish(trainer)
        due = step % self.run.trainer.checkpoint_every == 0 or step == self.run.steps
        if (due or agreement.stop or agreement.save) and step != self.saved:
            self._finish(trainer)
            self._save(trainer, step)
        if agreement.stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Waits for the last checkpoint."""
        self._finish(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Completes the checkpoint that is being written, if no other rank takes part in it."""
        if world_size() == 1:
            with suppress(OSError):  # What failed first is reported.
                self._finish(trainer)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        """Begins a checkpoint; with trainer.async_save its files are written while training goes on."""
        self.saved = step
        partial = self.folder / f"step-{step:07d}.partial"
        try:
            if trainer.is_global_zero:
                if keep := self.run.trainer.keep_checkpoints:
                    self._prune(max(keep - 1, 1))  # Makes room for the new one; the newest stays until that is whole.
                partial.mkdir(parents=True)
            trainer.strategy.barrier()
            trainer.save_checkpoint(partial / FILE, weights_only=False)  # All ranks take part in this.
        except BaseException:
            if trainer.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        # As of this step, though they are written last.
        made = {CONFIG: self.run.to_yaml().encode()} | {name: content() for name, content in self.beside.items()}
        self.contents = {name: content for name, content in made.items() if content is not None}
        self.pending = partial
        if not self.run.trainer.async_save:
            self._finish(trainer)

    def _finish(self, trainer: L.Trainer) -> None:
        """Waits until all ranks have written the pending checkpoint, if there is one, and gives it its name.

        Raises: the error of the first rank that could not write, on all ranks.
        """
        if self.pending is None:
            return
        partial, self.pending = self.pending, None
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        files.wait()
        written = all_gather((files.sums, files.error))
        try:
            for error in (error for _, error in written if error is not None):
                raise error
            if trainer.is_global_zero:
                self._complete(partial, {name: value for sums, _ in written for name, value in sums.items()})
        except BaseException:
            if trainer.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _complete(self, partial: Path, sums: dict[str, str]) -> None:
        """Adds what lies beside the tensors, the checksums last, and removes what is not to be kept."""
        for name, content in self.contents.items():
            sums[name] = write_hashed(partial / name, [content])
        order = sorted(sums, key=lambda name: (name != FILE, name != CONFIG, name))
        write_hashed(partial / SUMS, [sum_lines({name: sums[name] for name in order})])
        final = partial.with_suffix("")
        shutil.rmtree(final, ignore_errors=True)  # Only an incomplete one can be here, since complete ones are resumed.
        os.replace(partial, final)
        if keep := self.run.trainer.keep_checkpoints:
            self._prune(keep)

    def _prune(self, keep: int) -> None:
        """Removes the run's own complete checkpoints but for the newest ones and the best."""
        found = checkpoints(self.folder.parent)
        best = best_checkpoints(found, self.run.trainer.keep_best)
        for old in found[:-keep]:
            if old not in best:
                going = old.with_suffix(".partial")  # Also a removal that is cut short leaves nothing that looks whole.
                os.replace(old, going)
                shutil.rmtree(going)
