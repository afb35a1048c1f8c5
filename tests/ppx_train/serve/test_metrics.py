"""Figures that are made of measurements."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from ppx_train.serve.metrics import Metrics


def test_percentiles_of_ticks_are_those_of_all_that_were_taken_over() -> None:
    metrics = Metrics()
    assert metrics.ticks() == {}
    times = [n / 1000 for n in range(1, 102)]
    engine: Any = SimpleNamespace(figures=SimpleNamespace(ticks=0, tick_seconds=[]))
    for count in (60, 101, 101):  # The same ticks are not counted again.
        engine.figures.ticks, engine.figures.tick_seconds = count, times[:count]
        metrics.note_ticks(engine)
    assert metrics.ticks() == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "max": 101.0}
