"""Ends a process that can no longer serve, so that whoever supervises it starts another."""

import logging
import os
import threading
import time
from collections.abc import Callable

from ppx_train.inference.engine import LiveEngine
from ppx_train.serve.metrics import LoopClock

EXIT_CODE = 70
"""As sysexits.h has it for an internal fault."""
GRACE_SECONDS = 2.0
"""What callers get to hear the reason."""
logger = logging.getLogger("ppx_train.serve")


class Watchdog:
    """A thread that looks at the engine and the event loop, and ends the process when one of them is stuck or broken.

    announce: is called from this thread with the reason, once, before the end. leave: ends the process.
    """

    def __init__(
        self, engine: LiveEngine, clock: LoopClock, seconds: float, announce: Callable[[str], None],
        leave: Callable[[int], object] = os._exit,
    ) -> None:  # fmt: skip
        self._engine, self._clock, self._seconds = engine, clock, seconds
        self._announce, self._leave = announce, leave
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and not the process."""
        self._stops.set()
        self._thread.join(timeout=5)

    def fault(self) -> str | None:
        """What is wrong, in words; None if nothing is."""
        now = time.monotonic()
        if self._engine.failure is not None:
            return f"the model has failed ({type(self._engine.failure).__name__})"
        if now - self._engine.last_tick > self._seconds:
            return f"a tick takes longer than {self._seconds:g} s"
        if now - self._clock.last_beat > self._seconds:
            return f"the event loop is stuck for more than {self._seconds:g} s"
        return None

    def _run(self) -> None:
        while not self._stops.wait(min(0.25, self._seconds / 4)):
            fault = self.fault()
            if fault is not None:
                logger.error("%s: the process ends with code %d", fault, EXIT_CODE)
                self._announce(fault)
                self._stops.wait(GRACE_SECONDS)
                self._leave(EXIT_CODE)
                return
