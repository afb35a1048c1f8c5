"""Dia: two speakers at once, as one mixture that is taken apart again at the borders between the turns.

The published work does not say how it split the mixture. Here: the script is aligned to the sound, cut in the silence
between two turns, and each piece goes to its speaker's channel. Where there is no silence the turns touch or lie on
each other and cannot be separated, so the dialogue is refused. Barge-ins and backchannels get their place afterwards,
like with every other engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.sound.audio import Audio, fade_in, fade_out
from data_pipelines.speech.protocols import Speech, joined
from data_pipelines.speech.tts.backend import StoredBackend, with_other_seeds
from data_pipelines.speech.tts.kokoro import split_phrases
from data_pipelines.speech.tts.server import DIA_TEXT_BYTES, float_wav
from data_pipelines.speech.tts.timed import MIXTURE_SCORE, aligned_words, spoken_line, timed_speech
from data_pipelines.text.spoken import SpokenWord, expand
from model.errors import UserError

PIECE_LETTERS = 200
CHUNK_LETTERS = 280
"""About 19 s of speech, which leaves room for the voices' reference within Dia's 35.7 s."""
REFERENCE_SECONDS = 6.0
"""Each speaker's reference lasts this long, so that the voices of the first chunk continue in the others."""
MIN_SILENCE = 0.05
"""The least silence between two turns, in seconds.

In mixtures of two synthetic voices turns 0.1 s apart always left it; turns that overlap by 0.1 s or more did not
leave it in 83 of 84 cases."""
AROUND_BORDER = 0.1
FADE = 0.01
BETWEEN_PIECES = 0.2
RATE_HZ = 44_100


@dataclass(frozen=True)
class Piece:
    """A line or part of one, as long as can be said in one breath."""

    line: int
    tag: str
    words: tuple[SpokenWord, ...]

    @property
    def text(self) -> str:
        """The piece as it is said."""
        return spoken_line(self.words)


@dataclass(frozen=True)
class Reference:
    """An earlier utterance of a voice, at the rate of the mixture."""

    text: str
    audio: Audio


class DiaEngine:
    """A ConversationEngine. Voices are made up by the model from the seed, another pair for each dialogue."""

    name = "dia"

    def __init__(self, backend: StoredBackend, options: dict[str, float]) -> None:
        self._backend, self._options = backend, options

    def identity(self) -> dict[str, Any]:
        """Returns the provenance of the backend, with the options."""
        return self._backend.identity() | {"options": self._options}

    def converse(self, lines: Sequence[tuple[str, str]], *, seed: int) -> list[Speech]:
        """Speaks lines as ConversationEngine.converse does."""
        pieces = to_pieces(lines)
        references: dict[str, Reference] = {}
        spoken: list[list[Speech]] = [[] for _ in lines]
        for n, chunk in enumerate(to_chunks(pieces)):
            for piece, speech in zip(chunk, self._chunk(chunk, references, seed + 1009 * n), strict=True):
                spoken[piece.line].append(speech)
                references.setdefault(piece.tag, _reference(piece, speech))
        return [joined(parts, BETWEEN_PIECES) for parts in spoken]

    def _chunk(self, chunk: Sequence[Piece], references: dict[str, Reference], seed: int) -> list[Speech]:
        """Speaks some pieces by one call of the engine."""
        known = [(tag, references[tag].text) for tag in sorted(references)]
        text = tagged([*known, *((piece.tag, piece.text) for piece in chunk)])
        if len(text.encode()) > DIA_TEXT_BYTES:
            raise UserError(
                f"{len(text.encode())} bytes for one call of Dia, {DIA_TEXT_BYTES} fit: shorten the turns",
                code="too-long",
            )
        letters = sum(sum(map(str.isalpha, piece.text)) for piece in chunk)
        prefix = _prefix([references[tag] for tag in sorted(references)])

        def say(seed: int) -> list[Speech]:
            audio, rate = self._backend.say(text, prefix, seed, self._options, letters=letters)
            return split_mixture(audio, rate, [piece.words for piece in chunk])

        return with_other_seeds(say, seed)


def to_pieces(lines: Sequence[tuple[str, str]]) -> list[Piece]:
    """Lines as pieces; the first who speaks is S1. Raises UserError for an empty line or a third speaker."""
    tags: dict[str, str] = {}
    pieces = []
    for n, (speaker, text) in enumerate(lines):
        tag = tags.setdefault(speaker, f"[S{len(tags) + 1}]")
        words = expand(text)
        if not words:
            raise UserError(f"{text!r} holds nothing to say: write at least one word", code="bad-value")
        sizes = [len(" ".join(word.spoken)) for word in words]
        pieces += [Piece(n, tag, tuple(words[part])) for part in split_phrases(words, sizes, PIECE_LETTERS)]
    if len(tags) > 2:
        raise UserError(f"{len(tags)} speakers, Dia has two: leave the others out", code="bad-value")
    return pieces


def to_chunks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Groups pieces, as many as fit into one call."""
    chunks: list[list[Piece]] = []
    for piece in pieces:
        if chunks and sum(len(p.text) for p in chunks[-1]) + len(piece.text) <= CHUNK_LETTERS:
            chunks[-1].append(piece)
        else:
            chunks.append([piece])
    return chunks


def tagged(parts: Sequence[tuple[str, str]]) -> str:
    """`[S1] a [S2] b`: a tag only where the speaker changes."""
    text, last = "", ""
    for tag, words in parts:
        text += f" {tag} {words}" if tag != last else f" {words}"
        last = tag
    return text.strip()


def split_mixture(audio: Audio, rate: int, pieces: Sequence[Sequence[SpokenWord]]) -> list[Speech]:
    """One Speech for each piece of a mixture, in order.

    Raises: UserError if the words are not found, or there is no silence of MIN_SILENCE between two pieces.
    """
    times = aligned_words(audio, rate, [word for piece in pieces for word in piece], min_score=MIXTURE_SCORE)
    cuts, at = [0.0], 0
    for piece in pieces[:-1]:
        at += len(piece)
        silence = _longest_silence(audio, rate, times[at - 1][2] - AROUND_BORDER, times[at][1] + AROUND_BORDER)
        if silence[1] - silence[0] < MIN_SILENCE:
            raise UserError(
                f"turns overlap: no silence between {times[at - 1][0]!r} and {times[at][0]!r}", code="bad-answer"
            )
        cuts.append(sum(silence) / 2)
    cuts.append(len(audio) / rate)
    edge = round(FADE * rate)
    return [
        timed_speech(fade_out(fade_in(audio[round(start * rate) : round(stop * rate)], edge), edge), rate, piece)
        for piece, start, stop in zip(pieces, cuts[:-1], cuts[1:], strict=True)
    ]


def _longest_silence(audio: Audio, rate: int, start: float, stop: float) -> tuple[float, float]:
    """The longest run of 10 ms frames below 3 % of the peak between two times."""
    hop = rate // 100
    frames = np.abs(audio[: len(audio) // hop * hop]).reshape(-1, hop).max(axis=1, initial=0.0)
    loud = frames >= 0.03 * float(frames.max(initial=0.0))
    first, last = max(0, round(start * 100)), min(len(loud), round(stop * 100))
    edges = np.concatenate(([-1], np.flatnonzero(loud[first:last]), [last - first]))
    widest = int(np.argmax(np.diff(edges)))
    return (first + int(edges[widest]) + 1) / 100, (first + int(edges[widest + 1])) / 100


def _reference(piece: Piece, speech: Speech) -> Reference:
    """The start of a piece, up to a word's end within REFERENCE_SECONDS."""
    count = max(1, sum(end <= REFERENCE_SECONDS for _, _, end in speech.words))
    stop = round((speech.words[count - 1][2] + 0.05) * speech.rate)
    return Reference(spoken_line(piece.words[:count]), fade_out(speech.audio[:stop], round(FADE * speech.rate)))


def _prefix(references: Sequence[Reference]) -> bytes:
    if not references:
        return b""
    pause = np.zeros(round(BETWEEN_PIECES * RATE_HZ), np.float32)
    return float_wav(np.concatenate([part for r in references for part in (r.audio, pause)]), RATE_HZ)
