"""A short call spoken by espeak-ng on two channels, with the exact times of its words."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipelines.sound.audio import Audio, to_rate

RATE = 24_000
TURNS = (
    ("left", "Good morning, this is the front desk, how may I help you today?"),
    ("right", "Hello, I would like to know what a room costs, please."),
    ("left", "A double room costs $95 for one night, and breakfast is included."),
    ("right", "That sounds very good. Do you have a place for my car?"),
    ("left", "Yes, we have a large garage below the building, it is free."),
    ("right", "Great, please book it for me from Monday to Wednesday."),
    ("left", "Wonderful, then I will book the room for the second of March."),
    ("right", "Thank you very much and goodbye."),
)


Timed = tuple[str, float, float]
"""A text with its start and end in seconds."""


@dataclass
class SpokenCall:
    """The sound, float32 [2, samples] at RATE, and the words and utterances of each side."""

    audio: Audio
    words: dict[str, list[Timed]]
    utterances: dict[str, list[Timed]]


@lru_cache(maxsize=1)
def spoken_call() -> SpokenCall:
    """The call; needs espeak-ng from the `tts` extra."""
    from data_pipelines.speech.tts.espeak import EspeakEngine

    engine = EspeakEngine()
    voices = [voice.key for voice in engine.voices() if voice.accent == "us"]
    call = SpokenCall(np.zeros((2, 60 * RATE), np.float32), {"left": [], "right": []}, {"left": [], "right": []})
    at = 0.5
    for side, text in TURNS:
        channel = ("left", "right").index(side)
        speech = engine.speak(text, voices[3 * channel], seed=0)
        sound = to_rate(speech.audio, speech.rate, RATE) * np.float32(0.5)
        call.audio[channel, round(at * RATE) :][: len(sound)] = sound
        call.words[side] += [(word, at + start, at + end) for word, start, end in speech.words]
        call.utterances[side].append((text, at, at + speech.seconds))
        at += speech.seconds + 0.4
    call.audio = call.audio[:, : round((at + 0.5) * RATE)]
    return call


def write_srt(path: Path, utterances: list[Timed]) -> None:
    """Subtitles of one side."""

    def clock(seconds: float) -> str:
        ms = round(seconds * 1000)
        return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    lines = [f"{n}\n{clock(start)} --> {clock(end)}\n{text}\n" for n, (text, start, end) in enumerate(utterances, 1)]
    path.write_text("\n".join(lines), "utf-8")
