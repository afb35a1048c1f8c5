"""Ends a run that hangs, and says where."""

import faulthandler
import os
import sys
import threading
import time
from typing import Any

import lightning as L

from ppx_train.training.ranks import rank, world_size


class HangWatch(L.Callback):
    """Ends the process with exit code 1 if no step ends within `seconds`; every rank watches itself.

    The time between the ends of two steps holds waiting for data, held-out scores and checkpoints too. A process that
    is stuck cannot be asked to stop, since its main thread may wait in a collective operation for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stopped = threading.Event()
        self.since = 0.0
        self.step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts to watch."""
        self.since, self.step = time.monotonic(), trainer.global_step
        threading.Thread(target=self._watch, name="hang watch", daemon=True).start()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Notes that a step has ended."""
        self.since, self.step = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Ends the watch."""
        self.stopped.set()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Ends the watch."""
        self.stopped.set()

    def _watch(self) -> None:
        while not self.stopped.wait(min(1.0, self.seconds)):
            if time.monotonic() - self.since < self.seconds:
                continue
            # One write, because several ranks may share the stream.
            message = (
                f"\nerror: rank {rank()} of {world_size()}: no step ended within trainer.hang_seconds={self.seconds:g} "
                f"after step {self.step}; this is where its threads stand:\n"
            )
            stream = sys.__stderr__
            if stream is not None:
                stream.write(message)
                stream.flush()
                faulthandler.dump_traceback(file=stream, all_threads=True)
            os._exit(1)
