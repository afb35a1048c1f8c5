"""Do speech recognition, the speaker embedder and the text stream agree with the record of a dialogue?"""

import re
from collections.abc import Sequence
from math import floor

import numpy as np

from data_pipelines.listening.asr import Hears
from data_pipelines.listening.speaker import MIN_VOICED_SECONDS, RATE_HZ, Embedder, similarity, voiced
from data_pipelines.quality.transcription import MIN_WORDS, PAD_SECONDS, Score, pooled
from data_pipelines.records.schema import Side, Word
from data_pipelines.records.turns import group_turns
from data_pipelines.sound.audio import Audio
from data_pipelines.text.words import normal_words
from model.config import FRAME_RATE, LMConfig
from model.prompt import PAUSE_FRAMES, role_ids
from model.text import TextTokenizer, text_stream

NAME_WORDS = 3
"""A name may be heard as up to this many words, whatever they are."""


def name_words(*texts: str) -> frozenset[str]:
    """Words of the texts that are names, in lower case: capitals inside a sentence. A recogniser cannot spell them."""
    found = set()
    for text in texts:
        for sentence in re.split(r"(?<=[.?!:])\s+", text):
            tokens = re.findall(r"[^\W\d_][\w'-]*", sentence)
            found |= {word for token in tokens[1:] if token[0].isupper() for word in normal_words(token)}
    return frozenset(found - {"i", "im", "ill", "ive", "id", "a", "m", "p"})


def word_errors(reference: Sequence[str], heard: Sequence[str], names: frozenset[str]) -> Score:
    """Errors among the reference words that are no names (edit distance).

    A name matches any 0 to 3 heard words at no cost, so that its spelling does not count.
    """
    row = list(range(len(heard) + 1))
    for word in reference:
        above = row
        if word in names:
            row = [min(above[max(0, m - NAME_WORDS) : m + 1]) for m in range(len(above))]
        else:
            row = [above[0] + 1]
            for m, other in enumerate(heard):
                row.append(min(above[m] + (word != other), above[m + 1] + 1, row[m] + 1))
    return Score(errors=row[-1], words=sum(word not in names for word in reference))


def hear_turns(hears: Hears, audio: Audio, rate: int, words: Sequence[Word], names: frozenset[str]) -> list[Score]:
    """The score of every turn of one side, as a recogniser hears it. Shape: audio [samples].

    Turns of hums and names alone are left out: a recogniser makes words of them.
    """
    scores = []
    for turn in group_turns(words):
        reference = normal_words(" ".join(word.text for word in turn))
        if names.issuperset(reference):
            continue
        start, end = max(turn[0].start - PAD_SECONDS, 0), turn[-1].end + PAD_SECONDS
        heard = normal_words(hears.transcribe(audio[round(start * rate) : round(end * rate)], rate))
        scores.append(word_errors(reference, heard, names))
    return scores


def asr_values(channels: Sequence[Sequence[Score]]) -> dict[str, float]:
    """From the turns of both sides: the rate of each, of the worse one, and of the worst turn.

    Sides and turns of fewer than ten words are not judged: one misheard "mm-hm" says nothing.
    """
    pooled_sides = [pooled(scores) for scores in channels]
    rates = {side: score.rate for side, score in zip(("left", "right"), pooled_sides, strict=True) if score.words}
    values = {f"word_error_rate_{side}": rate for side, rate in rates.items()}
    if long := [score.rate for score in pooled_sides if score.words >= MIN_WORDS]:
        values["word_error_rate"] = max(long)
    if turns := [score.rate for scores in channels for score in scores if score.words >= MIN_WORDS]:
        values["turn_error_rate"] = max(turns)
    return values


def turn_pieces(audio: Audio, rate: int, words: Sequence[Word]) -> list[Audio]:
    """Voiced audio at 16 kHz of every turn; short ones are joined to the next until they last 2 s.

    What is left over is joined to the last, so that no speech goes unheard; [] if all of it is shorter.
    """
    pieces: list[Audio] = []
    waiting: list[Audio] = []
    for turn in group_turns(words):
        waiting.append(voiced(audio[round(turn[0].start * rate) : round(turn[-1].end * rate)], rate))
        if sum(map(len, waiting)) >= MIN_VOICED_SECONDS * RATE_HZ:
            pieces.append(np.concatenate(waiting))
            waiting = []
    if waiting and pieces:
        pieces[-1] = np.concatenate([pieces[-1], *waiting])
    return pieces


def speaker_values(
    embedder: Embedder, agent: Audio, user: Audio, rate: int, agent_side: Side, user_side: Side, prompt: Audio
) -> dict[str, float]:
    """Likeness of the agent's turns to its voice prompt (the least), and of agent and user; by 2 s of voice or more.

    Shapes: agent, user and prompt [samples] at `rate`.
    """
    clip = voiced(prompt, rate)
    if len(clip) < RATE_HZ:
        return {"speaker_similarity": 0.0}  # a voice prompt without a voice
    target = embedder.embed(clip)
    turns = [embedder.embed(piece) for piece in turn_pieces(agent, rate, agent_side.words)]
    values = {}
    if turns:
        values["speaker_similarity"] = min(similarity(vector, target) for vector in turns)
    other = turn_pieces(user, rate, user_side.words)
    if other and turns:
        mean = np.stack(turns).sum(axis=0)
        values["user_similarity"] = similarity(mean, embedder.embed(np.concatenate(other)))
    return values


def text_values(words: Sequence[Word], seconds: float, tokenizer: TextTokenizer) -> dict[str, float]:
    """Room of the agent's words in the text stream, where a word starts at frame floor(12.5 * start)."""
    frames = -(-round(seconds * FRAME_RATE * 1000) // 1000)
    stream = text_stream(words, frames, tokenizer, LMConfig(text_card=max(tokenizer.card, 4)))
    starts = [floor(word.start * FRAME_RATE + 1e-6) for word in words] + [frames]
    room = np.diff(starts)
    crowded = sum(len(tokenizer.encode(word.text)) > free for word, free in zip(words, room, strict=True))
    return {
        "overflow_share": crowded / max(len(words), 1),
        "lag_frames": stream.max_lag_frames,
        "lost_pieces": stream.overflow_pieces,
    }


def prompt_frames(role_prompt: str, voice_seconds: float, tokenizer: TextTokenizer | None) -> int:
    """Frames before the dialogue: voice clip, pause, role text, pause. Without a tokenizer the role text counts 0."""
    role = len(role_ids(role_prompt, tokenizer)) if tokenizer else 0
    return -(-round(voice_seconds * FRAME_RATE * 1000) // 1000) + 2 * PAUSE_FRAMES + role
