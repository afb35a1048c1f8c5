"""Places the lines of one side of a call: which of them are said, and when each of their words is."""

# Shapes: S samples

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_pipelines.listening.align import Alignment, shared_aligner
from data_pipelines.listening.fit import LOWEST, MAX_DROP_AGAIN, fits, limit_of, unsaid_seconds
from data_pipelines.recordings.fill import PAD_SECONDS, Listener, said_by
from data_pipelines.recordings.fisher.timed_lines import TimedLine, Token
from data_pipelines.sound.audio import Audio
from data_pipelines.text.spoken import expand
from model.errors import UserError

SHIFT_SECONDS = 1.0
"""How far beyond its stated times a line is looked for that does not fit the sound between them."""

MIN_GAP_SECONDS = 0.2
"""A shorter gap holds no word."""


@dataclass(frozen=True, kw_only=True)
class PlacedLine:
    """A line with the times of its tokens but laughs, in seconds of the call; no times if the words do not fit.

    `is_recognised` says that the tokens are what a recogniser heard.
    """

    line: TimedLine
    times: tuple[tuple[float, float], ...] = ()
    is_recognised: bool = False


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Where the words of a line would be if they were said there, and how long there is other sound."""

    start: float
    alignment: Alignment
    unsaid: float

    @property
    def times(self) -> tuple[tuple[float, float], ...]:
        """The times of the words in the call, rounded to a millisecond."""
        return tuple((round(w.start + self.start, 3), round(w.end + self.start, 3)) for w in self.alignment.words)


def place_lines(
    lines: Sequence[TimedLine], audio_S: Audio, rate: int, listener: Listener | None = None
) -> list[PlacedLine]:
    """Returns every line of one side, in the same order, with the times of its words.

    First each line is looked for from 0.2 s before its start, though not before its speaker's last word, to 0.2 s after
    its end. What fits is decided when all lines have been tried, by the scores of them all (see `fit.py`). A line that
    does not fit, or only just, has a second try up to a second around, as far as its neighbours' words allow, because
    its times may be wrong; this place is taken if the line fits it well. Lines that are nothing but `(( ))` are then
    filled with what `listener` hears. No two words of a side overlap.
    Raises: Unready if the recogniser cannot be opened.
    """
    found: list[_Found | None] = []
    last_word, seconds = 0.0, len(audio_S) / rate
    for line in lines:
        start = min(max(line.start - PAD_SECONDS, last_word, 0.0), line.end)
        one = _find(line, audio_S, rate, (start, min(line.end + PAD_SECONDS, seconds)), (line.start, line.end))
        if one and fits(one.alignment, one.unsaid, LOWEST):  # Words that are not said take no room from the next line.
            last_word = one.times[-1][1]
        found.append(one)
    scores = [one.alignment.phone_score for one, line in zip(found, lines, strict=True) if one and line.is_certain]
    limit, limit_again = limit_of(scores), limit_of(scores, MAX_DROP_AGAIN)
    placed = [
        PlacedLine(line=line, times=one.times if one and fits(one.alignment, one.unsaid, limit) else ())
        for line, one in zip(lines, found, strict=True)
    ]
    for n, (line, one) in enumerate(zip(lines, found, strict=True)):
        is_good = one is not None and placed[n].times and one.alignment.phone_score >= limit_again
        if line.said and not is_good:
            placed[n] = _second_try(placed, n, audio_S, rate, limit_again)
    for n, line in enumerate(lines):
        if line.is_gap and listener:
            placed[n] = _recognised(placed, n, audio_S, rate, limit, listener)
    return placed


def _find(
    line: TimedLine, audio_S: Audio, rate: int, span: tuple[float, float], own: tuple[float, float]
) -> _Found | None:
    """Aligns the words of a line in a span of the call; sound that they do not cover counts between the times `own`."""
    start, end = span
    piece_S = audio_S[int(start * rate) : int(end * rate)]
    try:
        found = shared_aligner().align(piece_S, rate, [token.said for token in line.said], min_score=None)
    except UserError:  # A word does not tell how it is said, for instance a number.
        return None
    if found is None:
        return None
    may_sound = line.has_sounds or len(line.said) < len(line.tokens)
    unsaid = 0.0 if may_sound else unsaid_seconds(piece_S, rate, found.words, own[0] - start, own[1] - start)
    return _Found(start=start, alignment=found, unsaid=unsaid)


def _second_try(placed: Sequence[PlacedLine], n: int, audio_S: Audio, rate: int, limit: float) -> PlacedLine:
    """Looks for a line up to a second around its times; all sound there must be its own."""
    line = placed[n].line
    span = _room(placed, n, SHIFT_SECONDS, len(audio_S) / rate)
    found = _find(line, audio_S, rate, span, span)
    if found is None or not fits(found.alignment, found.unsaid, limit):
        return placed[n]
    moved = replace(line, start=min(line.start, found.times[0][0]), end=max(line.end, found.times[-1][1]))
    return PlacedLine(line=moved, times=found.times)


def _recognised(
    placed: Sequence[PlacedLine], n: int, audio_S: Audio, rate: int, limit: float, listener: Listener
) -> PlacedLine:
    """Fills a gap with what the recogniser hears in it, if that fits the sound; else it stays a gap."""
    start, end = span = _room(placed, n, PAD_SECONDS, len(audio_S) / rate)
    if end - start < MIN_GAP_SECONDS:
        return placed[n]
    text = listener.recogniser().transcribe(audio_S[int(start * rate) : int(end * rate)], rate)
    tokens = tuple(Token(text=word.written, said="-".join(said_by(word))) for word in expand(text))
    filled = replace(placed[n].line, tokens=tokens, has_sounds=False)
    found = _find(filled, audio_S, rate, span, span) if tokens else None
    if found is None or not fits(found.alignment, found.unsaid, limit):
        return placed[n]
    return PlacedLine(line=filled, times=found.times, is_recognised=True)


def _room(placed: Sequence[PlacedLine], n: int, around: float, seconds: float) -> tuple[float, float]:
    """Returns the span around a line, at most `around` wider at both ends, that no other line of its side has.

    Lines with words have them from their first to their last word, others from start to end.
    """
    line = placed[n].line
    befores = [p.times[-1][1] if p.times else min(p.line.end, line.start) for p in placed[:n]]
    afters = [p.times[0][0] if p.times else max(p.line.start, line.end) for p in placed[n + 1 :]]
    start = max(line.start - around, 0.0, *befores)
    return start, max(start, min(line.end + around, seconds, *afters))
