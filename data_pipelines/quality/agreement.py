"""Do speech recognition, the speaker embedder and the text stream agree with the record of a dialogue?"""

import re
from collections.abc import Sequence
from math import floor

import numpy as np

from data_pipelines.listening.speaker import MIN_VOICED_SECONDS, RATE_HZ, Embedder, similarity, voiced
from data_pipelines.quality.transcription import MIN_WORDS, Score, pooled
from data_pipelines.records.schema import Side, Word
from data_pipelines.records.turns import group_turns
from data_pipelines.sound.audio import Audio
from data_pipelines.text.words import normal_words
from model.config import FRAME_RATE, LMConfig, frames_of
from model.prompt import PAUSE_FRAMES, role_ids
from model.text import TextTokenizer, text_stream


def name_words(*texts: str) -> frozenset[str]:
    """The names in some texts, in lower case: words with a capital inside a sentence, which no recogniser can spell."""
    found = set()
    for text in texts:
        for sentence in re.split(r"(?<=[.?!:])\s+", text):
            tokens = re.findall(r"[^\W\d_][\w'-]*", sentence)
            found |= {word for token in tokens[1:] if token[0].isupper() for word in normal_words(token)}
    return frozenset(found - {"i", "im", "ill", "ive", "id", "a", "m", "p"})


def asr_values(channels: Sequence[Sequence[Score]]) -> dict[str, float]:
    """The word error rates of left and right, of the worse one, and of the worst turn.

    Sides and turns of fewer than MIN_WORDS words are not judged.
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
    """The voiced audio of every turn; short turns are joined to the next until they last 2 s.

    The rest is joined to the last piece, so that all speech counts; [] if all of it is shorter than 2 s.
    Shapes: audio [samples] at `rate` Hz -> pieces [samples] at 16 kHz.
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
    """The least similarity of the agent's turns and its voice prompt, and the similarity of agent and user.

    Both need 2 s of voice or more; a value that cannot be measured is left out.
    Shapes: agent, user and prompt [samples] at `rate` Hz.
    """
    clip = voiced(prompt, rate)
    if len(clip) < RATE_HZ:
        return {"speaker_similarity": 0.0}  # the voice prompt holds no voice
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
    """How the agent's words fit into the text stream, where a word starts at frame floor(12.5 * start)."""
    frames = frames_of(seconds)
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
    """The frames in front of the dialogue: voice clip, pause, role text (0 without a tokenizer), pause."""
    role = len(role_ids(role_prompt, tokenizer)) if tokenizer else 0
    return frames_of(voice_seconds) + 2 * PAUSE_FRAMES + role
