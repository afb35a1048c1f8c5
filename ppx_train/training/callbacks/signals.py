"""SIGINT and SIGTERM end a run after the current step."""

import os
import signal
from types import FrameType
from typing import Any

import lightning as L
from tqdm import tqdm

from ppx_train.training.module import DuplexModule


class StopSignals(L.Callback):
    """On SIGINT or SIGTERM, all ranks stop together after the current step.

    It comes before the other callbacks, so that a signal during the first held-out score is not lost.
    """

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Takes over both signals."""

        def ask_to_stop(number: int, _: FrameType | None) -> None:
            if module.stop_signal:  # A second signal does not wait for the end of the step.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            module.stop_signal = number
            tqdm.write("stopping after this step; a second signal stops at once")

        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, ask_to_stop)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Gives both signals back to their former handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
