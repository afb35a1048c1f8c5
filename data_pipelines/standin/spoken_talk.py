"""Speaks small talk with an engine and lays it out in time: who says which word when."""

# Shapes: S samples

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_pipelines.sound.audio import Audio, to_rate
from data_pipelines.speech.protocols import Engine, Speech
from data_pipelines.standin.smalltalk import Persona, Talk, TypedWord
from model.errors import UserError

RATE_HZ = 8000
_LAUGHTER = ("ha", "ha", "ha")  # The engine says this for a laugh.


@dataclass(frozen=True, kw_only=True)
class Sounded:
    """One word, broken-off word or laugh with its times in the call, in seconds."""

    text: str
    kind: Literal["word", "partial", "laugh"]
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class SpokenUtterance:
    """What one side says without a pause; `turn` numbers the turns, backchannels included."""

    speaker: int
    turn: int
    start: float
    audio_S: Audio
    sounded: tuple[Sounded, ...]
    is_backchannel: bool = False

    @property
    def end(self) -> float:
        """When its audio ends, in seconds."""
        return self.start + len(self.audio_S) / RATE_HZ


def talk(
    topic: dict[str, Any], sides: tuple[Persona, Persona], seconds: float, engine: Engine, rng: random.Random
) -> list[SpokenUtterance]:
    """Returns one conversation of about `seconds`, spoken and laid out in time."""
    conversation, line = Talk(topic, sides, rng), _Line(sides, engine, rng)
    for turn in conversation.opening():
        line.take_turn(turn.speaker, turn.utterances, conversation)
    while line.now < seconds - 14:
        for turn in conversation.exchange():
            line.take_turn(turn.speaker, turn.utterances, conversation)
    for turn in conversation.closing():
        line.take_turn(turn.speaker, turn.utterances, conversation)
    return sorted(line.said, key=lambda utterance: (utterance.start, utterance.speaker))


class _Line:
    """Lays utterances out in time as they are spoken."""

    def __init__(self, sides: tuple[Persona, Persona], engine: Engine, rng: random.Random) -> None:
        self._sides, self._engine, self._rng = sides, engine, rng
        self.said: list[SpokenUtterance] = []
        self._free = [0.4, 0.4]  # Each side has finished at this time.
        self._turn = 0
        self.now = 0.4

    def take_turn(self, speaker: int, utterances: Sequence[tuple[TypedWord, ...]], conversation: Talk) -> None:
        """Adds one turn after a gap or with a small overlap; the listener says a word now and then."""
        rng = self._rng
        self._turn += 1
        turn = self._turn
        start = max(self.now + min(1.3, max(-0.5, rng.gauss(0.2, 0.35))), self._free[speaker] + 0.15)
        for words in utterances:
            utterance = self._speak(speaker, turn, start, words)
            self.said.append(utterance)
            self._free[speaker] = self.now = utterance.end
            length, listener = utterance.end - utterance.start, 1 - speaker
            at = utterance.start + rng.uniform(0.3, 0.7) * length
            if length > 2.2 and rng.random() < 0.35 and at > self._free[listener] + 0.15:
                self._turn += 1
                sign = self._speak(listener, self._turn, at, conversation.backchannel())
                if sign.end < utterance.end:
                    self.said.append(replace(sign, is_backchannel=True))  # It is within the other's words, and no turn.
                    self._free[listener] = sign.end
            start = utterance.end + rng.uniform(0.25, 0.9)

    def _speak(self, speaker: int, turn: int, start: float, words: Sequence[TypedWord]) -> SpokenUtterance:
        start = round(start * RATE_HZ) / RATE_HZ
        persona = self._sides[speaker]
        speech = self._engine.speak(
            spoken_text(words), persona.voice, seed=self._rng.getrandbits(31), speed=persona.speed
        )
        return SpokenUtterance(
            speaker=speaker,
            turn=turn,
            start=start,
            audio_S=to_rate(speech.audio, speech.rate, RATE_HZ),
            sounded=_timed(words, speech, start),
        )


def spoken_text(words: Sequence[TypedWord]) -> str:
    """Returns the text for the engine, in which a laugh is three syllables."""
    return " ".join(" ".join(_LAUGHTER) + "." if word.kind == "laugh" else word.text for word in words)


def _timed(words: Sequence[TypedWord], speech: Speech, start: float) -> tuple[Sounded, ...]:
    """Returns the engine's word times for our words. Raises UserError if the engine split or joined words."""
    needed = [len(_LAUGHTER) if word.kind == "laugh" else 1 for word in words]
    if sum(needed) != len(speech.words):
        raise UserError(
            f"the engine gave {len(speech.words)} word times for {spoken_text(words)!r}, not {sum(needed)}",
            code="bad-transcript",
        )
    sounded, at = [], 0
    for word, count in zip(words, needed, strict=True):
        first, last = start + speech.words[at][1], start + speech.words[at + count - 1][2]
        sounded.append(Sounded(text=word.text, kind=word.kind, start=round(first, 4), end=round(last, 4)))
        at += count
    return tuple(sounded)
