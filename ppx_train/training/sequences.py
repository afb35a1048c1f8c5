"""From a stored sample to the sequence that the model is trained on: its prompt, then the dialogue."""

# Shapes: K streams, P prompt frames, Q codebooks, T frames

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipelines.shards.index import BadSample, Sample
from model.config import FRAME_RATE, LMConfig
from model.errors import UserError
from model.mimi.files import load_mimi
from model.prompt import hybrid_prompt, role_ids, training_sequence
from model.text import TextTokenizer, text_stream
from ppx_train.config.data import Data
from ppx_train.config.parts import Loss

MIN_DIALOGUE_FRAMES = 25
"""2 s: a shorter dialogue after the prompt teaches nothing."""


class TrainingSequence(NamedTuple):
    """One sample as the model is trained on it: codes_KT int64 and has_loss_T bool."""

    id: str
    codes_KT: Tensor
    has_loss_T: Tensor
    source: str = ""
    dropped: tuple[str, ...] = ()
    """The parts of its prompt that were left out: "voice", "prompt" (the role)."""


def dropped_parts(data: Data, seed: int, index: int) -> tuple[str, ...]:
    """Returns the parts of the prompt that sample number `index` of a run goes without, a pure function of the seed.

    A larger share drops whatever a smaller one drops.
    """
    shares = {"voice": data.drop_voice, "prompt": data.drop_prompt}
    return tuple(part for part, share in shares.items() if Random(f"{seed}/drop/{part}/{index}").random() < share)


class WordPieces:
    """A tokenizer that caches words: without the cache, tokenising them takes half the time of a sequence."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.encode = lru_cache(maxsize=1 << 16)(tokenizer.encode)


class SequenceBuilder:
    """Turns one stored sample into what the model is trained on."""

    def __init__(self, lm: LMConfig, data: Data, loss: Loss, codec: Path, tokenizer: Path) -> None:
        mimi = load_mimi(codec)
        self.lm, self.data, self.loss = lm, data, loss
        self.fingerprint, self.codec = mimi.fingerprint(), codec
        self.silence, self.sine = (list(codes) for codes in mimi.constants())
        self.tokenizer = TextTokenizer(tokenizer)
        self.words = WordPieces(self.tokenizer)
        if mimi.card != lm.card:
            raise UserError(
                f"{codec} has {mimi.card} codes but model.lm.card={lm.card}: set model.lm.card={mimi.card}",
                code="bad-combination",
            )
        if self.tokenizer.card != lm.text_card:
            raise UserError(
                f"{tokenizer} has {self.tokenizer.card} pieces but model.lm.text_card={lm.text_card}: "
                f"set model.lm.text_card={self.tokenizer.card}",
                code="bad-combination",
            )

    def __call__(
        self, sample: Sample, dropped: Collection[str] = (), max_frames: int | None = None
    ) -> TrainingSequence:
        """Returns the hybrid prompt from frame 1 on, then the dialogue, cut to `max_frames` (None: those of the data).

        dropped: parts of the prompt that are left out, of "voice" and "prompt" (the role).
        Raises: BadSample if the prompt leaves no room or the text falls behind the audio.
        """
        codes_QT = sample.codes_QT
        highest = max(int(codes_QT.max()), int(sample.voice_codes_QP.max()))
        if highest >= self.lm.card:
            raise BadSample(sample.id, f"code {highest} is outside 0..{self.lm.card - 1}")
        role = role_ids(sample.role_prompt, self.tokenizer)
        dropped = tuple(part for part in dropped if part == "voice" or role)
        prompt_KP = self._prompt(
            None if "voice" in dropped else sample.voice_codes_QP, [] if "prompt" in dropped else role
        )
        max_frames = max_frames or self.data.max_frames
        frames = min(max_frames - (prompt_KP.shape[1] - 1), codes_QT.shape[1])
        if frames < MIN_DIALOGUE_FRAMES:
            raise BadSample(sample.id, f"{frames} of {max_frames} frames left after a prompt of {prompt_KP.shape[1]}")
        words = [word for word in sample.words if word.start * FRAME_RATE < frames]
        text = text_stream(words, frames, self.words, self.lm)
        if text.max_lag_frames > self.data.max_text_lag_frames:
            raise BadSample(sample.id, f"text falls {text.max_lag_frames} frames behind the audio")
        dialogue_KT = torch.cat([text.ids_T[None], codes_QT[:, :frames]])
        codes_KT, has_loss_T = training_sequence(self.lm, prompt_KP, dialogue_KT)
        return TrainingSequence(f"{sample.id}/{sample.side}", codes_KT, has_loss_T, sample.source, dropped)

    def _prompt(self, voice_codes_QP: Tensor | None, role: Sequence[int]) -> Tensor:
        """The prompt as a call with this voice and role is prompted [17, P]; without any frame if it has neither."""
        if voice_codes_QP is None and not role:
            return torch.zeros(self.lm.num_streams, 0, dtype=torch.int64)
        return hybrid_prompt(self.lm, voice_codes_QP, role, self.silence, self.sine)
