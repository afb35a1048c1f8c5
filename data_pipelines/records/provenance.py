"""What later stages read out of a provenance: topics, engines, and the limits of the gates that judged a dialogue.

A provenance is a free mapping that each stage adds to. Only the functions here look into it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GATE_LIMITS, GATE_ENGINES = "gate_limits", "gate_engines"
"""Keys under which the limits of the gates and their engines are noted when a dialogue is loaded."""
NAMED_ENGINES = ("word_times", "resampler", "aligner", "asr", "engine", "model")
"""Keys under which an engine may be a plain name; a record with name and version always is an engine."""


def topic_of(provenance: Mapping[str, Any]) -> str:
    """The title of the topic that a corpus states for a call; "" if it states none."""
    topic = provenance.get("topic")
    return topic if isinstance(topic, str) else ""


def behaviours_of(provenance: Mapping[str, Any]) -> Sequence[str]:
    """What happens in a script that the writer wrote, such as "Q1" or "barge_in"; () for others."""
    behaviours: Sequence[str] = provenance.get("behaviours", ())
    return behaviours


def gate_limits_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The limits of the gates that judged a dialogue, by gate; {} if none did."""
    limits = provenance.get(GATE_LIMITS)
    return limits if isinstance(limits, Mapping) else {}


def engines_of(provenance: Mapping[str, Any]) -> list[str]:
    """Every engine that had a part in a dialogue, as "role: name version", sorted: what spoke, aligned, wrote, ..."""
    return sorted(set(_engines(provenance))) or ["engine: none stated"]


def _engines(provenance: Mapping[str, Any]) -> Iterator[str]:
    for role, value in provenance.items():
        if isinstance(value, Mapping) and "name" in value and ("version" in value or "model" in value):
            # A fetched model is named by its checksum as well, since versions of packages say nothing about it.
            parts = [value["name"], value.get("version"), value.get("model"), str(value.get("model_sha256", ""))[:12]]
            yield f"{role}: {' '.join(str(part) for part in parts if part)}"
        elif isinstance(value, Mapping):
            yield from _engines(value)
        elif role in NAMED_ENGINES and isinstance(value, str) and value:
            yield f"{role}: {value}"
