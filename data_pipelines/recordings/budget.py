"""Says how long a dialogue may be, as a training row also holds the voice clip, the role prompt and two pauses.

A row has 2048 frames, and a role prompt takes a frame a token. Without the tokenizer of the model to be trained its
tokens are estimated on the high side, at two characters each, which is what a vocabulary of 1,000 pieces needs for
prompts about a call.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from model.config import FRAME_RATE, frames_of
from model.prompt import PAUSE_FRAMES, wrap_role
from model.text import TextTokenizer

ROW_FRAMES = 2048
CHARS_PER_TOKEN = 2.0


def token_counter(tokenizer: str) -> Callable[[str], int]:
    """Returns what counts the frames of a role prompt, tags included: a tokenizer file, or with "" an estimate.

    Raises: UserError from the counter if the file is no tokenizer.
    """
    if not tokenizer:
        return lambda text: math.ceil(len(wrap_role(text)) / CHARS_PER_TOKEN)
    return lambda text: len(_shared_tokenizer(tokenizer).encode(wrap_role(text)))


@lru_cache(maxsize=1)
def _shared_tokenizer(path: str) -> TextTokenizer:
    return TextTokenizer(Path(path))


def dialogue_seconds(voice_seconds: float, prompt_tokens: int) -> float:
    """Returns the longest dialogue, in seconds, that fits a row beside a voice clip and a prompt of this size."""
    return (ROW_FRAMES - frames_of(voice_seconds) - prompt_tokens - 2 * PAUSE_FRAMES) / FRAME_RATE


def row_frames(seconds: float, voice_seconds: float, prompt_tokens: int) -> int:
    """Returns the frames of the training row; the first is not trained on and not counted (see `model.prompt`)."""
    prompt = frames_of(voice_seconds) + prompt_tokens + 2 * PAUSE_FRAMES - 1
    return prompt + frames_of(seconds)
