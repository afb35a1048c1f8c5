"""What is wrong with a recording as a voice: its length, level, clipping, noise, share of speech, number of speakers.

The limits were set on utterances of text-to-speech voices; docs/how-to/voices.md has the rates of false alarms and
misses on others, and `scripts/bench/voice_clips.py` measures them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CHECKS = ("level", "clipping", "noise", "speech", "speakers")
"""What is checked beside the length, and may be skipped."""
QUIETEST_LUFS = -50.0
"""A softer clip is raised by more than 26 dB, and the steps of 16 bits with it."""
LEAST_SPREAD_DB = 18.0
LEAST_SPEECH_SHARE = 0.5
LEAST_LIKENESS = 0.7


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What is measured of a clip. clipped: places where the tops of waves are cut off.

    spread_db: between its loud and its quiet 20 ms, 90th and 10th percentile, which noise makes small.
    speech_share: of its length, pauses of up to a quarter of a second included; None if it was not asked for.
    likeness: of the two most different parts, by their embeddings; None if unasked, or with less than two windows.
    """

    seconds: float
    lufs: float
    clipped: int
    spread_db: float
    speech_share: float | None = None
    likeness: float | None = None


def faults(facts: ClipFacts, skip: Sequence[str] = ()) -> dict[str, str]:
    """What is wrong with a clip and what to do, by the name of the check."""
    found = {}
    if facts.lufs < QUIETEST_LUFS:
        level = "it is silent" if facts.lufs == float("-inf") else f"it is too quiet ({facts.lufs:.0f} LUFS)"
        found["level"] = f"{level}, record it closer to the microphone"
    if facts.clipped:
        found["clipping"] = f"it is clipped at {facts.clipped} places, record it at a lower level"
    if facts.spread_db < LEAST_SPREAD_DB:
        found["noise"] = (
            f"it is noisy (loud and quiet parts differ by {facts.spread_db:.1f} dB, {LEAST_SPREAD_DB:.1f} are needed), "
            "record it in a quiet room without music"
        )
    if facts.speech_share is not None and facts.speech_share < LEAST_SPEECH_SHARE:
        found["speech"] = f"only {facts.speech_share:.0%} of it is speech, cut the rest away"
    if facts.likeness is not None and facts.likeness < LEAST_LIKENESS:
        found["speakers"] = (
            f"more than one person seems to speak (its parts are alike by {facts.likeness:.2f}, "
            f"{LEAST_LIKENESS:.2f} are needed), cut out one of them"
        )
    if "level" in found:  # What is silent is not noisy as well.
        found = {"level": found["level"]}
    return {name: fault for name, fault in found.items() if name not in skip}
