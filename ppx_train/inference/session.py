"""One conversation: what it was asked to be, how far it is, and the agent's frames and text as they come."""

# Shapes: K streams, P prompt frames, S samples (of a frame)

import codecs
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.config import FRAME_RATE, UNGENERATED_ID
from model.streaming.sample import Sampling
from model.text import SPECIAL_NAMES, TextTokenizer
from ppx_train.inference.refresh import History, Refresh

Audio = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What a conversation is, from its beginning to its end.

    prompt_KP: the prompt's frames [17, P], or None. voice_frames: how many of its first frames are the voice alone,
    which other roles share. seed: the same seed and the same user audio give the same tokens; None: a new one.
    own_voice: the id of a voice that is one caller's alone, of whose prompt nothing is kept for others; "" for others.
    """

    prompt_KP: Tensor | None = None
    voice_frames: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    own_voice: str = ""

    @property
    def prompt_frames(self) -> int:
        """Length of the prompt."""
        return 0 if self.prompt_KP is None else self.prompt_KP.shape[1]


@dataclass(frozen=True, kw_only=True)
class AgentFrame:
    """The agent's side of one frame.

    number: 0 for the first frame after the prompt. tokens: the 9 ids, text first; UNGENERATED_ID in frame 0 of a
    conversation without a prompt, whose sound is silence. text: what became readable in this frame.
    Shapes: agent_S [1920], float32 in about [-1, 1] at 24 kHz.
    """

    number: int
    tokens: tuple[int, ...]
    agent_S: Audio
    text: str

    @property
    def seconds(self) -> float:
        """When the frame begins, in seconds since the prompt."""
        return self.number / FRAME_RATE

    @property
    def kind(self) -> str:
        """What the text stream holds: text, or EPAD (about to speak), PAD (silent), BOS or EOS."""
        first = self.tokens[0]
        return SPECIAL_NAMES[first] if 0 <= first < len(SPECIAL_NAMES) else "text" if first >= 0 else "PAD"


class TextPieces:
    """Turns ids into text as they come; characters that are spelt byte by byte appear once they are whole."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, i: int) -> str:
        """What becomes readable with one more id; special ids are silent."""
        if i == UNGENERATED_ID or i < len(SPECIAL_NAMES):
            return ""
        byte = self._tokenizer.byte(i)
        if byte is not None:
            return self._bytes.decode(bytes([byte]))
        unfinished = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return unfinished + self._tokenizer.piece(i)


class Session:
    """A conversation that has a slot; made and advanced by `Conversations`, which alone changes it."""

    def __init__(self, settings: SessionSettings, slot: int, tokenizer: TextTokenizer) -> None:
        self.settings, self.slot = settings, slot
        self.prompted = 0
        """Frames of the prompt that the model has seen."""
        self.frames = 0
        """Frames of the conversation so far."""
        self.ended = False
        self.history: History | None = None
        self.refresh: Refresh | None = None
        """The refresh of its prompt that is being fed, see refresh.py."""
        self._pieces = TextPieces(tokenizer)

    @property
    def is_ready(self) -> bool:
        """Whether the prompt is through, so that the user may speak."""
        return self.prompted == self.settings.prompt_frames

    def heard(self, tokens: tuple[int, ...], agent_S: Audio) -> AgentFrame:
        """Counts one frame, and returns it with its text."""
        frame = AgentFrame(number=self.frames, tokens=tokens, agent_S=agent_S, text=self._pieces.add(tokens[0]))
        self.frames += 1
        return frame
