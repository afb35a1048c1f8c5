"""A script becomes a two-channel dialogue: every turn is spoken alone, then laid on its speaker's channel.

Left is the agent, right the user. All choices depend on (seed, script id) only, so the result does not depend on
the order or the number of workers.
"""

# Shapes: C channels, S samples

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from data_pipelines.files import digest
from data_pipelines.quality.gates import Limits, reason_to_reject, rounded, signal_values
from data_pipelines.records.schema import SIDES, Dialogue, Script, Side, Word
from data_pipelines.sound.audio import RATE_HZ, VOICE_SECONDS, Audio, fade_out, loudness
from data_pipelines.sound.levels import dbfs
from data_pipelines.speech.asides import with_backchannels, with_pauses
from data_pipelines.speech.augment import Augmentation, augment
from data_pipelines.speech.perform import NEUTRAL_SENTENCES, at_24k, perform
from data_pipelines.speech.protocols import ConversationEngine, Engine, Speech
from data_pipelines.speech.timing import Slot, Timing, place
from model.errors import UserError

HEADROOM = 10 ** (-3 / 20)
"""Engines speak close to full scale; 3 dB down leaves room for the codec and for a louder user."""
PEAK = 0.85
BABBLE_VOICES = 8
PROMPTS = ("spoken", "clip")


@dataclass(kw_only=True, frozen=True)
class StitchOptions:
    """Settings of one run, the same for all of its scripts."""

    timing: Timing = field(default_factory=Timing)
    voice_seconds: float = 4.0
    """The intended length of a voice prompt, which ends with the word that ends closest to it."""
    voice_prompt: str = "spoken"
    """`spoken` is another utterance of the agent's voice, `clip` the whole clip that an engine imitates. It is not
    known which of the two the published models had."""
    speed: tuple[float, float] = (0.92, 1.1)
    user_level_db: float = 6.0
    """The user's channel is up to this much louder or softer than the agent's."""
    augmentation: Augmentation | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not VOICE_SECONDS[0] <= self.voice_seconds <= VOICE_SECONDS[1]:
            low, high = VOICE_SECONDS
            raise UserError(f"voice seconds {self.voice_seconds}: must be {low:.0f} to {high:.0f}", code="bad-value")
        if self.voice_prompt not in PROMPTS:
            raise UserError(f"voice prompt {self.voice_prompt!r}: choose one of {', '.join(PROMPTS)}", code="bad-value")


@dataclass(kw_only=True, frozen=True)
class Stitched:
    """A finished dialogue: its record, stereo audio [2, S] and the agent's voice prompt [S], both at 24 kHz."""

    dialogue: Dialogue
    audio_CS: Audio
    voice: Audio


def stitch(script: Script, engine: Engine | ConversationEngine, seed: int, options: StitchOptions) -> Stitched:
    """Speaks a script. Raises UserError if a turn cannot be spoken or the result fails a gate."""
    if not any(turn.speaker == "agent" for turn in script.turns):
        raise UserError(f"{script.id}: the agent says nothing: give it at least one turn", code="bad-record")
    key, timing = f"{seed}/{script.id}", options.timing
    turns = with_backchannels(script.turns, random.Random(f"{key}/backchannels"), timing)
    seconds = options.voice_seconds if options.voice_prompt == "spoken" else None
    said = perform(script, turns, engine, key, seconds, options.speed)
    pauses = random.Random(f"{key}/pauses")
    speeches = [
        speech if turn.kind == "backchannel" else with_pauses(speech, pauses, timing)
        for turn, speech in zip(turns, said.speeches, strict=True)
    ]
    schedule = place(turns, [s.seconds for s in speeches], random.Random(f"{key}/timing"), timing)
    channels = [render(schedule.slots, speeches, side, schedule.seconds) for side in ("left", "right")]
    words = {side: words_of(schedule.slots, speeches, side) for side in ("left", "right")}
    level_db = round(random.Random(f"{key}/level").uniform(-options.user_level_db, options.user_level_db), 2)
    audio_CS = np.stack([levelled(channels[0], 0.0), levelled(channels[1], level_db)])
    identity = engine.identity()
    dialogue = Dialogue(
        id=script.id,
        source=script.source,
        split=script.split,
        scenario=script.scenario,
        seconds=round(audio_CS.shape[1] / RATE_HZ, 6),
        left=Side(speaker=said.speakers["left"], words=words["left"], is_agent=True, role_prompt=script.role_prompt),
        right=Side(speaker=said.speakers["right"], words=words["right"]),
        licence=" AND ".join(sorted({identity["output_licence"], *said.licences})),
        facts=script.facts,
        probes=script.probes,
        events=schedule.events,
        provenance={
            "engine": identity,
            "script": script.provenance,
            "script_sha256": digest(script.to_json()),
            "seed": seed,
            "user_level_db": level_db,
            "timing": {"name": timing.name, "sha256": timing.sha256},
            **said.provenance,
        },
    )
    gates = measure(audio_CS, dialogue, schedule.slots, said.voice)
    reason = reason_to_reject(gates, options.limits)
    if reason:
        raise UserError(f"{script.id}: gate {reason}", code="bad-audio")
    if options.augmentation:  # The gates come first: they judge the pipeline, not the telephone.
        speaker: Any = engine
        babble = partial(_babble, speaker, script.split)
        user, record = augment(audio_CS[1], words["right"], options.augmentation, key, babble)
        audio_CS = np.stack([audio_CS[0], user])
        dialogue.provenance["augmentation"] = record
    dialogue = Dialogue(**{**vars(dialogue), "gates": gates})
    dialogue.check(script.id)
    return Stitched(dialogue=dialogue, audio_CS=audio_CS.astype(np.float32), voice=said.voice)


@lru_cache(maxsize=4)
def _babble(engine: Any, split: str) -> tuple[Audio, ...]:
    """Returns utterances of other voices of a split, spoken once in each process."""
    voices = sorted(voice.key for voice in engine.voices() if voice.held_out == (split == "heldout"))
    chosen = voices[:: max(1, len(voices) // BABBLE_VOICES)][:BABBLE_VOICES]
    spoken = [engine.speak(text, key, seed=0) for text, key in zip(NEUTRAL_SENTENCES, chosen, strict=False)]
    return tuple(at_24k(speech).audio for speech in spoken)


def render(slots: Sequence[Slot], speeches: Sequence[Speech], side: str, seconds: float) -> Audio:
    """One channel: each slot of `side` holds its turn, faded to zero where it was cut; exact zeros between."""
    channel = np.zeros(round(seconds * RATE_HZ), np.float32)
    for slot in slots:
        if slot.side == side:
            audio, start = speeches[slot.turn].audio, round(slot.start * RATE_HZ)
            if slot.is_cut:
                audio = fade_out(audio[: round(slot.stop * RATE_HZ) - start], round(slot.fade * RATE_HZ))
            channel[start : start + len(audio)] += audio
    return channel


def words_of(slots: Sequence[Slot], speeches: Sequence[Speech], side: str) -> tuple[Word, ...]:
    """Words that sounded on one channel, in order: of a word that was cut, at least half must have been said."""
    words = []
    for slot in sorted((slot for slot in slots if slot.side == side), key=lambda slot: slot.start):
        for text, start, end in speeches[slot.turn].words:
            start, end = slot.start + start, slot.start + end
            if slot.is_cut and end > slot.stop:
                if slot.stop - start < 0.5 * (end - start):
                    break
                end = slot.stop
            words.append(Word(text=text, start=round(start, 4), end=round(end, 4)))
    return tuple(words)


def levelled(channel: Audio, gain_db: float) -> Audio:
    """Applies headroom and gain; a channel that would still peak above PEAK is turned down as a whole."""
    channel = channel * np.float32(HEADROOM * 10 ** (gain_db / 20))
    peak = float(np.abs(channel).max(initial=0.0))
    return channel * np.float32(PEAK / peak) if peak > PEAK else channel


def measure(audio_CS: Audio, dialogue: Dialogue, slots: Sequence[Slot], voice: Audio) -> dict[str, float]:
    """Gate values of a dialogue that was just spoken; `slots` say which turns were cut and when."""
    after_cuts, late_words = [-120.0], 0
    for side, name in enumerate(SIDES):
        own = sorted((slot for slot in slots if slot.side == name), key=lambda slot: slot.start)
        following_starts = [slot.start for slot in own[1:]] + [dialogue.seconds]
        for slot, following in zip(own, following_starts, strict=False):  # A silent side has no slot.
            if slot.is_cut:
                after_cuts.append(dbfs(audio_CS[side, round(slot.stop * RATE_HZ) : round(following * RATE_HZ)]))
                late_words += sum(slot.stop <= w.start < following - 1e-3 for w in dialogue.side(name).words)
    values = signal_values(audio_CS, dialogue) | {
        "after_cut_dbfs": max(after_cuts),
        "words_after_cut": late_words,
        "voice_lufs": loudness(voice, RATE_HZ),
    }
    return rounded(values)
