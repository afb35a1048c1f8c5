"""A profile of a few steps, for `chrome://tracing`, Perfetto or TensorBoard."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from torch.profiler import profile
from tqdm import tqdm


class Profile(L.Callback):
    """Records steps `first` to `last` on the first rank, and leaves the trace in RUN/profile.

    A run that resumes within these steps records the rest of them. The first recorded step also takes the time that the
    profiler needs to start.
    """

    def __init__(self, run_dir: Path, first: int, last: int) -> None:
        self.folder, self.first, self.last = run_dir / "profile", first, last
        self.profiler: profile | None = None
        self.began = 0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Starts with the first step."""
        step = trainer.global_step + 1
        if trainer.is_global_zero and self.profiler is None and self.first <= step <= self.last:
            self.profiler, self.began = profile(), step
            self.profiler.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Writes the trace after the last step."""
        if trainer.global_step >= self.last:
            self._write(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes what there is if the run was stopped before the last step."""
        self._write(trainer.global_step)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Ends the recording."""
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None

    def _write(self, step: int) -> None:
        if self.profiler is None:
            return
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"steps-{self.began}-{step}.json"
        partial = path.with_suffix(".partial")
        self.profiler.export_chrome_trace(str(partial))
        os.replace(partial, path)
        self.profiler = None
        tqdm.write(f"profile: {path}")
