"""What is heard in a call: every utterance with the times of its words, laughter and signs of listening."""

# Shapes: C channels, S samples

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from data_pipelines.listening.align import shared_aligner
from data_pipelines.recordings.fisher.transcript import Utterance
from data_pipelines.recordings.windows import Letter, Spoken
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio
from model.errors import UserError

SIDE: dict[Letter, Literal["left", "right"]] = {"A": "left", "B": "right"}
_PAD = 0.2  # heard around an utterance, whose times are only that good, seconds


def align_all(utterances: Sequence[Utterance], audio_CS: Audio, rate: int) -> tuple[list[Spoken], float]:
    """Gives every utterance of both sides its word times; also the share of lines with words that fit the audio.

    An utterance is looked for from 0.2 s before its start, though not before its speaker's last word, so that the
    words of a side never overlap.
    """
    last_word = {"A": 0.0, "B": 0.0}
    tried = fitted = 0
    spoken = []
    for utterance in utterances:
        letter = utterance.letter
        start = min(max(utterance.start - _PAD, last_word[letter], 0.0), utterance.end)
        end = min(utterance.end + _PAD, audio_CS.shape[1] / rate)
        turn = _align(utterance, audio_CS[0 if letter == "A" else 1, int(start * rate) : int(end * rate)], rate, start)
        if any(token.kind == "word" for token in utterance.tokens):
            tried += 1
            fitted += bool(turn.words)
        if turn.words:
            last_word[letter] = turn.words[-1].end
        spoken.append(turn)
    return _with_backchannels(spoken, utterances), fitted / tried if tried else 0.0


def _align(utterance: Utterance, audio_S: Audio, rate: int, start: float) -> Spoken:
    """Aligns one utterance heard from `start` on; broken-off words are aligned, too, but not kept."""
    bounds: dict[str, Any] = {"start": utterance.start, "end": utterance.end, "letter": utterance.letter}
    said = [token for token in utterance.tokens if token.kind != "laugh"]
    laughs = [n for n, token in enumerate(utterance.tokens) if token.kind == "laugh"]
    if not said:
        laughter = _event("laughter", utterance.letter, utterance.start, utterance.end)
        return Spoken(**bounds, words=(), events=(laughter,) if laughs else (), is_silent=utterance.is_certain)
    aligner = shared_aligner()
    try:
        found = aligner.align(audio_S, rate, [token.said for token in said])
    except UserError:
        found = None  # a digit in the transcript: audible, but there is no telling how it was said
    if found is None:
        return Spoken(**bounds, words=())
    times = [(round(word.start + start, 3), round(word.end + start, 3)) for word in found.words]
    words = [
        Word(text=token.text, start=first, end=last)
        for token, (first, last) in zip(said, times, strict=True)
        if token.kind == "word"
    ]
    events = []
    for n in laughs:  # only its place among the words is known
        before = sum(token.kind != "laugh" for token in utterance.tokens[:n])
        since = times[before - 1][1] if before else utterance.start
        until = times[before][0] if before < len(times) else utterance.end
        if until > since:
            events.append(_event("laughter", utterance.letter, since, until))
    return Spoken(**bounds, words=tuple(words), events=tuple(events), is_silent=not words)


def _with_backchannels(spoken: Sequence[Spoken], utterances: Sequence[Utterance]) -> list[Spoken]:
    """Marks one to three words of listening, said while the other side goes on talking."""
    marked = []
    for turn, utterance in zip(spoken, utterances, strict=True):
        if turn.words and utterance.is_backchannel:
            start, end = turn.words[0].start, turn.words[-1].end
            if any(other.letter != turn.letter and other.start < start and end < other.end for other in spoken):
                turn = replace(turn, events=(*turn.events, _event("backchannel", turn.letter, start, end)))
        marked.append(turn)
    return marked


def _event(kind: str, letter: Letter, start: float, end: float) -> dict[str, Any]:
    return {"kind": kind, "side": SIDE[letter], "start": round(start, 3), "end": round(end, 3)}
