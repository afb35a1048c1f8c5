"""Do the stored words match the audio? A recogniser transcribes the turns, and the word error rate shows it."""

# Shapes: C channels, S samples

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data_pipelines.listening.asr import Hears
from data_pipelines.records.schema import SIDES, Word
from data_pipelines.records.turns import group_turns
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.sound.audio import Audio
from data_pipelines.text.words import normal_words, word_errors

PAD_SECONDS = 0.2
"""How much audio is added on both sides of a turn."""
MIN_WORDS = 10
"""A turn, channel or dialogue with fewer words is not judged by itself: one misheard "mm-hm" says nothing."""


@dataclass(kw_only=True, frozen=True)
class Score:
    """The errors among the reference words of a turn, of a channel, or of several."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """The word error rate, which is above 1 where more is heard than is written."""
        return self.errors / max(self.words, 1)

    def __str__(self) -> str:
        """The rate and the number of words, for people."""
        return f"{self.rate:.1%} of {self.words} words"


def pooled(scores: Iterable[Score]) -> Score:
    """The sum of all scores."""
    every = list(scores)
    return Score(errors=sum(score.errors for score in every), words=sum(score.words for score in every))


def worst_rate(channels: Collection[Score]) -> float | None:
    """The worst rate of a dialogue, of one channel or of all together; None if all of it has too few words."""
    long_enough = [score.rate for score in (pooled(channels), *channels) if score.words >= MIN_WORDS]
    return max(long_enough, default=None)


def hear_turns(
    hears: Hears, audio: Audio, rate: int, words: Sequence[Word], names: Collection[str] | None = None
) -> list[Score]:
    """Transcribes every turn of one side and compares it with its words.

    With `names` the spelling of these words does not count, and turns of hums and names alone are left out, because a
    recogniser makes words of them.
    Shapes: audio [samples] at `rate` Hz.
    """
    scores = []
    for turn in group_turns(words):
        reference = normal_words(" ".join(word.text for word in turn))
        num_words = sum(word not in (names or ()) for word in reference)
        if names is not None and not num_words:
            continue
        start, end = max(turn[0].start - PAD_SECONDS, 0), turn[-1].end + PAD_SECONDS
        heard = normal_words(hears.transcribe(audio[round(start * rate) : round(end * rate)], rate))
        scores.append(Score(errors=word_errors(reference, heard, names or ()), words=num_words))
    return scores


def hear_split(reader: ShardReader, hears: Hears, num: int, max_wer: float) -> tuple[list[str], list[str]]:
    """Transcribes `num` evenly spaced dialogues of a split, on every channel that has words.

    Returns: a line for each dialogue and each source, and a line for each dialogue whose word error rate is above
    `max_wer`.
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
            side: pooled(hear_turns(hears, wav_S, rate, words[side]))
            for side, wav_S in zip(SIDES, wav_CS, strict=True)
            if words[side]
        }
        heard.setdefault(row.source, []).extend(scores.values())
        worst = worst_rate(scores.values())
        rates = f"word error rate {', '.join(f'{side} {score}' for side, score in scores.items())}"
        lines.append(f"{split}: {row.id}: {rates}{', too few to judge' if worst is None else ''}")
        if worst is not None:
            judged.setdefault(row.source, []).append(worst)
            if worst > max_wer:
                problems.append(f"{split}: {row.id}: the transcript does not match the audio: {rates}")
    for source, all_scores in heard.items():
        worsts = judged.get(source, [])
        above = f"{sum(worst > max_wer for worst in worsts)} of {len(worsts)} judged dialogues above {max_wer:g}"
        lines.append(f"{split}: {source}: word error rate {pooled(all_scores)}; {above}")
    return lines, problems
