"""The protocols of speech engines, by turns or by whole dialogues, and the repairs that every engine's output needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from data_pipelines.sound.audio import Audio, fade_in, fade_out
from model.errors import UserError


@dataclass(kw_only=True, frozen=True)
class Voice:
    """One voice. `key` is unique among engines ("kokoro/af_heart"); a held-out voice never speaks in training."""

    key: str
    sex: Literal["female", "male"]
    accent: str
    held_out: bool
    speaker: str = ""
    """Who it is, where one person has several voices (clips); "" for the voice itself."""
    licence: str = ""
    """The licence of the recording that was cloned; "" for a voice that comes with its engine."""
    consent: str = ""
    """What permits to imitate the recording; "" for a voice that comes with its engine."""


@dataclass(kw_only=True, frozen=True)
class Speech:
    """One utterance: float32 [samples] in [-1, 1] and its written words as (text, start, end) in seconds."""

    audio: Audio
    rate: int
    words: tuple[tuple[str, float, float], ...]
    phones: tuple[tuple[str, float, float], ...] = ()
    """The sounds as (symbol, start, end) in seconds, of an engine that tells them."""

    @property
    def seconds(self) -> float:
        """The length of the utterance."""
        return len(self.audio) / self.rate


class EngineGone(UserError):
    """The engine itself is missing or gone, so the run ends instead of rejecting one script after the other."""


class Engine(Protocol):
    """A text-to-speech engine. Heavy imports happen in its constructor, which raises UserError if one is missing."""

    name: str
    sets_speed: bool
    """Whether `speed` has an effect."""

    def identity(self) -> dict[str, Any]:
        """Returns the provenance.

        It holds name, version, model (id and sha256 where there is one), the licence of the engine, the output_licence
        of what it says, and whether it is deterministic.
        """

    def voices(self) -> tuple[Voice, ...]:
        """All voices, in a fixed order."""

    def speak(self, text: str, voice: str, *, seed: int, speed: float = 1.0) -> Speech:
        """Speaks `text` with the voice of that key. Raises: UserError if nothing can be said; it never returns silence.

        A deterministic engine (see `identity`) gives the same bytes for the same arguments.
        """


@runtime_checkable
class CloningEngine(Engine, Protocol):
    """An engine whose voices are clips that it imitates."""

    def clip(self, voice: str) -> Audio:
        """The clip of the voice of that key, at 24 kHz. Shape: [samples]."""


@runtime_checkable
class ConversationEngine(Protocol):
    """An engine that speaks a whole dialogue with voices of its own making."""

    name: str

    def identity(self) -> dict[str, Any]:
        """Returns the provenance, as Engine.identity does."""

    def converse(self, lines: Sequence[tuple[str, str]], *, seed: int) -> list[Speech]:
        """Speaks lines of (speaker, text), two speakers at most: one Speech for each line, alone on its channel.

        Raises: UserError if a line is not found in the sound, or two lines lie on each other.
        """


def trim_word_ends(
    words: Sequence[tuple[str, float, float]], audio: Audio, rate: int
) -> tuple[tuple[str, float, float], ...]:
    """Moves word ends that lie in a pause back to where the sound stops.

    The new end is 10 ms after the last 10 ms frame above 2 % of the utterance's peak within the word; 20 ms stay.
    Source: measured on Kokoro, whose duration of a word's last sound covers part of the pause after it.
    """
    hop = rate // 100
    frames = np.abs(audio[: len(audio) // hop * hop]).reshape(-1, hop).max(axis=1, initial=0.0)
    loud = frames > 0.02 * np.abs(audio).max(initial=0.0)
    trimmed = []
    for text, start, end in words:
        first, last = int(start * 100), min(int(np.ceil(end * 100)), len(loud))
        sounding = np.flatnonzero(loud[first:last])
        if len(sounding):
            end = min(end, max(float((first + sounding[-1] + 1) / 100 + 0.01), start + 0.02))
        trimmed.append((text, start, max(end, start)))
    return tuple(trimmed)


def trim_silence(speech: Speech, before: float = 0.03, after: float = 0.06) -> Speech:
    """Cuts the silence around an utterance, leaving `before` and `after` seconds, with 5 ms fades at both cuts.

    What counts is sound, not only words: a breath or a late release stays. Raises UserError if all is silent.
    """
    hop = speech.rate // 100
    frames = np.abs(speech.audio[: len(speech.audio) // hop * hop]).reshape(-1, hop).max(axis=1, initial=0.0)
    peak = float(frames.max(initial=0.0))
    if peak < 1e-3 or not speech.words:
        raise UserError("the engine returned silence: change the text", code="bad-answer")
    loud = np.flatnonzero(frames > 0.02 * peak)
    first = min(loud[0] / 100, speech.words[0][1])
    last = max((loud[-1] + 1) / 100, speech.words[-1][2])
    start = max(0, round(float(first - before) * speech.rate))
    stop = min(len(speech.audio), round(float(last + after) * speech.rate))
    edge = speech.rate // 200
    shift = start / speech.rate
    return replace(
        speech,
        audio=fade_out(fade_in(speech.audio[start:stop], edge), edge),
        words=tuple((text, begin - shift, end - shift) for text, begin, end in speech.words),
        phones=tuple((phone, begin - shift, end - shift) for phone, begin, end in speech.phones),
    )


def joined(parts: Sequence[Speech], pause: float) -> Speech:
    """Joins utterances of one voice and rate, with `pause` seconds of silence between them."""
    rate = parts[0].rate
    silence = np.zeros(round(pause * rate), np.float32)
    audio: list[Audio] = []
    words: list[tuple[str, float, float]] = []
    phones: list[tuple[str, float, float]] = []
    at = 0.0
    for part in parts:
        if audio:
            audio.append(silence)
            at += len(silence) / rate
        audio.append(part.audio)
        words += [(text, start + at, end + at) for text, start, end in part.words]
        phones += [(phone, start + at, end + at) for phone, start, end in part.phones]
        at += part.seconds
    return Speech(audio=np.concatenate(audio), rate=rate, words=tuple(words), phones=tuple(phones))
