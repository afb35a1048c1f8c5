"""The moving average of the weights that train: it is saved, scored and exported beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ppx_train.training.checkpoint import AVERAGE
from ppx_train.training.module import DuplexModule
from ppx_train.training.saved_tensors import held
from ppx_train.training.sharded import fill, reshard


def weight_of_step(decay: float, step: int) -> float:
    """Returns how far the average moves towards the weights after `step` updates: 1 - decay, and further at first.

    The average of the first steps would otherwise be mostly that of the start weights.
    """
    return 1 - min(decay, (1 + step) / (10 + step))


class Ema(L.Callback):
    """Averages after each update. Each rank averages what it holds of a weight, so that nothing is exchanged.

    It comes before the callbacks that score and save.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.shadows: dict[str, Tensor] = {}
        """The average of each weight, by its name in the module."""
        self.saved: dict[str, Any] = {}
        self.updates = 0

    def on_load_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Keeps the average until the weights are in place."""
        self.saved = checkpoint.pop(AVERAGE)

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Begins with the weights as they are, or with the average of the checkpoint."""
        reshard(module)
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.shadows = {name: value.detach().clone() for name, value in trained.items()}
        fill((self.shadows[name], value) for name, value in self.saved.items())
        self.saved, self.updates = {}, trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: DuplexModule, *_: Any) -> None:  # type: ignore[override]
        """Moves the average, unless the update was skipped."""
        if trainer.global_step == self.updates:
            return
        self.updates = trainer.global_step
        shadows, weights = self._pairs(module)
        torch._foreach_lerp_(shadows, weights, weight_of_step(self.decay, self.updates))

    def on_save_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Adds the average."""
        checkpoint[AVERAGE] = dict(self.shadows)

    def _pairs(self, module: DuplexModule) -> tuple[list[Tensor], list[Tensor]]:
        """What this rank holds of the averages, and of the weights."""
        reshard(module)
        named = dict(module.named_parameters())
        return (
            [held(shadow).values for shadow in self.shadows.values()],
            [held(named[name]).values for name in self.shadows],
        )

    @contextmanager
    def in_place(self, module: DuplexModule) -> Iterator[None]:
        """Lets the module compute with the average inside the block."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    @torch.no_grad()
    def _swap(self, module: DuplexModule) -> None:
        for shadow, weight in zip(*self._pairs(module), strict=True):
            before = weight.clone()
            weight.copy_(shadow)
            shadow.copy_(before)
