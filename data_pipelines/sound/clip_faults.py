"""What is wrong with a recording as a voice: its length, level, clipping, noise, share of speech, number of speakers.

The limits were set on utterances of text-to-speech voices; docs/how-to/voices.md has the rates of false alarms and
misses on others, and `scripts/bench/voice_clips.py` measures them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.sound.audio import ACCEPTED_VOICE_SECONDS, VOICE_SECONDS, Audio
from model.errors import UserError

CHECKS = ("level", "clipping", "noise", "speech", "speakers")
"""What is checked beside the length, and may be skipped."""
QUIETEST_LUFS = -50.0
"""A softer clip is raised by more than 26 dB, and the steps of 16 bits with it."""
LEAST_SPREAD_DB = 18.0
LEAST_SPEECH_SHARE = 0.5
LEAST_LIKENESS = 0.7
FLAT_TOPS, LOUD_PEAK = 3, 0.05
"""So often, three samples in a row at the very peak are clipping. A softer peak is a few steps of 16 bits."""


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


def check_length(seconds: float, where: object) -> None:
    """Raises UserError if a clip of this length is no voice prompt: 1 to 30 s are accepted."""
    (low, high), (advised, most) = ACCEPTED_VOICE_SECONDS, VOICE_SECONDS
    if not low <= seconds <= high:
        raise UserError(
            f"{where}: a voice prompt of {seconds:.1f} s; give {advised:.0f} to {most:.0f} s of one speaker "
            f"({low:.0f} to {high:.0f} s are allowed)",
            code="bad-audio",
        )


def faults(facts: ClipFacts, skip: Sequence[str] = ()) -> dict[str, str]:
    """What is wrong with a clip and what to do, by the name of the check."""
    found = {}
    if facts.lufs < QUIETEST_LUFS:
        level = "it is silent" if facts.lufs == -np.inf else f"it is too quiet ({facts.lufs:.0f} LUFS)"
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


def level_spread(x: Audio, rate: int) -> float:
    """Returns the difference in dB between the 90th and 10th percentile of the levels of 20 ms. Shape: [samples]."""
    hop = rate // 50
    power = np.square(x[: len(x) // hop * hop].astype(np.float64)).reshape(-1, hop).mean(axis=1)
    quiet, loud = np.percentile(10 * np.log10(power + 1e-12), (10, 90))
    return float(loud - quiet)


def flat_tops(x: Audio) -> int:
    """Returns how often three equal samples in a row are the highest of all, if that is more often than by chance.

    It finds clipping that was turned down afterwards, but not what was resampled or compressed since.
    """
    size = np.abs(x)
    peak = size.max(initial=0.0)
    top = size == peak
    runs = int((top[..., :-2] & top[..., 1:-1] & top[..., 2:]).sum())
    return runs if runs >= FLAT_TOPS and peak > LOUD_PEAK else 0
