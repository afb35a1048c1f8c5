"""What the server counts, in the format of Prometheus."""

import asyncio
import time
from collections import deque

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from model.config import FRAME_RATE, SAMPLE_RATE
from ppx_train.inference.call import Call
from ppx_train.inference.engine import TICK_SECONDS, LiveEngine

TICK_BUCKETS = tuple(ms / 1000 for ms in (2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 160, 320))
LAG_BUCKETS = tuple(ms / 1000 for ms in (1, 2, 5, 10, 20, 50, 100, 500))
TICKS_KEPT = int(300 * FRAME_RATE)
"""Ticks of which percentiles are made: those of the last five minutes."""
LAG_INTERVAL = 0.05
LAGS_KEPT = 1200
"""Measurements of the event loop's lag of which percentiles are made: those of the last minute."""


class Metrics:
    """Figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.ended = Counter("ppx_calls", "Calls that have ended, by reason.", ["reason"], registry=registry)
        self.refused = Counter(
            "ppx_refusals", "Requests refused before a call, by status.", ["status"], registry=registry
        )
        self._ticks = Histogram("ppx_tick_seconds", "Time of a tick.", buckets=TICK_BUCKETS, registry=registry)
        self._lag = Histogram("ppx_loop_lag_seconds", "Lag of the event loop.", buckets=LAG_BUCKETS, registry=registry)
        self._setup = Histogram(
            "ppx_ready_seconds", "From the connection to the handshake.", buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10),
            registry=registry,
        )  # fmt: skip
        self._gauges: dict[str, Gauge] = {}
        self._lags: deque[float] = deque(maxlen=LAGS_KEPT)
        self._seen_ticks = 0
        self._recent: deque[float] = deque(maxlen=TICKS_KEPT)

    def note_lag(self, seconds: float) -> None:
        """Adds a measurement of the event loop's lag."""
        self._lag.observe(seconds)
        self._lags.append(seconds)

    def note_ready(self, seconds: float) -> None:
        """Adds the time from a connection to its handshake."""
        self._setup.observe(seconds)

    def lag(self, share: float) -> float:
        """The lag, in seconds, that this share of the last minute's measurements stays below; 0 without any."""
        return sorted(self._lags)[int(share * (len(self._lags) - 1))] if self._lags else 0.0

    def ticks(self) -> dict[str, float]:
        """Percentiles and the longest of the newest ticks, in milliseconds; nothing before the first tick."""
        if not self._recent:
            return {}
        ordered = sorted(self._recent)
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {name: round(1000 * ordered[int(share * (len(ordered) - 1))], 2) for name, share in shares.items()}

    def note_ticks(self, engine: LiveEngine) -> None:
        """Takes over the ticks since the last time; to be called every few seconds at most."""
        new = engine.figures.ticks - self._seen_ticks
        self._seen_ticks += new
        times = list(engine.figures.tick_seconds)
        for seconds in times[len(times) - min(new, len(times)) :]:
            self._ticks.observe(seconds)
            self._recent.append(seconds)

    def page(self, engine: LiveEngine | None, slots: int, unsent: int) -> bytes:
        """The page that Prometheus reads. unsent: frames that wait for slow clients."""
        if engine is not None:
            self.note_ticks(engine)
            figures = engine.figures
            recent = list(figures.tick_seconds)[-125:]
            self._set("ppx_calls_active", "Calls that have a slot.", slots - engine.conversations.free)
            self._set("ppx_calls_queued", "Callers that wait for a slot.", engine.queued)
            self._set("ppx_slots", "Calls that fit.", slots)
            self._set("ppx_ticks_missed", "Ticks that came a whole tick too late.", figures.missed)
            self._set("ppx_frames", "Frames that were spoken.", figures.frames)
            self._set("ppx_frames_late", "Ticks in which a call had no sound to go on with.", figures.late)
            self._set("ppx_frames_dropped", "Frames of callers that were dropped.", figures.dropped)
            self._set("ppx_frames_backlog", "Frames of callers that wait.", sum(c.backlog for c in engine.calls()))
            mean = sum(recent) / len(recent) if recent else 0.0
            self._set("ppx_real_time_factor", "Time of a tick over 80 ms, mean of 10 s.", mean / TICK_SECONDS)
        self._set("ppx_frames_unsent", "Frames that wait for clients that read slowly.", unsent)
        if torch.cuda.is_available():
            self._set("ppx_gpu_bytes", "Memory of the GPU in use.", torch.cuda.memory_allocated())
        return generate_latest(self.registry)

    def _set(self, name: str, text: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, registry=self.registry)
        self._gauges[name].set(value)


class LoopClock:
    """Measures how late the event loop wakes up, and shows that it still does."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.last_beat = time.monotonic()

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_INTERVAL)
            self.last_beat = time.monotonic()
            self._metrics.note_lag(max(0.0, self.last_beat - before - LAG_INTERVAL))


def call_stats(call: Call, engine: LiveEngine, seconds: float) -> dict[str, float]:
    """What a client may know about its call, and about the ticks of the last `seconds`."""
    ticks = list(engine.figures.tick_seconds)[-int(seconds * FRAME_RATE) :]
    return {
        "tick_ms": round(1000 * sum(ticks) / max(1, len(ticks)), 1),
        "budget_ms": round(1000 / FRAME_RATE),
        "missed": engine.figures.missed,
        "cut_ms": round(1000 * call.cut_samples / SAMPLE_RATE),
        "late": call.late,
        "dropped": call.dropped,
        "backlog_ms": round(1000 * call.backlog / FRAME_RATE),
    }
