"""Signals that a run answers: SIGINT and SIGTERM save and end it after the current step, SIGUSR1 saves alone."""

import os
import signal
from types import FrameType
from typing import Any

import lightning as L
from tqdm import tqdm

from ppx_train.training.module import DuplexModule


class Signals(L.Callback):
    """All ranks save or stop together after the current step, whichever of them caught the signal.

    It comes before the other callbacks, so that a signal during the first held-out score is not lost.
    """

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Takes over the signals."""
        agreement = module.agreement

        def ask_to_stop(number: int, _: FrameType | None) -> None:
            if agreement.stop_signal:  # A second signal does not wait for the end of the step.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            agreement.stop_signal = number
            tqdm.write("stopping after this step; a second signal stops at once")

        def ask_to_save(_: int, __: FrameType | None) -> None:
            agreement.save_asked = True
            tqdm.write("saving after this step")

        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, ask_to_stop)
        self.previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, ask_to_save)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Gives the signals back to their former handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
