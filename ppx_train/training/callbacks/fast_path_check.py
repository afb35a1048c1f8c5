"""Checks the fast paths on each rank's device before the model of a run is made."""

from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from model.kernels import fast_paths
from model.kernels.fast_paths import NAMES
from ppx_train.config.run import Run
from ppx_train.training.fast_paths import settle

OFF = "fast_paths_off"
"""The key of the names in a saved state."""


class FastPathCheck(L.Callback):
    """Switches off what differs from plain torch, with a line for each; a run that resumes says what has changed."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Compares and decides; nothing lies on the device yet."""
        fast_paths.switch_all_on()
        if not self.run.trainer.check_fast_paths:
            return
        device = trainer.strategy.root_device
        try:
            found = settle(self.run, device)
        except torch.OutOfMemoryError:
            tqdm.write("fast paths were not checked: the device has no room for it; they stay on")
            return
        finally:
            if device.type == "cuda":  # The peak is that of the run.
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
        for verdict in found if trainer.is_global_zero else ():
            where = "" if not verdict.agrees else "on another rank it differs; here "
            tqdm.write(f"off from now on: {', '.join(verdict.names)}: {where}{verdict}")

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves which paths are off."""
        checkpoint[OFF] = off_now()

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Says which paths were off and are not, or the other way round; earlier versions had all of them on."""
        changed = sorted(set(off_now()) ^ set(checkpoint.get(OFF, [])))
        if changed and trainer.is_global_zero:
            tqdm.write(
                f"{', '.join(changed)}: on or off now, unlike before; the samples are the same, losses go on up to "
                "rounding"
            )


def off_now() -> list[str]:
    """Returns the names of the paths that are off."""
    return [name for name in NAMES if not fast_paths.is_on(name)]
