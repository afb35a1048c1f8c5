"""Backchannels of listeners, and pauses within a turn, added to written turns at the rates of a Timing."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Literal

import numpy as np

from data_pipelines.records.schema import Turn
from data_pipelines.records.turn_taking import JOIN_SECONDS
from data_pipelines.records.turns import is_joined
from data_pipelines.sound.audio import fade_in, fade_out
from data_pipelines.speech.protocols import Speech
from data_pipelines.speech.timing import Timing

WORDS_A_SECOND = 2.6
BACKCHANNEL_SPACING = 2.0
"""A turn gets at most one backchannel in this many seconds."""
BACKCHANNELS = {
    "Mm.": 0.25, "Okay.": 0.35, "Right.": 0.35, "Mm-hm.": 0.4, "Uh-huh.": 0.4, "I see.": 0.45, "Oh, okay.": 0.65,
    "Yeah, okay.": 0.75, "Right, right.": 0.8, "Oh, I see.": 0.85, "Okay, I see.": 1.0,
}  # fmt: skip
"""Backchannels that fit either side, and about how long they last."""
BORDER_WEIGHTS = {".": 8.0, "?": 8.0, "!": 8.0, ";": 5.0, ":": 5.0, ",": 4.0}
"""How much likelier a pause is after a punctuation mark than after a bare word. The values are a choice."""


def with_backchannels(turns: Sequence[Turn], rng: random.Random, timing: Timing) -> tuple[Turn, ...]:
    """Adds backchannels after turns of the other side until there are as many as the rate asks for.

    Those of the script stay. Turns before which another backchannel stands keep their order.
    """
    spoken: list[Turn] = []
    for n, turn in enumerate(turns):
        spoken.append(turn)
        if turn.kind == "backchannel" or not timing.backchannel_rate:
            continue
        seconds = len(turn.text.split()) / WORDS_A_SECOND
        written = sum(1 for _ in takewhile(lambda t: t.kind == "backchannel", turns[n + 1 :]))
        wanted = min(_poisson(timing.backchannel_rate * seconds, rng), int(seconds / BACKCHANNEL_SPACING))
        listener: Literal["agent", "user"] = "user" if turn.speaker == "agent" else "agent"
        for _ in range(wanted - written):
            length = timing.backchannel_seconds.draw(rng)
            nearest = min(abs(known - length) for known in BACKCHANNELS.values())
            texts = [text for text, known in BACKCHANNELS.items() if abs(known - length) <= nearest + 0.06]
            spoken.append(Turn(speaker=listener, text=rng.choice(texts), kind="backchannel"))
    return tuple(spoken)


def with_pauses(speech: Speech, rng: random.Random, timing: Timing) -> Speech:
    """Sets the pauses of one turn, at the rate and with the lengths of `timing`.

    Pauses that the voice makes get lengths of the table, and more are added, mostly after punctuation marks, until
    there are as many as the rate asks for. Words move with their sound.
    """
    if not timing.pause_rate or len(speech.words) < 2:
        return speech
    gaps = [b[1] - a[2] for a, b in zip(speech.words[:-1], speech.words[1:], strict=True)]
    chosen = {n for n, gap in enumerate(gaps) if not is_joined(gap, JOIN_SECONDS)}
    wanted = _poisson(timing.pause_rate * (speech.seconds - sum(gaps[n] for n in chosen)), rng)
    free = [n for n in range(len(gaps)) if n not in chosen]
    while len(chosen) < wanted and free:
        weights = [BORDER_WEIGHTS.get(speech.words[n][0].rstrip("\"')")[-1:], 1.0) for n in free]
        chosen.add(free.pop(rng.choices(range(len(free)), weights)[0]))
    for n in sorted(chosen):
        speech = _with_gap(speech, n, timing.pause.draw(rng))
    return speech


def _with_gap(speech: Speech, n: int, seconds: float) -> Speech:
    """The same speech with `seconds` between word n and the next: its silence is widened or narrowed in the middle."""
    end, start = speech.words[n][2], max(speech.words[n + 1][1], speech.words[n][2])
    change = round((seconds - (start - end)) * speech.rate)
    middle, edge = round((start + end) / 2 * speech.rate), speech.rate // 200
    cut = max(0, -change)
    before = fade_out(speech.audio[: middle - cut // 2], edge)
    after = fade_in(speech.audio[middle + cut - cut // 2 :], edge)
    audio = np.concatenate([before, np.zeros(max(0, change), np.float32), after])
    shift = change / speech.rate
    words = (*speech.words[: n + 1], *((text, a + shift, b + shift) for text, a, b in speech.words[n + 1 :]))
    return replace(speech, audio=audio, words=words)


def _poisson(mean: float, rng: random.Random) -> int:
    """A Poisson number (Knuth's product of uniforms; means are small here)."""
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count
