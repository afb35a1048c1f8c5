"""Aligns the lines of a call: every utterance with the times of its words, laughter and signs of listening."""

# Shapes: C channels, S samples

from collections.abc import Sequence
from dataclasses import replace

from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.fisher.placed import PlacedLine, place_lines
from data_pipelines.recordings.fisher.timed_lines import TimedLine
from data_pipelines.recordings.utterances import SideEvent, Spoken, Utterance
from data_pipelines.records.schema import SIDES, Word
from data_pipelines.sound.audio import Audio


def align_lines(
    lines: Sequence[TimedLine], audio_CS: Audio, rate: int, listener: Listener | None = None
) -> tuple[Spoken, float]:
    """Gives every line its word times; also returns the share of the certain lines with words that fit the audio.

    Lines that are nothing but `(( ))` get the words that `listener` hears, if there is one.
    Shapes: audio_CS [2, samples], left and right.
    Raises: Unready if the recogniser cannot be opened.
    """
    spoken: dict[str, list[Utterance]] = {}
    tried = fitted = 0
    for channel, side in enumerate(SIDES):
        own = place_lines([line for line in lines if line.side == side], audio_CS[channel], rate, listener)
        spoken[side] = [_utterance(placed) for placed in own]
        told = [p for p in own if p.line.is_certain and any(token.kind == "word" for token in p.line.tokens)]
        tried += len(told)
        fitted += sum(bool(p.times) for p in told)
    return _with_backchannels(spoken, lines), fitted / tried if tried else 0.0


def _utterance(placed: PlacedLine) -> Utterance:
    """Returns a line with its words and events; broken-off words have times, too, but are not kept."""
    line, times = placed.line, placed.times
    laughs = [n for n, token in enumerate(line.tokens) if token.kind == "laugh"]
    if not line.said:
        events = (_event("laughter", line.start, line.end),) if laughs else ()
        return Utterance(start=line.start, end=line.end, events=events, is_silent=line.is_certain)
    if not times:
        return Utterance(start=line.start, end=line.end)
    words = [
        Word(text=token.text, start=first, end=last)
        for token, (first, last) in zip(line.said, times, strict=True)
        if token.kind == "word"
    ]
    unwritten = [span for token, span in zip(line.said, times, strict=True) if token.kind == "partial"]
    if laughs or not line.is_certain:  # There is more to hear than words, which may push them from their places.
        unwritten.append((line.start, line.end))
    events = ()
    for n in laughs:  # Of laughter only its place among the words is known.
        before = sum(token.kind != "laugh" for token in line.tokens[:n])
        since = times[before - 1][1] if before else line.start
        until = times[before][0] if before < len(times) else line.end
        if until > since:
            events = (*events, _event("laughter", since, until))
    return Utterance(
        start=line.start,
        end=line.end,
        words=tuple(words),
        unwritten=tuple(unwritten),
        events=events,
        is_silent=line.is_certain and not words,
        is_recognised=placed.is_recognised,
    )


def _with_backchannels(spoken: Spoken, lines: Sequence[TimedLine]) -> Spoken:
    """Marks one to three words of listening, said while the other side goes on talking."""
    marked: dict[str, list[Utterance]] = {}
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        own = [line for line in lines if line.side == side]
        marked[side] = []
        for utterance, line in zip(spoken[side], own, strict=True):
            if utterance.words and line.is_backchannel:
                start, end = utterance.words[0].start, utterance.words[-1].end
                if any(theirs.start < start and end < theirs.end for theirs in spoken[other]):
                    sign = _event("backchannel", start, end)
                    utterance = replace(utterance, events=(*utterance.events, sign))
            marked[side].append(utterance)
    return marked


def _event(kind: str, start: float, end: float) -> SideEvent:
    return SideEvent(kind=kind, start=round(start, 3), end=round(end, 3))
