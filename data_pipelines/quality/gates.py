"""Quality gates of a spoken dialogue: each yields a number that is stored and a limit whose breach rejects it.

They catch faults of the pipeline (swapped channels, words off their sound, hot levels), not of taste.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_pipelines.audio import RATE_HZ, VOICE_LUFS, Audio, loudness
from data_pipelines.schema import SIDES, Dialogue, Word
from data_pipelines.speech.spoken import expand
from data_pipelines.speech.timing import Slot

SILENCE_DBFS = -50.0


@dataclass(kw_only=True, frozen=True)
class Limits:
    """Thresholds. The ratio 2 and the levels are those of public replications; the rest are choices."""

    peak_dbfs: float = -1.0
    dc: float = 0.01
    silence_seconds: float = 8.0
    swap_ratio: float = 2.0
    word_seconds: tuple[float, float] = (0.02, 2.0)
    """For one spoken word; a written one may hold several ("$8/month")."""
    cut_dbfs: float = -50.0
    voice_lufs: float = 0.5


def dbfs(x: Audio) -> float:
    """Peak level; -120 for silence or nothing."""
    return max(-120.0, 20 * float(np.log10(max(float(np.abs(x).max(initial=0.0)), 1e-6))))


def swap_ratio(channel: Audio, rate: int, words: Sequence[Word], pad: float = 0.05) -> float:
    """RMS of a channel inside its own words over its RMS outside them, at least -80 dBFS. Far above 1 if they match."""
    inside = np.zeros(len(channel), bool)
    for word in words:
        inside[max(0, int((word.start - pad) * rate)) : int((word.end + pad) * rate)] = True

    def rms(x: Audio) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0

    return rms(channel[inside]) / max(rms(channel[~inside]), 1e-4)


def clipped_runs(x: Audio) -> int:
    """How often three samples in a row are at or above 0.999."""
    hot = np.abs(x) >= 0.999
    return int((hot[..., :-2] & hot[..., 1:-1] & hot[..., 2:]).sum())


def longest_silence(audio_CS: Audio, rate: int) -> float:
    """Longest stretch, in seconds, in which every 10 ms of both channels peaks below -50 dBFS."""
    hop = rate // 100
    num = audio_CS.shape[1] // hop
    frames = np.abs(audio_CS[:, : num * hop]).reshape(audio_CS.shape[0], num, hop).max(axis=(0, 2))
    loud = np.flatnonzero(frames > 10 ** (SILENCE_DBFS / 20))
    edges = np.concatenate(([-1], loud, [num]))
    return float((np.diff(edges) - 1).max(initial=0)) / 100


def measure(audio_CS: Audio, dialogue: Dialogue, slots: Sequence[Slot], voice: Audio) -> dict[str, float]:
    """All gate values of a dialogue with stereo audio at 24 kHz; `slots` say which turns were cut and when."""
    agent = SIDES.index(dialogue.agent_sides[0])
    words = [word for name in SIDES for word in dialogue.side(name).words]
    shares = [(w.end - w.start, max(1, sum(len(s.spoken) for s in expand(w.text)))) for w in words]
    after_cuts, late_words = [-120.0], 0
    for side, name in enumerate(SIDES):
        own = sorted((slot for slot in slots if slot.side == name), key=lambda slot: slot.start)
        following_starts = [slot.start for slot in own[1:]] + [dialogue.seconds]
        for slot, following in zip(own, following_starts, strict=False):  # a silent side has no slot
            if slot.is_cut:
                after_cuts.append(dbfs(audio_CS[side, round(slot.stop * RATE_HZ) : round(following * RATE_HZ)]))
                late_words += sum(slot.stop <= w.start < following - 1e-3 for w in dialogue.side(name).words)
    values = {
        "peak_dbfs": dbfs(audio_CS),
        "clipped_runs": clipped_runs(audio_CS),
        "dc": float(np.abs(audio_CS.mean(axis=1)).max()),
        "longest_silence_seconds": longest_silence(audio_CS, RATE_HZ),
        "swap_ratio": swap_ratio(audio_CS[agent], RATE_HZ, dialogue.side(SIDES[agent]).words),
        "shortest_word_seconds": min((length for length, _ in shares), default=0.0),
        "longest_word_seconds": max((length / count for length, count in shares), default=0.0),
        "after_cut_dbfs": max(after_cuts),
        "words_after_cut": late_words,
        "words_out_of_order": sum(b.start < a.start for name in SIDES for a, b in pairwise(dialogue.side(name).words)),
        "agent_seconds": sum(w.end - w.start for w in dialogue.side(SIDES[agent]).words),
        "voice_lufs": loudness(voice, RATE_HZ),
    }
    return {name: round(float(value), 4) for name, value in values.items()}


def reason_to_reject(values: dict[str, float], limits: Limits) -> str | None:
    """The first gate that fails, as "name: value and limit"; None if all hold."""
    shortest, longest = limits.word_seconds
    checks = (
        ("clipping", values["clipped_runs"] == 0, f"{values['clipped_runs']:.0f} runs of full-scale samples"),
        ("peak", values["peak_dbfs"] <= limits.peak_dbfs, f"{values['peak_dbfs']:.1f} dBFS > {limits.peak_dbfs}"),
        ("dc", values["dc"] < limits.dc, f"mean {values['dc']:.3f} >= {limits.dc}"),
        (
            "silence",
            values["longest_silence_seconds"] <= limits.silence_seconds,
            f"{values['longest_silence_seconds']:.1f} s > {limits.silence_seconds} s",
        ),
        (
            "channel swap",
            values["swap_ratio"] > limits.swap_ratio,
            f"agent channel inside / outside its words {values['swap_ratio']:.2f} <= {limits.swap_ratio}",
        ),
        (
            "word length",
            shortest <= values["shortest_word_seconds"] and values["longest_word_seconds"] <= longest,
            f"{values['shortest_word_seconds']:.3f}-{values['longest_word_seconds']:.2f} s, not {shortest}-{longest}",
        ),
        ("word order", values["words_out_of_order"] == 0, f"{values['words_out_of_order']:.0f} words start too early"),
        (
            "interrupted words",
            values["words_after_cut"] == 0 and values["after_cut_dbfs"] <= limits.cut_dbfs,
            f"{values['words_after_cut']:.0f} words, {values['after_cut_dbfs']:.0f} dBFS after a cut",
        ),
        (
            "voice loudness",
            abs(values["voice_lufs"] - VOICE_LUFS) <= limits.voice_lufs,
            f"{values['voice_lufs']:.1f} LUFS, not {VOICE_LUFS}",
        ),
    )
    return next((f"{name}: {detail}" for name, holds, detail in checks if not holds), None)
