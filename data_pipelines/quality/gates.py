"""Quality gates of a dialogue: each is a number that is stored, and a limit whose breach rejects with a reason.

Gates catch faults of the pipeline (swapped channels, words off their sound, hot levels), not of taste. The values
measured here need audio and words alone; `ppx-data gate` measures the others.
"""

# Shapes: C channels, S samples

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np

from data_pipelines.records.schema import SIDES, Dialogue
from data_pipelines.sound.audio import RATE_HZ, VOICE_LUFS, Audio
from data_pipelines.sound.levels import clipped_runs, dbfs, longest_silence, swap_ratio
from data_pipelines.text.spoken import expand


@dataclass(frozen=True)
class Gate:
    """How a value is judged, and how a breach is described."""

    reason: str
    """The kind of fault, by which rejections are counted."""
    detail: str
    """A template with {value} and {limit}."""
    at_least: bool = False
    """Whether the limit is the least value that holds, instead of the most."""


def _most(limit: float, reason: str, detail: str) -> Any:
    return field(default=float(limit), metadata={"gate": Gate(reason, detail)})


def _least(limit: float, reason: str, detail: str) -> Any:
    return field(default=float(limit), metadata={"gate": Gate(reason, detail, at_least=True)})


@dataclass(kw_only=True, frozen=True)
class Limits:
    """The limit of every gate, by the name of its value; None switches the gate off.

    Breaches are reported in the order of the fields. The limits of swap ratio and levels are those of public
    replications, and those of speaker similarities were calibrated on Kokoro; the others are choices. Where a dialogue
    has two agents, a value is that of the worse one.
    """

    clipped_runs: float | None = _most(0, "clipping", "{value:.0f} runs of full-scale samples")
    """Runs of three samples or more at or above 0.999."""
    peak_dbfs: float | None = _most(-1, "peak", "{value:.1f} dBFS > {limit:g}")
    """The peak of both channels, in dBFS."""
    dc: float | None = _most(0.01, "dc", "mean {value:.3f} > {limit:g}")
    """The mean of a channel, where full scale is 1."""
    longest_silence_seconds: float | None = _most(8, "silence", "{value:.1f} s > {limit:g} s")
    """The longest silence of both channels at once, in seconds."""
    turn_dbfs: float | None = _least(-60, "silence", "a turn of {value:.0f} dBFS < {limit:g}")
    """The RMS inside the words of the softest turn of either side, in dBFS."""
    swap_ratio: float | None = _least(
        2, "channel swap", "agent channel inside / outside its words {value:.2f} < {limit:g}"
    )
    """The RMS of the agent's channel inside its words over that outside."""
    shortest_word_seconds: float | None = _least(0.02, "word length", "a word of {value:.3f} s < {limit:g} s")
    longest_word_seconds: float | None = _most(2, "word length", "a word of {value:.2f} s > {limit:g} s")
    """The longest word. Both lengths are of spoken words, of which a written one may hold several ("$8/month")."""
    words_out_of_order: float | None = _most(0, "word order", "{value:.0f} words start too early")
    """Words that start before the word in front of them."""
    words_after_cut: float | None = _most(0, "interrupted words", "{value:.0f} words after a cut")
    """Words of an interrupted speaker after the cut."""
    after_cut_dbfs: float | None = _most(-50, "interrupted words", "{value:.0f} dBFS after a cut")
    """The peak of an interrupted speaker after the cut, in dBFS."""
    voice_lufs: float | None = _most(0.5, "voice loudness", f"{{value:.1f}} LUFS, not {VOICE_LUFS:g}")
    """The loudness of a voice prompt; the limit is how far it may be from -24 LUFS."""
    aligned_share: float | None = _least(0.7, "alignment", "{value:.0%} of the lines fit the audio, {limit:.0%} must")
    """The share of the lines that forced alignment could place, of sources that are aligned."""
    agent_seconds: float | None = _least(4, "agent share", "{value:.1f} s of agent speech < {limit:g} s")
    """How long the agent speaks, in seconds."""
    word_error_rate: float | None = _most(0.15, "transcript", "word error rate {value:.2f} > {limit:g}")
    """Speech recognition against the words of the worse channel, names left out."""
    turn_error_rate: float | None = _most(0.6, "transcript", "a turn with word error rate {value:.2f} > {limit:g}")
    """The word error rate of the worst turn of ten words or more, which finds a turn that is skipped or replaced."""
    speaker_embedder: str = "resemblyzer"
    """The embedder that the next two limits are for: similarities of two embedders cannot be compared."""
    speaker_similarity: float | None = _least(
        0.8, "speaker drift", "a turn is like the voice prompt by {value:.2f} < {limit:g}"
    )
    """The least similarity of the voice prompt and an agent turn with 2 s of voice or more."""
    user_similarity: float | None = _most(0.85, "same speaker", "agent and user are alike by {value:.2f} > {limit:g}")
    """The similarity of agent and user."""
    overflow_share: float | None = _most(0.05, "text overflow", "{value:.1%} of the words have no room, > {limit:.1%}")
    """The share of the agent's words with more pieces of text than frames until its next word."""
    lag_frames: float | None = _most(12, "text lag", "text comes {value:.0f} frames late > {limit:g}")
    """How late a piece of text may come because the words before it still had pieces left; a frame is 80 ms."""
    lost_pieces: float | None = _most(0, "text overflow", "{value:.0f} pieces of text beyond the last frame")
    """Pieces of text that find no frame before the end."""
    frames: float | None = _most(2048, "duration", "{value:.0f} frames with prompts > {limit:g}")
    """The frames of dialogue, voice prompt, pauses and role prompt together."""
    reads_prompt: float | None = _most(0, "role context leak", "the agent reads out how its prompt begins")
    """1 if the agent says "You work for COMPANY" or "Information:"."""
    agent_prompt_run: float | None = _most(
        5, "role context leak", "the agent says {value:.0f} words in a row of its instructions"
    )
    """The longest run of words that the agent reads out of its instructions; its name and company do not count."""
    user_prompt_run: float | None = _most(
        11, "role context leak", "the user says {value:.0f} words in a row of the role prompt"
    )
    """The longest run of words that the user reads out of the role prompt."""
    says_role: float | None = _least(1, "role not said", "the agent says neither its name nor its company")
    """1 if the agent says its name or its company."""
    unsupported_numbers: float | None = _most(
        0, "invented", "{value:.0f} numbers of the agent are in no prompt and no user's words"
    )
    """Numbers of the agent that neither its prompt nor the user holds in any form."""
    unsupported_names: float | None = _most(
        0, "invented", "{value:.0f} names of the agent are in no prompt and no user's words"
    )
    """Names of the agent, likewise."""
    foreign_companies: float | None = _most(0, "role context leak", "{value:.0f} companies of other roles")
    """Companies of other dialogues' roles that this dialogue names."""
    same_audio: float | None = _most(0, "duplicate", "the same audio as a dialogue that is kept")
    """1 if the audio is that of another dialogue."""
    shared_text: float | None = _most(0.5, "duplicate", "{value:.0%} of its text is in a dialogue that is kept")
    """The highest Jaccard similarity with a dialogue that is kept, over runs of 13 words: it finds near-duplicates."""
    leaked_text: float | None = _most(0.5, "leakage", "{value:.0%} of its text is in training")
    """The share of a held-out dialogue's runs of 13 words that training dialogues hold."""
    leaked_scenario: float | None = _most(0, "leakage", "its scenario is in training")
    """1 if a held-out dialogue's scenario is in training."""
    leaked_company: float | None = _most(0, "leakage", "its company is in training")
    """Companies of a held-out dialogue that are in training."""
    leaked_voice: float | None = _most(0, "leakage", "the agent's voice is in training")
    """Agent voices of a held-out dialogue that are in training."""

    def breach(self, name: str, value: float) -> str | None:
        """The reason to reject a value; None if it holds or its gate is off. NaN never holds."""
        gate, limit = GATES[name], getattr(self, name)
        if limit is None:
            return None
        measured = abs(value - VOICE_LUFS) if name == "voice_lufs" else value
        holds = measured >= limit if gate.at_least else measured <= limit
        return None if holds else f"{gate.reason}: {gate.detail.format(value=value, limit=limit)}"


GATES: dict[str, Gate] = {f.name: f.metadata["gate"] for f in fields(Limits) if "gate" in f.metadata}
"""Every gate, by the name of its value."""


def reasons_to_reject(values: Mapping[str, float], limits: Limits) -> list[str]:
    """The reason of every gate that fails, as "reason: value and limit"; what was not measured is not judged."""
    return [why for name in GATES if name in values and (why := limits.breach(name, values[name]))]


def reason_to_reject(values: Mapping[str, float], limits: Limits) -> str | None:
    """The reason of the first gate that fails; None if all hold."""
    return next(iter(reasons_to_reject(values, limits)), None)


def signal_values(audio_CS: Audio, dialogue: Dialogue) -> dict[str, float]:
    """The values that come from a dialogue's audio and word times.

    Shapes: audio [2, samples] at 24 kHz.
    """
    sides = [(dialogue.side(name).words, audio_CS[SIDES.index(name)]) for name in dialogue.agent_sides]
    words = [word for name in SIDES for word in dialogue.side(name).words]
    shares = [(w.end - w.start, max(1, sum(len(s.spoken) for s in expand(w.text)))) for w in words]
    return {
        "peak_dbfs": dbfs(audio_CS),
        "clipped_runs": clipped_runs(audio_CS),
        "dc": float(np.abs(audio_CS.mean(axis=1)).max()),
        "longest_silence_seconds": longest_silence(audio_CS, RATE_HZ),
        "swap_ratio": min(swap_ratio(channel, RATE_HZ, own) for own, channel in sides),
        "shortest_word_seconds": min((length for length, _ in shares), default=0.0),
        "longest_word_seconds": max((length / count for length, count in shares), default=0.0),
        "words_out_of_order": sum(b.start < a.start for name in SIDES for a, b in pairwise(dialogue.side(name).words)),
    }


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Values as they are stored, with four decimals."""
    return {name: round(float(value), 4) for name, value in values.items()}
