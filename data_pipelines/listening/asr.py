"""Speech recognisers behind one interface, and: do the stored words match the audio?

A recogniser writes down what it hears; the word error rate tells. Whisper tiny.en, the default, misspells names and is
unsure of very short turns, so the rate of a whole channel is judged, by a generous limit: what it finds is text
that is not what is said, such as swapped channels, shifted times or another dialogue's words.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from data_pipelines.audio import Audio
from data_pipelines.listening.parakeet import Parakeet
from data_pipelines.listening.whisper import Transcriber, Whisper, model_folder
from data_pipelines.schema import SIDES, Word
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.speech.spoken import expand

PAUSE_SECONDS = 1.0  # a longer pause of a side ends its turn
TURN_SECONDS = 28.0  # Whisper hears at most 30 s at once
PAD_SECONDS = 0.2
MIN_WORDS = 10
"""A channel, or a dialogue, with fewer words is not judged by itself: one misheard "mm-hm" says nothing."""
FILLERS = frozenset("uh um er ah hm hmm mm mmm mhm mhmm huh".split())
"""Whisper leaves most of them out, so they do not count on either side."""


class Hears(Protocol):
    """What the comparison needs of a speech recogniser."""

    def transcribe(self, audio: Audio, rate: int) -> str: ...


class Recogniser(Hears, Protocol):
    """A speech recogniser: hears utterances of up to 30 s, and says what it is."""

    def transcribe_all(self, pieces: Sequence[Audio], rate: int) -> list[str]:
        """The text of each piece, float32 [samples] in [-1, 1]; "" where nothing is heard."""
        ...

    def identity(self) -> dict[str, Any]:
        """Provenance: name, version, model, licence if known, and whether it is deterministic."""
        ...


def open_asr(name: str = "tiny.en", device: str = "cpu") -> Recogniser:
    """The recogniser that `name` means.

    tiny.en            Whisper tiny.en from a package of the `asr` extra
    FOLDER             a faster-whisper (CTranslate2) model on disk
    large-v3, ORG/NAME a faster-whisper model of the hub, through its cache
    parakeet:MODEL     Parakeet with transformers: a folder or ORG/NAME

    Raises: UserError naming the package to install, the file that is missing, or what the hub said.
    """
    if name == "tiny.en":
        return Transcriber(device=device)
    if name.startswith("parakeet:"):
        return Parakeet(name.partition(":")[2], device)
    return Whisper(model_folder(name), name, device)


def normal_words(text: str) -> list[str]:
    """The words of a text as they are said: numbers in words, no case, punctuation or fillers."""
    said = " ".join(part for word in expand(text) for part in word.spoken).lower()
    return [word for word in re.sub(r"[^\w\s]", "", said).split() if word not in FILLERS]


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest words to put in, take out or exchange to turn one into the other (Levenshtein distance)."""
    row = list(range(len(heard) + 1))  # distances of the reference so far to every beginning of `heard`
    for n, word in enumerate(reference, 1):
        above, row = row, [n]
        for m, other in enumerate(heard):
            row.append(min(above[m] + (word != other), above[m + 1] + 1, row[m] + 1))
    return row[-1]


def group_turns(words: Sequence[Word]) -> list[list[Word]]:
    """Cuts the words of one side at pauses of PAUSE_SECONDS, and where a turn would be too long to hear."""
    turns: list[list[Word]] = []
    for word in words:
        if turns and word.start - turns[-1][-1].end < PAUSE_SECONDS and word.end - turns[-1][0].start < TURN_SECONDS:
            turns[-1].append(word)
        else:
            turns.append([word])
    return turns


@dataclass(kw_only=True, frozen=True)
class Score:
    """Errors among the reference words of one channel, or of several together."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """The word error rate; above 1 where more was heard than is written."""
        return self.errors / max(self.words, 1)

    def __str__(self) -> str:
        return f"{self.rate:.1%} of {self.words} words"


def pooled(scores: Iterable[Score]) -> Score:
    """All scores added up."""
    every = list(scores)
    return Score(errors=sum(score.errors for score in every), words=sum(score.words for score in every))


def judge(channels: Collection[Score]) -> float | None:
    """The worst rate of a dialogue, of one channel or of all together; None if all of it is below MIN_WORDS."""
    long_enough = [score.rate for score in (pooled(channels), *channels) if score.words >= MIN_WORDS]
    return max(long_enough, default=None)


def hear_channel(hears: Hears, audio: Audio, rate: int, words: Sequence[Word]) -> Score:
    """Transcribes every turn of one side and compares with its words. Shape: audio [samples]."""
    scores = []
    for turn in group_turns(words):
        start, end = max(turn[0].start - PAD_SECONDS, 0), turn[-1].end + PAD_SECONDS
        reference = normal_words(" ".join(word.text for word in turn))
        heard = normal_words(hears.transcribe(audio[round(start * rate) : round(end * rate)], rate))
        scores.append(Score(errors=word_errors(reference, heard), words=len(reference)))
    return pooled(scores)


def hear_split(reader: ShardReader, hears: Hears, num: int, max_wer: float) -> tuple[list[str], list[str]]:
    """Transcribes `num` evenly spaced dialogues of a split, on every channel that has words.

    Returns (report, problems): a line for each dialogue and each source, and one for each dialogue whose word error
    rate is above `max_wer`.
    """
    split, lines, problems = reader.name, [], []
    heard: dict[str, list[Score]] = {}
    judged: dict[str, list[float]] = {}
    rows: dict[str, int] = {}  # a call between equals is heard once
    for i, row in enumerate(reader.rows):
        rows.setdefault(row.id, i)
    chosen = sorted({int(n) for n in np.linspace(0, len(rows) - 1, num)})
    for i in tqdm([list(rows.values())[n] for n in chosen], desc=f"hear {split}", unit="dialogue", disable=None):
        row = reader.rows[i]
        try:
            dialogue, (wav_CS, rate) = reader.dialogue(i), reader.audio(i)
        except BadSample as why:
            problems.append(f"{split}: {why}")
            continue
        words = {side: dialogue.side(side).words for side in SIDES}
        scores = {
            side: hear_channel(hears, wav_S, rate, words[side])
            for side, wav_S in zip(SIDES, wav_CS, strict=True)
            if words[side]
        }
        heard.setdefault(row.source, []).extend(scores.values())
        worst = judge(scores.values())
        told = f"word error rate {', '.join(f'{side} {score}' for side, score in scores.items())}"
        lines.append(f"{split}: {row.id}: {told}{': too few to judge' if worst is None else ''}")
        if worst is not None:
            judged.setdefault(row.source, []).append(worst)
            if worst > max_wer:
                problems.append(f"{split}: {row.id}: the transcript does not match the audio: {told}")
    for source, all_scores in heard.items():
        worsts = judged.get(source, [])
        above = f"{sum(worst > max_wer for worst in worsts)} of {len(worsts)} judged dialogues above {max_wer:g}"
        lines.append(f"{split}: {source}: word error rate {pooled(all_scores)}; {above}")
    return lines, problems
