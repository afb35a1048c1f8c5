"""Text of the agent: the SentencePiece tokenizer and the frame-aligned text stream (inner monologue)."""

# Shapes: T frames

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from torch import Tensor

from model.config import LMConfig, frame_at
from model.errors import UserError
from model.prompt import Encoder

SPECIAL_NAMES = ("EPAD", "BOS", "EOS", "PAD")
"""Names of ids 0..3."""
WORD_MARK = "\u2581"
"""SentencePiece's sign for a space."""


class TextTokenizer:
    """SentencePiece model whose ids 0..3 are free to serve as EPAD, BOS, EOS and PAD.

    Raises: UserError if the file is missing ("not-found"), is no SentencePiece model ("unreadable"), or if ordinary
    text could produce ids 0..3 ("bad-value").
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such tokenizer; give a SentencePiece .model file", code="not-found")
        try:
            self._pieces = SentencePieceProcessor(model_file=str(path))
            self.card: int = self._pieces.get_piece_size()
            self._pieces.id_to_piece(list(range(self.card)))  # Pieces of a damaged file may be no text.
        except (RuntimeError, OSError, UnicodeDecodeError) as why:
            raise UserError(f"{path}: not a SentencePiece model; give a .model file", code="unreadable") from why
        for i, name in enumerate(SPECIAL_NAMES):
            if i >= self.card or not self._is_reserved(i):
                piece = self._pieces.id_to_piece(i) if i < self.card else "nothing"
                raise UserError(
                    f"{path}: id {i} is {piece!r} but must be free for {name}; "
                    "train the tokenizer with unk_id=0, bos_id=1, eos_id=2, pad_id=3",
                    code="bad-value",
                )

    def _is_reserved(self, i: int) -> bool:
        """Whether ordinary text never encodes to this id; the first byte piece stands for the NUL character."""
        pieces = self._pieces
        nul_byte = pieces.is_byte(i) and pieces.id_to_piece(i) == "<0x00>"
        return pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i) or nul_byte

    def encode(self, text: str) -> list[int]:
        """Ids of `text`.

        Raises: UserError for a character that the tokenizer cannot spell: its id, 0, would read as EPAD.
        """
        ids = self._pieces.encode(text)
        if ids and min(ids) < len(SPECIAL_NAMES):
            unknown = sorted({c for c in text if not c.isspace() and min(self._pieces.encode(c), default=4) < 4})
            raise UserError(
                f"{text!r}: {self.path.name} has no piece for {''.join(unknown)!r}: respell or remove it",
                code="bad-value",
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Plain text of a text stream, without EPAD, BOS, EOS and PAD."""
        return self._pieces.decode([int(i) for i in ids if i >= len(SPECIAL_NAMES)])

    @cached_property
    def pieces(self) -> list[str]:
        """All pieces in the order of their ids, with SentencePiece's sign for a space."""
        return [self._pieces.id_to_piece(i) for i in range(self.card)]

    def is_text(self, i: int) -> bool:
        """Whether an id is spelt by the letters of its piece; bytes and reserved ids are not."""
        return not self._is_reserved(i) and not self._pieces.is_byte(i)

    def spell(self, piece: str) -> list[int]:
        """Ids that spell a piece of another tokenizer; [] if a character of it cannot be spelt."""
        ids = self._within_words.encode(piece.replace(WORD_MARK, " "))
        return ids if min(ids, default=0) >= len(SPECIAL_NAMES) else []

    @cached_property
    def _within_words(self) -> Any:
        """The tokenizer without the space that it puts before a text: a piece may lie within a word."""
        model = sentencepiece_model_pb2.ModelProto.FromString(self.path.read_bytes())  # type: ignore[attr-defined]
        model.normalizer_spec.add_dummy_prefix = False
        model.normalizer_spec.remove_extra_whitespaces = False
        return SentencePieceProcessor(model_proto=model.SerializeToString())

    def byte(self, i: int) -> int | None:
        """The byte that an id stands for, where a character has no piece of its own; None for other ids."""
        return int(self._pieces.id_to_piece(i)[1:-1], 16) if self._pieces.is_byte(i) else None

    def piece(self, i: int) -> str:
        """One id as a person reads it: the piece with a space for the word mark, or EPAD, BOS, EOS, PAD.

        Raises: UserError if the vocabulary has no such id.
        """
        if not 0 <= i < self.card:
            raise UserError(
                f"text id {i} is outside 0..{self.card - 1}: the tokenizer is another model's", code="bad-value"
            )
        return SPECIAL_NAMES[i] if i < len(SPECIAL_NAMES) else self._pieces.id_to_piece(i).replace(WORD_MARK, " ")


class TimedWord(Protocol):
    """A word with its start in seconds."""

    @property
    def text(self) -> str:
        """The word as it is written."""

    @property
    def start(self) -> float:
        """Seconds from the start of the dialogue."""


@dataclass(kw_only=True)
class TextStream:
    """The agent's text stream and what did not fit into it."""

    ids_T: Tensor
    """One id a frame, int64."""
    overflow_pieces: int
    """Pieces that fell past the last frame and are missing from ids_T."""
    lag_frames: list[int]
    """For each word the frames by which it begins later than spoken, because the word before still had pieces left."""

    @property
    def late_words(self) -> int:
        """Words that begin later than spoken."""
        return sum(lag > 0 for lag in self.lag_frames)

    @property
    def max_lag_frames(self) -> int:
        """Frames by which the latest word is late."""
        return max(self.lag_frames, default=0)


def text_stream(
    words: Sequence[TimedWord],
    num_frames: int,
    tokenizer: Encoder,
    config: LMConfig,
) -> TextStream:
    """Places words on frames: one piece a frame from `frame_at(start)` on, and EPAD before a word in place of PAD.

    words: in the order of their starts. Where a frame is still taken by the word before, the pieces follow on, so
    that no piece is lost before the last frame.
    Raises: UserError ("bad-transcript") if a word starts before 0 s or before the word in front of it.
    Source: Moshi's open fine-tuning code for EPAD. Unlike it, this drops no pieces when words come fast.
    """
    ids = [config.text_padding_id] * num_frames
    lags: list[int] = []
    free = overflow = 0
    last_start = 0.0
    for word in words:
        if word.start < last_start:
            raise UserError(
                f"word {word.text!r} starts at {word.start} s, before {last_start} s: sort the words by time",
                code="bad-transcript",
            )
        last_start = word.start
        spoken = frame_at(word.start)
        frame = max(spoken, free)
        lags.append(frame - spoken)
        pieces = tokenizer.encode(word.text)
        fitting = pieces[: max(0, num_frames - frame)]
        overflow += len(pieces) - len(fitting)
        if fitting and frame > 0 and ids[frame - 1] == config.text_padding_id:
            ids[frame - 1] = config.text_end_padding_id
        ids[frame : frame + len(fitting)] = fitting
        free = frame + len(pieces)
    return TextStream(
        ids_T=torch.tensor(ids, dtype=torch.int64),
        overflow_pieces=overflow,
        lag_frames=lags,
    )
