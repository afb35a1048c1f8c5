"""Kokoro-82M on onnxruntime: 28 English voices, 24 kHz, word times from the model's own durations.

The model's duration tensor is a second output of the cached file (see data_pipelines.speech.engines). Phonemes are
looked up word by word, because phonemizing a sentence merges words ("of the") and loses their times.
Output is bit-equal from run to run; one thread, because a second gave no gain.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.speech.protocols import Speech, Voice, joined, trim_silence, trim_word_ends
from data_pipelines.speech.tts.phonemes import Phonemes
from data_pipelines.text.spoken import SpokenWord, expand
from model.errors import UserError
from model.extras import require

RATE_HZ = 24_000
HELD_OUT = frozenset(("bf_emma", "af_kore", "am_puck", "bm_george"))
MAX_TOKENS = 500
"""The model takes 512 symbols with one pad at each end; the style table has 510 rows."""

FRAME_SECONDS = 0.025
LEAD_FRAMES = 3
"""The audio is ahead of the duration grid by 75 ms. Source: energy onsets and an independent aligner."""


class KokoroEngine:
    """Speaks with the model in `folder`, as written by `ppx-data fetch kokoro`."""

    name = "kokoro"
    sets_speed = True

    def __init__(self, folder: Path) -> None:
        ort = require("onnxruntime", extra="tts")
        self._record = json.loads((folder / "engine.json").read_text("utf-8"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._symbols: dict[str, int] = json.loads((folder / "symbols.json").read_text("utf-8"))["vocab"]
        self._phonemes: dict[str, Phonemes] = {}
        self._styles: dict[str, Any] = {}
        self._folder = folder
        names = sorted(path.stem for path in (folder / "voices").glob("*.bin"))
        self._voices = tuple(
            Voice(
                key=f"kokoro/{name}",
                sex="female" if name[1] == "f" else "male",
                accent="us" if name[0] == "a" else "gb",
                held_out=name in HELD_OUT,
            )
            for name in names
        )

    def identity(self) -> dict[str, Any]:
        """Name, source and checksums of the weights, licence; deterministic."""
        kept = ("source", "packages", "revision", "model_sha256", "voices_sha256")
        return {
            "name": self.name,
            "version": "Kokoro-82M v1.0",
            "licence": "Apache-2.0",
            "output_licence": "Apache-2.0",
            "deterministic": True,
            **{key: self._record[key] for key in kept if key in self._record},
        }

    def voices(self) -> tuple[Voice, ...]:
        """Returns the voices; see Engine.voices."""
        return self._voices

    def speak(self, text: str, voice: str, *, seed: int, speed: float = 1.0) -> Speech:
        """Speaks a text of any length; see Engine.speak. `seed` changes nothing here."""
        del seed
        known = next((v for v in self._voices if v.key == voice), None)
        if known is None:
            raise UserError(
                f"{voice}: no such voice: choose one of {', '.join(v.key for v in self._voices)}", code="unknown-name"
            )
        return self.speak_as(self.style(voice), known.accent, text, speed=speed)

    def speak_as(self, style: Any, accent: str, text: str, *, speed: float = 1.0) -> Speech:
        """Speaks a text with a style table, float32 [510, 256] (see `style`), which may be a mean of several voices'.

        The speech has `phones`, in the model's IPA symbols. Raises: UserError if nothing can be said.
        """
        words = expand(text)
        if not words:
            raise UserError(f"{text!r} holds nothing to say: write at least one word", code="bad-value")
        if accent not in self._phonemes:
            self._phonemes[accent] = Phonemes(accent, frozenset(self._symbols), self._folder / "lexicons")
        said = self._phonemes[accent].words([piece for word in words for piece in word.spoken])
        sounds, at = [], 0
        for word in words:
            sounds.append(" ".join(filter(None, said[at : at + len(word.spoken)])))
            at += len(word.spoken)
        mute = [word.written for word, sound in zip(words, sounds, strict=True) if not sound]
        if mute:
            raise UserError(f"{mute[0]!r} has no pronunciation: write it in English letters", code="bad-value")
        parts = [
            self._run(words[part], sounds[part], style, speed)
            for part in split_phrases(words, [len(sound) for sound in sounds])
        ]
        whole = joined(parts, 0.0)
        # The voices am_puck and am_fenrir exceed full scale by up to 7 %.
        peak = max(1.0, float(np.abs(whole.audio).max()))
        return trim_silence(replace(whole, audio=whole.audio / peak))

    def _run(self, words: list[SpokenWord], sounds: list[str], style: Any, speed: float) -> Speech:
        """One call of the model."""
        text, owner = "", []
        for n, (word, sound) in enumerate(zip(words, sounds, strict=True)):
            tail = "".join(c for c in word.tail if c in self._symbols)
            text += (" " if n else "") + sound + tail
            owner += [-1] * bool(n) + [n] * len(sound) + [-1] * len(tail)
        tokens, style_name, rate = (entry.name for entry in self._session.get_inputs())
        feed = {
            tokens: np.array([[0, *(self._symbols[c] for c in text), 0]], np.int64),
            style_name: style[len(text)][None],
            rate: np.array([speed], np.float32),
        }
        wave, durations = self._session.run(None, feed)
        edges = np.maximum(np.cumsum(np.ravel(durations)) - LEAD_FRAMES, 0) * FRAME_SECONDS
        times = []
        for n, word in enumerate(words):
            held = [i for i, m in enumerate(owner) if m == n]
            times.append((word.written, float(edges[held[0]]), float(edges[held[-1] + 1])))
        phones = tuple((c, float(edges[i]), float(edges[i + 1])) for i, c in enumerate(text))
        wave = np.ravel(wave).astype(np.float32)
        return Speech(audio=wave, rate=RATE_HZ, words=trim_word_ends(times, wave, RATE_HZ), phones=phones)

    def style(self, voice: str) -> Any:
        """The style table of the voice of that key: float32 [510, 256], a row for each number of symbols."""
        name = voice.partition("/")[2]
        if name not in self._styles:
            self._styles[name] = np.fromfile(self._folder / "voices" / f"{name}.bin", np.float32).reshape(-1, 256)
        return self._styles[name]


def split_phrases(words: list[SpokenWord], sizes: list[int], limit: int = MAX_TOKENS) -> list[slice]:
    """Cuts a text into runs of at most `limit` symbols.

    It cuts at the last sentence end that fits, else at the last comma, else at a word. `sizes` counts each word's
    phonemes; its space and punctuation are added here.

    Raises: UserError if one word alone is too long.
    """
    parts, start = [], 0
    while start < len(words):
        total, stop = 0, start
        while stop < len(words) and total + sizes[stop] + 1 + len(words[stop].tail) <= limit:
            total += sizes[stop] + 1 + len(words[stop].tail)
            stop += 1
        if stop == start:
            raise UserError(
                f"{words[start].written[:40]!r} is too long for one word: write it in parts", code="too-long"
            )
        if stop < len(words):
            inside = range(stop, start, -1)
            ends = [n for n in inside if words[n - 1].ends_sentence] or [n for n in inside if words[n - 1].tail]
            stop = ends[0] if ends else stop
        parts.append(slice(start, stop))
        start = stop
    return parts
