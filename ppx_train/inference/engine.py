"""The live engine: one thread owns the model and moves all calls on, a frame of 80 ms at a time.

A call takes the user's sound from any thread (`Call.hear`), and reports what happens by events. The engine knows no
transport. In each tick, every call that has a whole frame of sound advances; what is left of the 80 ms goes to
the prompts of callers who join.
"""

# Shapes: S samples (at 24 kHz)

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from model.config import FRAME_RATE, FRAME_SAMPLES
from model.errors import UserError
from ppx_train.inference.call import CATCH_UP_TICKS, PHASE_SAMPLES, Call, CallEvent, Reason
from ppx_train.inference.conversations import PART_FRAMES, Conversations
from ppx_train.inference.session import Audio, Session, SessionSettings

TICK_SECONDS = 1 / FRAME_RATE
SLACK_SECONDS = 0.01
"""What is kept free before the next tick when prompts are fed."""
PART_STEP = 8
"""The smallest part of a prompt, and by how many frames parts grow."""
MOST_QUEUED = 32
"""Callers that may wait for a slot."""

logger = logging.getLogger(__name__)


@dataclass
class Figures:
    """What the engine counts, for metrics; seconds where it says so."""

    ticks: int = 0
    missed: int = 0
    """Ticks that began a whole tick too late."""
    frames: int = 0
    dropped: int = 0
    late: int = 0
    calls: int = 0
    tick_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=2000))
    prompt_seconds: float = 0.0
    """Time of the last part of a prompt."""
    part_frames: int = 2 * PART_STEP
    """Frames of the next part: more after each that was done in time, half after one that was late."""


class LiveEngine:
    """Runs calls on the slots of `conversations`; `start` and `stop` it, and `begin` calls while it runs."""

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations
        self.figures = Figures()
        self.failure: BaseException | None = None
        """What ended the thread, if it was not `stop`."""
        self.last_tick = time.monotonic()
        self._lock = threading.Lock()
        self._queue: deque[Call] = deque()
        self._calls: dict[Session, Call] = {}
        self._draining = False
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, reason: Reason = "draining") -> None:
        """Ends all calls and the thread."""
        self._draining = True
        for call in self.calls():
            call.leave(reason)
        self._stops.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def drain(self) -> None:
        """Takes no more calls; those that there are go on."""
        self._draining = True

    def calls(self) -> list[Call]:
        """All calls, those that wait for a slot too."""
        with self._lock:
            return [*self._calls.values(), *self._queue]

    @property
    def queued(self) -> int:
        """Callers that wait for a slot."""
        return len(self._queue)

    @property
    def is_healthy(self) -> bool:
        """Whether ticks come on time: the last one is younger than ten of them."""
        return self.failure is None and time.monotonic() - self.last_tick < 10 * TICK_SECONDS

    def begin(
        self, settings: SessionSettings, tell: Callable[[CallEvent], None], most_frames: int | None = None
    ) -> Call:
        """Begins a call, or queues it until a slot is free. most_frames: after which it ends.

        Raises: UserError if the engine takes no calls ("in-use"), too many wait, or the settings cannot be.
        """
        self.conversations.check(settings)
        with self._lock:
            if self._draining or self.failure is not None:
                raise UserError("the engine takes no more calls: try again later", code="in-use")
            if len(self._queue) >= MOST_QUEUED:
                raise UserError(f"{len(self._queue)} callers wait already: try again later", code="in-use")
            call = Call(settings, tell, most_frames)
            self._queue.append(call)
        return call

    # The engine's thread

    def _run(self) -> None:
        try:
            started = time.monotonic()
            number = 0
            while not self._stops.is_set():
                number += 1
                behind = time.monotonic() - (started + number * TICK_SECONDS)
                if behind > TICK_SECONDS:
                    skipped = int(behind / TICK_SECONDS)
                    self.figures.missed += skipped
                    number += skipped
                self._stops.wait(max(0.0, started + number * TICK_SECONDS - time.monotonic()))
                self.tick(number, until=started + (number + 1) * TICK_SECONDS)
        except BaseException as why:
            logger.exception("the engine has failed")
            self.failure = why
        for call in self.calls():
            self._end(call, "internal" if self.failure else "draining")

    def tick(self, number: int, until: float) -> None:
        """One tick: ends and begins calls, moves on those that have sound, and feeds prompts up to the time `until`."""
        began = time.monotonic()
        self._part()
        self._seat()
        talking = [(session, call) for session, call in self._calls.items() if session.is_ready]
        self._advance(talking, number, is_extra=False)
        self._advance([(s, c) for s, c in talking if self._may_double(c, number)], number, is_extra=True)
        self.figures.ticks += 1
        self.last_tick = time.monotonic()
        self.figures.tick_seconds.append(self.last_tick - began)
        self._feed_prompts(until)

    def _part(self) -> None:
        """Ends the calls that asked for it or whose time is up."""
        for call in self.calls():
            session = call.session
            if call.leaves is None and session is not None and call.most_frames is not None:
                call.leaves = "limit" if session.frames >= call.most_frames else None
            if call.leaves is not None:
                self._end(call, call.leaves)

    def _end(self, call: Call, reason: Reason) -> None:
        with self._lock:
            if call in self._queue:
                self._queue.remove(call)
            if call.session is not None:
                self._calls.pop(call.session, None)
        if call.session is not None:
            self.conversations.leave(call.session)
        call.leaves = reason
        self._tell(call, CallEvent(kind="ended", reason=reason))

    def _seat(self) -> None:
        """Gives free slots to those who wait, in their order."""
        while self.conversations.free and self._queue:
            with self._lock:
                call = self._queue.popleft()
                call.session = self.conversations.join(call.settings)
                self._calls[call.session] = call
            self.figures.calls += 1
            self._tell(call, CallEvent(kind="prompting"))
            if call.session.is_ready:
                self._tell(call, CallEvent(kind="ready"))
        for position, call in enumerate(list(self._queue), 1):
            self._tell(call, CallEvent(kind="queued", position=position))

    def _may_double(self, call: Call, number: int) -> bool:
        assert call.session is not None
        is_over = call.most_frames is not None and call.session.frames >= call.most_frames
        # What stays behind lets the next frame be a little late: without it every other tick could find none.
        has_more = call.backlog >= 1 + PHASE_SAMPLES / FRAME_SAMPLES
        return has_more and number - call.doubled_at >= CATCH_UP_TICKS and not is_over

    def _advance(self, talking: list[tuple[Session, Call]], number: int, *, is_extra: bool) -> None:
        """One frame of the calls that have a whole one."""
        heard: dict[Session, Audio] = {}
        for session, call in talking:
            if not call.is_cut:
                call.cut_to_tick()
            before = call.dropped
            frame_S = call.next_frame()
            if call.dropped > before:
                self.figures.dropped += call.dropped - before
                self._tell(call, CallEvent(kind="dropped"))
            if frame_S is not None:
                heard[session] = frame_S
                call.doubled_at = number if is_extra else call.doubled_at
            elif not is_extra:
                call.late += 1
                self.figures.late += 1
        if not heard:
            return
        for session, frame in self.conversations.step(heard).items():
            self.figures.frames += 1
            self._tell(self._calls[session], CallEvent(kind="frame", frame=frame))

    def _feed_prompts(self, until: float) -> None:
        """Feeds prompts while a part fits before the next tick; one part at least of those that callers wait for.

        What a part takes depends little on its length on a GPU, or where others share the processor: its length is
        therefore found by trying, and not computed from the time of a frame.
        """
        figures, is_first = self.figures, any(not session.is_ready for session in self._calls)
        while self.conversations.has_prompts:
            began = time.monotonic()
            left = until - began - SLACK_SECONDS
            if not is_first and figures.prompt_seconds > left:
                return
            is_first = False
            waiting = [session for session in self._calls if not session.is_ready]
            self.conversations.feed_prompts(figures.part_frames)
            figures.prompt_seconds = time.monotonic() - began
            if figures.prompt_seconds > left:
                figures.part_frames = max(PART_STEP, figures.part_frames // 2)
            else:
                figures.part_frames = min(PART_FRAMES, figures.part_frames + PART_STEP)
            for session in waiting:
                if session.is_ready:
                    self._tell(self._calls[session], CallEvent(kind="ready"))

    def _tell(self, call: Call, event: CallEvent) -> None:
        """Hands over an event; a call whose receiver fails ends, and nobody else notices."""
        try:
            call.tell(event)
        except Exception:
            logger.exception("a call's receiver has failed")
            call.leave("internal")
