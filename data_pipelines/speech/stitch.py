"""A script becomes a two-channel dialogue: every turn is spoken alone, then laid on its speaker's channel.

Left is the agent, right the user. All choices depend on (seed, script id) only, so the result does not depend on
the order or the number of workers.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from data_pipelines.audio import RATE_HZ, Audio, fade_out, loudness_normalise, to_rate
from data_pipelines.quality.gates import Limits, measure, reason_to_reject
from data_pipelines.schema import Dialogue, Script, Side, Word
from data_pipelines.speech.timing import Slot, Timing, place
from data_pipelines.speech.tts.base import Engine, Speech, Voice
from model.errors import UserError

VOICE_SECONDS = (3.0, 10.0)
"""Length of a voice prompt: at least 3 s of voice to know a speaker by, at most what cloning engines read."""

HEADROOM = 10 ** (-3 / 20)
"""Engines speak close to full scale; 3 dB down leaves room for the codec and for a louder user."""
PEAK = 0.85

NEUTRAL_SENTENCES = (
    "The morning train was late again, so we walked along the river instead.",
    "She keeps a small garden behind the house, mostly herbs and a few tomatoes.",
    "It rained for most of the week, and then the sky cleared all at once.",
    "My brother repairs old bicycles and gives them away when he is done.",
    "There is a bakery on the corner that sells warm bread before sunrise.",
    "We painted the kitchen yellow, and now every breakfast feels like summer.",
    "The library moved to a larger building with tall windows and quiet rooms.",
    "He learned to play the piano late in life and practices every evening.",
    "A light wind came over the hills and moved the leaves in the orchard.",
    "They spent the holiday near the lake and swam before breakfast each day.",
    "I left my umbrella on the bus, and somebody kindly brought it back.",
    "The old clock in the hallway runs a little slow, but nobody minds.",
    "Our neighbors have a gray cat that visits us through the open window.",
    "In the autumn the whole valley smells of apples and wood smoke.",
    "The children built a bridge out of branches and crossed it one by one.",
    "She wrote a long letter by hand and mailed it without reading it again.",
    "After the concert we sat outside and talked until the lights went out.",
    "The road to the coast is narrow, but the view is worth the slow drive.",
    "He always carries a notebook and draws the people he sees on the way.",
    "A boat passed under the bridge, and everyone on board waved at us.",
)


@dataclass(kw_only=True, frozen=True)
class StitchOptions:
    """Settings of one run, the same for all of its scripts."""

    timing: Timing = field(default_factory=Timing)
    voice_seconds: float = 4.0
    """About how long a voice prompt is; it ends with the word that ends closest to this."""
    speed: tuple[float, float] = (0.92, 1.1)
    user_level_db: float = 6.0
    """The user's channel is up to this much louder or softer than the agent's."""
    noise_dbfs: float | None = None
    """RMS of white noise on the user's channel; None for none."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not VOICE_SECONDS[0] <= self.voice_seconds <= VOICE_SECONDS[1]:
            low, high = VOICE_SECONDS
            raise UserError(f"voice seconds {self.voice_seconds}: must be {low:.0f} to {high:.0f}")
        if self.noise_dbfs is not None and self.noise_dbfs > -30:
            raise UserError(f"noise at {self.noise_dbfs} dBFS would drown the user: give -30 or less, such as -60")


@dataclass(kw_only=True, frozen=True)
class Stitched:
    """A finished dialogue: its record, stereo audio [2, S] and the agent's voice prompt [S], both at 24 kHz."""

    dialogue: Dialogue
    audio_CS: Audio
    voice: Audio


def stitch(script: Script, engine: Engine, seed: int, options: StitchOptions) -> Stitched:
    """Speaks a script. Raises UserError if a turn cannot be spoken or the result fails a gate."""
    if not any(turn.speaker == "agent" for turn in script.turns):
        raise UserError(f"{script.id}: the agent says nothing: give it at least one turn")
    key = f"{seed}/{script.id}"
    rng = random.Random(f"{key}/voices")
    voices = choose_voices(engine.voices(), script.split, rng)
    speeds = {side: round(rng.uniform(*options.speed), 3) for side in voices}
    turn_seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    speeches = []
    for n, turn in enumerate(script.turns):
        side = "left" if turn.speaker == "agent" else "right"
        spoken = engine.speak(turn.text, voices[side].key, seed=turn_seed + n, speed=speeds[side])
        speeches.append(at_24k(spoken))
    schedule = place(script.turns, [s.seconds for s in speeches], random.Random(f"{key}/timing"), options.timing)
    channels = [render(schedule.slots, speeches, side, schedule.seconds) for side in ("left", "right")]
    words = {side: words_of(schedule.slots, speeches, side) for side in ("left", "right")}
    level_db = round(random.Random(f"{key}/level").uniform(-options.user_level_db, options.user_level_db), 2)
    audio_CS = np.stack([levelled(channels[0], 0.0), levelled(channels[1], level_db)])
    voice = voice_prompt(script, engine, voices["left"], turn_seed, speeds["left"], options.voice_seconds)
    identity = engine.identity()
    dialogue = Dialogue(
        id=script.id,
        source=script.source,
        split=script.split,
        scenario=script.scenario,
        seconds=round(audio_CS.shape[1] / RATE_HZ, 6),
        left=Side(speaker=voices["left"].key, words=words["left"], is_agent=True, role_prompt=script.role_prompt),
        right=Side(speaker=voices["right"].key, words=words["right"]),
        licence=identity["output_licence"],
        facts=script.facts,
        probes=script.probes,
        events=schedule.events,
        provenance={
            "engine": identity,
            "script": script.provenance,
            "seed": seed,
            "speed": speeds,
            "user_level_db": level_db,
            "noise_dbfs": options.noise_dbfs,
            "timing": asdict(options.timing),
        },
    )
    gates = measure(audio_CS, dialogue, schedule.slots, voice)
    reason = reason_to_reject(gates, options.limits)
    if reason:
        raise UserError(f"{script.id}: gate {reason}")
    if options.noise_dbfs is not None:
        audio_CS = audio_CS + np.stack([np.zeros(audio_CS.shape[1]), noise(audio_CS.shape[1], options.noise_dbfs, key)])
    dialogue = Dialogue(**{**vars(dialogue), "gates": gates})
    dialogue.check(script.id)
    return Stitched(dialogue=dialogue, audio_CS=audio_CS.astype(np.float32), voice=voice)


def choose_voices(voices: Sequence[Voice], split: str, rng: random.Random) -> dict[str, Voice]:
    """Two different voices for a script: held-out ones if and only if the script is held out."""
    if split not in ("train", "heldout"):
        raise UserError(f"split {split!r}: must be train or heldout")
    pool = [voice for voice in voices if voice.held_out == (split == "heldout")]
    if len(pool) < 2:
        raise UserError(f"the engine has {len(pool)} voices for split {split}: two are needed, fetch all of its voices")
    agent, user = rng.sample(pool, 2)
    return {"left": agent, "right": user}


def at_24k(speech: Speech) -> Speech:
    """The same speech at 24 kHz; word times are kept within its audio."""
    audio = to_rate(speech.audio, speech.rate, RATE_HZ)
    seconds = len(audio) / RATE_HZ
    words = tuple((text, min(start, seconds), min(end, seconds)) for text, start, end in speech.words)
    return Speech(audio=audio, rate=RATE_HZ, words=words)


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


def noise(num_samples: int, dbfs: float, key: str) -> Audio:
    """White noise of the given RMS, the same for the same key."""
    seed = int.from_bytes(hashlib.sha256(f"{key}/noise".encode()).digest()[:8], "big")
    rms = 10 ** (dbfs / 20)
    return (rms * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def voice_prompt(script: Script, engine: Engine, voice: Voice, seed: int, speed: float, seconds: float) -> Audio:
    """Another utterance of the agent's voice, cut after the word that ends closest to `seconds`, at -24 LUFS."""
    said = " ".join(turn.text for turn in script.turns)
    sentences = [s for s in NEUTRAL_SENTENCES if s not in said]
    random.Random(f"{seed}/{script.id}/prompt").shuffle(sentences)
    for count in range(1, len(sentences) + 1):
        text = " ".join(sentences[:count])
        if len(text) < 13 * seconds:  # speech runs at about 15 characters a second: do not try what is too short
            continue
        speech = at_24k(engine.speak(text, voice.key, seed=seed, speed=speed))
        ends = [end + 0.05 for _, _, end in speech.words if VOICE_SECONDS[0] <= end + 0.05 <= VOICE_SECONDS[1]]
        if ends and speech.words[-1][2] >= seconds - 0.25:
            stop = min(ends, key=lambda end: abs(end - seconds))
            return loudness_normalise(fade_out(speech.audio[: round(stop * RATE_HZ)], RATE_HZ // 100), RATE_HZ)
    raise UserError(f"{voice.key}: speaks too fast for a voice prompt of {seconds} s: lower --voice-seconds")
