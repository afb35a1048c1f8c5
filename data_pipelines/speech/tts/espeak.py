"""eSpeak NG through ctypes: robotic, but instant (RTF 0.004), deterministic and with exact word events.

The library ships in the espeakng-loader wheel. It is not thread-safe: use processes.
Structures and constants: eSpeak NG 1.52, speak_lib.h.
"""

import _ctypes
import ctypes
import hashlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.speech.protocols import Speech, Voice, trim_silence, trim_word_ends
from data_pipelines.text.spoken import SpokenWord, expand
from model.errors import UserError
from model.extras import require

SYNCHRONOUS, CHARS_UTF8, POSITION_CHARACTER, RATE_PARAMETER = 2, 1, 1, 1
LIST_TERMINATED, WORD, CLAUSE_END = 0, 1, 5
NORMAL_WORDS_PER_MINUTE = 175
# These are variants of the US voice, and three British, Scottish and Caribbean ones; some of each are held out.
TRAINING = (
    "en-us+m1 en-us+m2 en-us+m3 en-us+m4 en-us+m7 en-us+f1 en-us+f2 en-us+f3 en-gb-x-rp+m3 en-gb-x-rp+f2 "
    "en-gb-scotland+m1 en-gb-scotland+f3 en-029+m2 en-029+f1".split()
)
HELD_OUT = "en-us+m8 en-gb-x-rp+m7 en-us+f5 en-gb-x-rp+f4".split()


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@contextmanager
def _callback_errors() -> Iterator[None]:
    """Raises what a callback raised: ctypes only reports it and goes on, so that Ctrl-C would cost a piece of audio."""
    raised: list[BaseException] = []
    report = sys.unraisablehook

    def collect(what: Any) -> None:
        if "ctypes callback" in (what.err_msg or "") and what.exc_value is not None:
            raised.append(what.exc_value)
        else:
            report(what)

    sys.unraisablehook = collect
    try:
        yield
    finally:
        sys.unraisablehook = report
    if raised:
        raise raised[0]


def _unload(handle: int) -> None:
    name = "FreeLibrary" if sys.platform == "win32" else "dlclose"
    getattr(_ctypes, name)(handle)


class EspeakEngine:
    """The fallback engine. Raises UserError if the tts extra is missing or the library does not start."""

    name = "espeak"
    sets_speed = True

    def __init__(self) -> None:
        loader = require("espeakng_loader", extra="tts")
        self._path = Path(loader.get_library_path())
        # It loads a private copy, because phonemizer never releases the original, which could not be unloaded then.
        self._folder = tempfile.TemporaryDirectory(prefix="ppx-espeak-")
        self._copy = shutil.copy(self._path, self._folder.name)
        self._data = str(loader.get_data_path()).encode()
        with self._library() as (library, self._rate):
            self._version = (library.espeak_Info(None) or b"").decode()
        self._chunks: list[Any] = []
        self._events: list[tuple[int, int, int]] = []
        self._callback = _Callback(self._collect)  # The library holds only a pointer, so this reference keeps it alive.

    @contextmanager
    def _library(self) -> Iterator[tuple[Any, int]]:
        """A fresh copy of the library and its sampling rate in Hz.

        It is unloaded afterwards, because the synthesizer keeps the phase of its oscillators from one utterance to
        the next: kept open, the same text sounds different each time. Loading takes 7 ms.
        """
        library: Any = ctypes.CDLL(self._copy)
        library.espeak_Info.restype = ctypes.c_char_p
        library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        try:
            rate = int(library.espeak_Initialize(SYNCHRONOUS, 0, self._data, 0))
            if rate <= 0:
                raise UserError(
                    f"{self._path}: eSpeak NG does not start: reinstall espeakng-loader", code="missing-engine"
                )
            yield library, rate
        finally:
            library.espeak_Terminate()
            _unload(library._handle)

    def identity(self) -> dict[str, Any]:
        """Name, version and checksum of the library; deterministic. GPL covers the program, not what it says."""
        return {
            "name": self.name,
            "version": f"eSpeak NG {self._version}",
            "model_sha256": hashlib.sha256(self._path.read_bytes()).hexdigest(),
            "licence": "GPL-3.0-or-later",
            "output_licence": "none claimed (eSpeak NG)",
            "deterministic": True,
        }

    def voices(self) -> tuple[Voice, ...]:
        """Returns the voices; see Engine.voices."""
        return tuple(
            Voice(
                key=f"espeak/{name}",
                sex="female" if "+f" in name else "male",
                accent="gb" if "-gb" in name else "us",
                held_out=name in HELD_OUT,
            )
            for name in [*TRAINING, *HELD_OUT]
        )

    def speak(self, text: str, voice: str, *, seed: int, speed: float = 1.0) -> Speech:
        """Speaks a text; see Engine.speak. `seed` decides the breath noise that some voices have."""
        words = expand(text)
        if not words:
            raise UserError(f"{text!r} holds nothing to say: write at least one word", code="bad-value")
        if voice not in (v.key for v in self.voices()):
            raise UserError(
                f"{voice}: no such voice: choose one of {', '.join(v.key for v in self.voices())}", code="unknown-name"
            )
        line, spans = _line(words)
        self._say(line, voice.partition("/")[2], seed, speed)
        if not self._chunks:
            raise UserError(f"eSpeak NG says nothing for {text[:40]!r}: write it in English letters", code="bad-value")
        audio = np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)
        times = word_times(spans, self._events, len(audio))
        named = [(w.written, a / self._rate, b / self._rate) for w, (a, b) in zip(words, times, strict=True)]
        trimmed = trim_word_ends(named, audio, self._rate)
        return trim_silence(Speech(audio=audio, rate=self._rate, words=trimmed))

    def _say(self, line: str, voice: str, seed: int, speed: float) -> None:
        self._chunks.clear()
        self._events.clear()
        data = line.encode()
        with self._library() as (library, _), _callback_errors():
            library.espeak_SetSynthCallback(self._callback)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UserError(f"{voice}: eSpeak NG {self._version} does not know this voice", code="unknown-name")
            library.espeak_SetParameter(RATE_PARAMETER, round(NORMAL_WORDS_PER_MINUTE * speed), 0)
            library.espeak_ng_SetRandSeed(seed)
            code = library.espeak_Synth(data, len(data) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
            library.espeak_Synchronize()
        if code != 0:
            raise UserError(f"eSpeak NG failed with code {code} on {line[:40]!r}", code="program-failed")

    def _collect(self, wave: Any, count: int, events: Any) -> int:
        """Called by the library with a piece of audio and a list of events that ends with type 0."""
        if wave and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        n = 0
        while events[n].type != LIST_TERMINATED:
            if events[n].type in (WORD, CLAUSE_END):
                # The library counts characters of the text from 1.
                self._events.append((events[n].type, events[n].text_position - 1, events[n].sample))
            n += 1
        return 0


def _line(words: list[SpokenWord]) -> tuple[str, list[tuple[int, int]]]:
    """The text as eSpeak gets it, and each word's characters in it as (first, last + 1)."""
    line, spans = "", []
    for word in words:
        start = len(line)
        line += " ".join(word.spoken)
        spans.append((start, len(line)))
        line += word.tail + " "
    return line, spans


def word_times(
    spans: list[tuple[int, int]], events: list[tuple[int, int, int]], num_samples: int
) -> list[tuple[float, float]]:
    """Start and end sample of each word, from events (type, position in the text, sample).

    A word may own several events ("P M" has two): its first counts. Words said as one ("of the") share one event:
    they split its time by their numbers of characters. A word lasts until the next word or the end of its clause.
    """
    marks: list[tuple[int, int]] = []  # Pairs (word, sample), whose words strictly increase.
    for kind, position, sample in events:
        owner = next((n for n, (_, stop) in enumerate(spans) if position < stop), len(spans) - 1)
        if kind == WORD and (not marks or owner > marks[-1][0]):
            marks.append((owner, sample))
    if not marks or marks[0][0] > 0:
        marks.insert(0, (0, 0))
    clause_ends = [sample for kind, _, sample in events if kind == CLAUSE_END]
    times: list[tuple[float, float]] = []
    for (word, start), (following, stop) in zip(marks, [*marks[1:], (len(spans), num_samples)], strict=True):
        stop = min([stop, *(end for end in clause_ends if start < end)])
        sizes = [b - a for a, b in spans[word:following]]
        edges = start + (stop - start) * np.concatenate(([0], np.cumsum(sizes))) / sum(sizes)
        times += [(float(a), float(b)) for a, b in itertools.pairwise(edges)]
    return times
