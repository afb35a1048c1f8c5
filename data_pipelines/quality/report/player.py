"""One dialogue for the page: its audio, both waveforms, words and events, on one ruler in pixels."""

# Shapes: C channels, S samples

import base64
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from markupsafe import Markup

from data_pipelines.quality.report.collect import LazyDialogue
from data_pipelines.records.schema import SIDES, Dialogue, Word
from data_pipelines.sound.audio import RATE_HZ, Audio, to_rate
from model.errors import UserError

LONGEST_SECONDS = 45.0
"""The longest excerpt."""
PIXELS = 96
"""The width of a second."""
BAR = 3
"""The width of one bar of a waveform, in pixels."""
LANE = 72
"""The height of a waveform, in pixels."""
WORD_ROWS = 3
"""Rows of words below a waveform."""
LETTER = 6.9
"""About the width of a letter, in pixels."""


@dataclass(frozen=True)
class Label:
    """A word or an event: where it is drawn, in pixels and rows, and when it sounds, in seconds of the excerpt."""

    text: str
    left: float
    width: float
    row: int
    start: float
    end: float


@dataclass(frozen=True)
class Lane:
    """One channel."""

    side: str
    role: str
    colour: str
    """agent or user; where both sides are agents, the right one has the user's."""
    speaker: str
    prompt: str
    wave: str
    """The SVG path of its bars."""
    words: tuple[Label, ...]
    events: tuple[Label, ...]


@dataclass(frozen=True)
class Player:
    """One example of the page."""

    id: str
    about: str
    seconds: float
    width: int
    audio: Markup
    """MP3 in Base64."""
    lanes: tuple[Lane, ...]
    overlaps: tuple[tuple[float, float], ...]
    """Where both sides speak: left edge and width, in pixels."""
    ticks: tuple[tuple[float, str], ...]
    """The place in pixels and the text of each tick of the ruler."""


def player_of(entry: LazyDialogue) -> Player:
    """Reads the audio of a dialogue and lays out its liveliest 45 s, or all of it.

    Raises: UserError if the audio cannot be read, or ends before the excerpt.
    """
    dialogue = entry.dialogue
    audio_CS, rate = entry.audio()
    audio_CS = to_rate(audio_CS, rate, RATE_HZ)
    start, seconds = excerpt(dialogue, LONGEST_SECONDS)
    audio_CS = audio_CS[:, round(start * RATE_HZ) : round((start + seconds) * RATE_HZ)]
    seconds = audio_CS.shape[1] / RATE_HZ
    if not seconds:
        raise UserError(
            f"the audio of dialogue {dialogue.id} ends before {start:.0f} s: make it again", code="bad-audio"
        )
    loudest = max(float(np.abs(audio_CS).max(initial=0)), 0.05)
    part = "" if seconds >= dialogue.seconds - 0.1 else f"; shown: {start:.0f} to {start + seconds:.0f} s"
    about = f"{dialogue.source}, {dialogue.split}, {dialogue.scenario}, {dialogue.seconds:.0f} s{part}"
    lanes = tuple(
        _lane(dialogue, side, channel / loudest, start, seconds) for side, channel in zip(SIDES, audio_CS, strict=True)
    )
    both = [(max(a, start), min(b, start + seconds)) for a, b in overlaps(dialogue)]
    step = 1 if seconds <= 60 else 5
    return Player(
        id=dialogue.id,
        about=about,
        seconds=round(seconds, 3),
        width=round(seconds * PIXELS),
        audio=Markup(base64.b64encode(mp3(audio_CS)).decode()),
        lanes=lanes,
        overlaps=tuple((_px(a - start), max(_px(b - a), 1.0)) for a, b in both if b > a),
        ticks=tuple((_px(t), f"{start + t:.0f} s") for t in range(0, math.ceil(seconds), step)),
    )


def mp3(audio_CS: Audio) -> bytes:
    """Stereo MP3, which every browser plays, of about 9 kB a second. Shapes: float32 [2, samples] at 24 kHz."""
    out = io.BytesIO()
    options: dict[str, Any] = {"bitrate_mode": "VARIABLE", "compression_level": 0.6}
    soundfile.write(out, audio_CS.T, RATE_HZ, format="MP3", **options)
    return out.getvalue()


def _lane(dialogue: Dialogue, name: str, channel: Audio, start: float, seconds: float) -> Lane:
    side = dialogue.side(name)
    inside = [w for w in side.words if start <= w.start and w.end <= start + seconds + 0.05]
    labels = [
        _label(event.kind.replace("_", " "), begin - start, end - start, 0)
        for event in dialogue.events
        for begin, end in [event.span]
        if event.side == name and start <= begin < start + seconds
    ]
    return Lane(
        side=name,
        role="agent" if side.is_agent else "user",
        colour="agent" if name == dialogue.agent_sides[0] else "user",
        speaker=side.speaker,
        prompt=side.role_prompt,
        wave=_wave(channel, round(seconds * PIXELS)),
        words=tuple(_rows(inside, start)),
        events=tuple(labels),
    )


def _px(seconds: float) -> float:
    return round(seconds * PIXELS, 1)


def _label(text: str, start: float, end: float, row: int) -> Label:
    return Label(text, _px(start), _px(max(end - start, 0.02)), row, round(start, 3), round(end, 3))


def _rows(words: Sequence[Word], start: float) -> list[Label]:
    """Puts each word at its time, in the first row with room for it, or in the row that is free first."""
    free = [0.0] * WORD_ROWS
    labels = []
    for word in words:
        left = _px(word.start - start)
        row = next((n for n, end in enumerate(free) if end <= left), free.index(min(free)))
        free[row] = left + LETTER * len(word.text) + 7
        labels.append(_label(word.text, word.start - start, word.end - start, row))
    return labels


def _wave(channel: Audio, width: int) -> str:
    """The SVG path of vertical bars, one every BAR pixels, as high as the loudest sample under them."""
    count = max(width // BAR, 1)
    edges = np.linspace(0, len(channel), count + 1).astype(int)[:-1]
    if not len(channel):
        return ""
    peaks = np.maximum.reduceat(np.abs(channel), np.minimum(edges, len(channel) - 1))
    heights = [max(1, round(float(peak) * (LANE - 6))) for peak in peaks]
    return "".join(f"M{BAR * n + 1} {(LANE - h) / 2:g}v{h}" for n, h in enumerate(heights))


def excerpt(dialogue: Dialogue, longest: float) -> tuple[float, float]:
    """Start and length, in seconds, of the stretch with most changes of speaker, at most `longest`."""
    if dialogue.seconds <= longest:
        return 0.0, dialogue.seconds
    words = sorted((w.start, side) for side in SIDES for w in dialogue.side(side).words)
    changes = [b[0] for a, b in itertools.pairwise(words) if a[1] != b[1]]
    starts = [max(0.0, min(time - 1.0, dialogue.seconds - longest)) for time in [1.0, *changes]]
    return max(starts, key=lambda s: sum(s <= time < s + longest for time in changes)), longest


def overlaps(dialogue: Dialogue) -> list[tuple[float, float]]:
    """Start and end, in seconds, of each time that words of both sides sound, in order."""
    left, right = dialogue.left.words, dialogue.right.words
    pairs = ((max(a.start, b.start), min(a.end, b.end)) for a in left for b in right)
    return sorted((start, end) for start, end in pairs if start < end)
