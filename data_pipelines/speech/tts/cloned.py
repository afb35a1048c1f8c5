"""Engines that speak one turn at a time in the voice of a clip, such as Chatterbox; word times come from alignment."""

from typing import Any

from data_pipelines.sound.audio import Audio, to_mono_24k
from data_pipelines.speech.protocols import Speech, Voice, joined
from data_pipelines.speech.tts.backend import StoredBackend, with_other_seeds
from data_pipelines.speech.tts.kokoro import split_phrases
from data_pipelines.speech.tts.server import float_wav
from data_pipelines.speech.tts.timed import spoken_line, timed_speech
from data_pipelines.speech.voices import Pool
from data_pipelines.text.spoken import SpokenWord, expand
from model.errors import UserError

MAX_LETTERS = 300
"""A longer text is said in parts: Chatterbox stops after 40 s, and long sentences drift."""
BETWEEN_PARTS = 0.25


class ClonedEngine:
    """An Engine from a backend and a pool of clips."""

    sets_speed = False

    def __init__(self, backend: StoredBackend, pool: Pool, options: dict[str, float]) -> None:
        self.name: str = backend.identity()["name"]
        self._backend, self._pool, self._options = backend, pool, options

    def identity(self) -> dict[str, Any]:
        """Returns the provenance of the backend, with the options and the pool of voices."""
        return self._backend.identity() | {"options": self._options, "voices_sha256": self._pool.sha256}

    def voices(self) -> tuple[Voice, ...]:
        """Returns one voice for each clip of the pool."""
        return self._pool.voices(self.name)

    def clip(self, voice: str) -> Audio:
        """Returns the clip of a voice; see CloningEngine.clip."""
        return to_mono_24k(*self._pool.audio(voice.partition("/")[2]))

    def speak(self, text: str, voice: str, *, seed: int, speed: float = 1.0) -> Speech:
        """Speaks a text of any length; see Engine.speak. `speed` has no effect."""
        del speed
        words = expand(text)
        if not words:
            raise UserError(f"{text!r} holds nothing to say: write at least one word", code="bad-value")
        reference = float_wav(*self._pool.audio(voice.partition("/")[2]))
        sizes = [len(" ".join(word.spoken)) for word in words]
        parts = split_phrases(words, sizes, MAX_LETTERS)
        return joined([self._part(words[part], reference, seed) for part in parts], BETWEEN_PARTS)

    def _part(self, words: list[SpokenWord], reference: bytes, seed: int) -> Speech:
        """One call of the engine."""
        line = spoken_line(words)
        letters = sum(map(str.isalpha, line))

        def say(seed: int) -> Speech:
            audio, rate = self._backend.say(line, reference, seed, self._options, letters=letters)
            return timed_speech(audio, rate, words)

        return with_other_seeds(say, seed)
