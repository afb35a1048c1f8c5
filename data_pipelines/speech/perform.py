"""Everything that is said in a dialogue, each turn alone: by an engine of turns, or by one of whole dialogues."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.records.provenance import CLONED
from data_pipelines.records.schema import Script, Turn
from data_pipelines.sound.audio import RATE_HZ, VOICE_SECONDS, Audio, fade_out, loudness_normalise, to_rate
from data_pipelines.speech.protocols import CloningEngine, ConversationEngine, Engine, Speech, Voice
from data_pipelines.speech.voices import draw_voice
from model.errors import UserError

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
class Performance:
    """The turns as spoken, at 24 kHz; the agent's voice prompt, another utterance; and who spoke."""

    speeches: tuple[Speech, ...]
    voice: Audio
    speakers: dict[str, str]
    """The keys of the voices by side."""
    licences: tuple[str, ...]
    provenance: dict[str, Any]


def perform(
    script: Script,
    turns: Sequence[Turn],
    engine: Engine | ConversationEngine,
    key: str,
    voice_seconds: float | None,
    speed: tuple[float, float],
) -> Performance:
    """Speaks `turns`, and a voice prompt of about `voice_seconds`; None takes the clip that the engine imitates.

    All choices depend on `key` alone. Raises: UserError if a turn cannot be spoken.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    if isinstance(engine, ConversationEngine):
        if voice_seconds is None:
            raise UserError(f"{engine.name} imitates no clip: leave --voice-prompt-from out", code="bad-combination")
        return _in_one_go(script, turns, engine, seed, voice_seconds)
    rng = random.Random(f"{key}/voices")
    voices = choose_voices(engine.voices(), script.split, rng)
    speeds = {side: round(rng.uniform(*speed), 3) if engine.sets_speed else 1.0 for side in voices}
    speeches = []
    for n, turn in enumerate(turns):
        side = "left" if turn.speaker == "agent" else "right"
        spoken = engine.speak(turn.text, voices[side].key, seed=seed + n, speed=speeds[side])
        speeches.append(at_24k(spoken))
    if voice_seconds is not None:
        prompt = voice_prompt(script, engine, voices["left"], seed, speeds["left"], voice_seconds)
    elif isinstance(engine, CloningEngine):
        prompt = loudness_normalise(engine.clip(voices["left"].key), RATE_HZ)
    else:
        raise UserError(f"{engine.name} imitates no clip: leave --voice-prompt-from out", code="bad-combination")
    cloned = {
        # What an engine says in the voice of a clip is under the terms of both.
        side: {"licence": " AND ".join(sorted({engine.identity()["output_licence"], v.licence})), "consent": v.consent}
        for side, v in voices.items()
        if v.licence
    }
    return Performance(
        speeches=tuple(speeches),
        voice=prompt,
        speakers={side: voice.key for side, voice in voices.items()},
        licences=tuple(voice.licence for voice in voices.values() if voice.licence),
        provenance=({"speed": speeds} if engine.sets_speed else {}) | ({CLONED: cloned} if cloned else {}),
    )


def _in_one_go(
    script: Script, turns: Sequence[Turn], engine: ConversationEngine, seed: int, voice_seconds: float
) -> Performance:
    """The voice prompt is one more line of the agent at the end."""
    sentences = neutral_sentences(script, seed)
    prompt = ""
    while len(prompt) < 19 * voice_seconds:  # Speech runs at about 15 characters a second.
        prompt = f"{prompt} {sentences.pop()}".strip()
    lines = [(turn.speaker, turn.text) for turn in turns]
    *speeches, voice = (at_24k(speech) for speech in engine.converse([*lines, ("agent", prompt)], seed=seed))
    cut = cut_prompt(voice, voice_seconds)
    if cut is None:
        raise UserError(
            f"the agent speaks too fast for a voice prompt of {voice_seconds} s: lower --voice-seconds",
            code="bad-value",
        )
    speakers = {"left": f"{engine.name}/{script.id}-agent", "right": f"{engine.name}/{script.id}-user"}
    return Performance(speeches=tuple(speeches), voice=cut, speakers=speakers, licences=(), provenance={})


def choose_voices(voices: Sequence[Voice], split: str, rng: random.Random) -> dict[str, Voice]:
    """Draws voices of two people for a script: held-out ones if and only if the script is held out."""
    if split not in ("train", "heldout"):
        raise UserError(f"split {split!r}: must be train or heldout", code="bad-value")
    pool = [voice for voice in voices if voice.held_out == (split == "heldout")]
    people = {voice.speaker or voice.key for voice in pool}
    if len(people) < 2:
        raise UserError(
            f"the engine has {len(people)} voices for split {split}: two are needed, give it more voices",
            code="no-data",
        )
    agent = draw_voice(pool, rng)
    others = [voice for voice in pool if (voice.speaker or voice.key) != (agent.speaker or agent.key)]
    return {"left": agent, "right": draw_voice(others, rng)}


def at_24k(speech: Speech) -> Speech:
    """The same speech at 24 kHz; word times are kept within its audio."""
    audio = to_rate(speech.audio, speech.rate, RATE_HZ)
    seconds = len(audio) / RATE_HZ
    words = tuple((text, min(start, seconds), min(end, seconds)) for text, start, end in speech.words)
    return Speech(audio=audio, rate=RATE_HZ, words=words)


def neutral_sentences(script: Script, seed: int) -> list[str]:
    """Sentences for a voice prompt that the script does not hold, in an order of its own."""
    said = " ".join(turn.text for turn in script.turns)
    sentences = [s for s in NEUTRAL_SENTENCES if s not in said]
    random.Random(f"{seed}/{script.id}/prompt").shuffle(sentences)
    return sentences


def voice_prompt(script: Script, engine: Engine, voice: Voice, seed: int, speed: float, seconds: float) -> Audio:
    """Another utterance of the agent's voice, cut after the word that ends closest to `seconds`, at -24 LUFS."""
    sentences = neutral_sentences(script, seed)
    for count in range(1, len(sentences) + 1):
        text = " ".join(sentences[:count])
        if len(text) < 13 * seconds:  # Speech runs at about 15 characters a second, so this is too short.
            continue
        cut = cut_prompt(at_24k(engine.speak(text, voice.key, seed=seed, speed=speed)), seconds)
        if cut is not None:
            return cut
    raise UserError(
        f"{voice.key}: speaks too fast for a voice prompt of {seconds} s: lower --voice-seconds", code="bad-value"
    )


def cut_prompt(speech: Speech, seconds: float) -> Audio | None:
    """The start of an utterance, up to the word that ends closest to `seconds`, at -24 LUFS; None if too short."""
    ends = [end + 0.05 for _, _, end in speech.words if VOICE_SECONDS[0] <= end + 0.05 <= VOICE_SECONDS[1]]
    if not ends or speech.words[-1][2] < seconds - 0.25:
        return None
    stop = min(ends, key=lambda end: abs(end - seconds))
    return loudness_normalise(fade_out(speech.audio[: round(stop * RATE_HZ)], RATE_HZ // 100), RATE_HZ)
