"""The figures of a list of scripts."""

from collections.abc import Sequence
from typing import Any

from data_pipelines.records.schema import Script
from data_pipelines.writer.stats import ScriptStats


def figures_of(scripts: Sequence[Script]) -> dict[str, Any]:
    """As they stand in the statistics beside a scripts file."""
    stats = ScriptStats()
    for script in scripts:
        stats.add(script)
    return stats.result()
