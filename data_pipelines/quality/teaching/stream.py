"""How the agent's words fill its text stream: how late they come, and how many frames hold a piece of a word."""

# Shapes: T frames

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.quality.agreement import text_values
from data_pipelines.quality.teaching.floor import UNTIMED
from data_pipelines.quality.teaching.lesson import Lesson, Value
from model.config import LMConfig, frames_of
from model.text import TextTokenizer, text_stream

NAMES = ("lag_mean", "lag_95", "lag_longest", "word_end_padding", "pieces", "overflow")


@dataclass
class Stream:
    """Collects the text streams of many dialogues; without a tokenizer there are none."""

    tokenizer: TextTokenizer | None = None
    lags: Counter[int] = field(default_factory=Counter)
    """Words by the frames that they come late."""
    frames: int = 0
    pieces: int = 0
    paddings: int = 0
    """Frames of EPAD, the padding before a word."""
    crowded: float = 0.0
    """Words with more pieces than frames until the next word."""
    is_timed: bool = False

    def add(self, talk: Lesson) -> None:
        """Adds the streams of all sides that may be the agent."""
        dialogue = talk.dialogue
        self.is_timed |= dialogue is not None
        if dialogue is None or self.tokenizer is None:
            return
        config = LMConfig(text_card=max(self.tokenizer.card, 4))
        for name in dialogue.agent_sides:
            words, frames = dialogue.side(name).words, frames_of(dialogue.seconds)
            stream = text_stream(words, frames, self.tokenizer, config)
            self.lags.update(stream.lag_frames)
            self.frames += frames
            paddings = int((stream.ids_T == config.text_end_padding_id).sum())
            self.paddings += paddings
            self.pieces += frames - paddings - int((stream.ids_T == config.text_padding_id).sum())
            self.crowded += len(words) * text_values(words, dialogue.seconds, self.tokenizer)["overflow_share"]

    def values(self) -> Mapping[str, Value]:
        """The measures, by name; lags in frames of 80 ms."""
        words = self.lags.total()
        if not words:
            note = "no tokenizer: give --tokenizer" if self.is_timed else UNTIMED
            return {name: Value(value=None, note=note) for name in NAMES}
        late = np.repeat(*np.array(sorted(self.lags.items())).T)
        found = [late.mean(), np.percentile(late, 95), late.max()]
        found += [self.paddings / self.frames, self.pieces / self.frames, self.crowded / words]
        return {
            name: Value(value=float(value), note=f"{words} words") for name, value in zip(NAMES, found, strict=True)
        }
