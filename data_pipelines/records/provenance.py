"""What later stages read out of a provenance: topics, engines, gates, and whether a voice may be passed on.

A provenance is a free mapping that each stage adds to. Only the functions here look into it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.errors import UserError

GATE_LIMITS, GATE_ENGINES = "gate_limits", "gate_engines"
"""Keys under which the limits of the gates and their engines are noted when a dialogue is loaded."""
NAMED_ENGINES = ("word_times", "resampler", "aligner", "asr", "engine", "model")
"""Keys under which an engine may be a plain name; a record with name and version always is an engine."""
RECORDED = "recorded"
"""Key that is true in every dialogue that was recorded and not spoken by an engine."""
CLONED = "cloned_voices"
"""Key of the terms of voices that an engine imitated, by side: {"left": {"licence": ..., "consent": ...}}."""
MASKED = "masked"
"""Key of how many personal stretches of each kind were masked; it is there, if only empty, where --mask was given."""
RECOGNISED = "recognised"
"""Key of the spans whose words a recogniser heard and nobody wrote, by side: {"left": [[1.2, 2.3]], "right": []}."""
PRESET_ENGINES = ("dia", "espeak", "kokoro")
"""Engines whose voices are their own: the key of such a voice begins with the engine's name."""
PRESET_CONSENT = "synthetic voice of a text-to-speech engine, no natural speaker"


@dataclass(kw_only=True, frozen=True)
class VoiceRights:
    """Why a voice may be passed on. licence: of a cloned voice; None for an engine's own voice."""

    consent: str
    licence: str | None = None


def voice_rights(provenance: Mapping[str, Any], side: str, speaker: str) -> VoiceRights:
    """The right to pass on the voice of a side, if the record states one: whatever it does not allow is refused.

    Raises: UserError that names the speaker and the fix (code "licence").
    """
    give = "give --include-voices a folder of voices, or none"
    if is_recorded(provenance):
        raise UserError(f"voice {speaker!r} is of a recorded person: {give}", code="licence")
    cloned = provenance.get(CLONED)
    terms = cloned.get(side) if isinstance(cloned, Mapping) else None
    if isinstance(terms, Mapping):
        licence, consent = (terms.get(key) for key in ("licence", "consent"))
        if isinstance(licence, str) and isinstance(consent, str) and licence.strip() and consent.strip():
            return VoiceRights(licence=licence, consent=consent)
        raise UserError(f"voice {speaker!r} was cloned without licence and consent: {give}", code="licence")
    engine = provenance.get("engine")
    name = engine.get("name") if isinstance(engine, Mapping) else None
    if name in PRESET_ENGINES and speaker.startswith(f"{name}/"):
        return VoiceRights(consent=PRESET_CONSENT)
    raise UserError(
        f"voice {speaker!r} is not known as an engine's own or as cloned with consent: speak its dialogues again, or "
        f"{give}",
        code="licence",
    )


def is_recorded(provenance: Mapping[str, Any]) -> bool:
    """True unless the key is missing or false: any other value stands for people."""
    return provenance.get(RECORDED, False) is not False


def is_masked(provenance: Mapping[str, Any]) -> bool:
    """True if personal numbers and names were masked in a dialogue."""
    return isinstance(provenance.get(MASKED), Mapping)


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
