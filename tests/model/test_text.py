"""The tokenizer and the frame alignment of words, with expectations worked out by hand."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece

from model.config import LMConfig
from model.text import WORD_MARK, TextTokenizer, text_stream
from tests.paths import GOLDEN
from tests.refusals import refused

CONFIG = LMConfig(text_card=60)
PAD, EPAD = 3, 0


def train(path: Path, **ids: Any) -> Path:
    """Trains a tiny tokenizer that knows the letters of a few words, with SentencePiece's options `ids`."""
    lines = ["hello there how are you", "the quick brown fox", "you are there", "hello hello"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=60, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2, **ids,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("spm") / "tiny.model"
    return TextTokenizer(train(path, unk_id=0, bos_id=1, eos_id=2, pad_id=3))


class Timed(NamedTuple):
    """A word as a stream takes it."""

    text: str
    start: float
    end: float = 9.0


class FakeTokenizer:
    """Spells a word as the numbers in it: "7.8" -> [7, 8]."""

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.split(".")]


def place(words: list[tuple[str, float]], num_frames: int) -> tuple[list[int], int, int, int]:
    """Ids, overflow, late words and lag of words given as (text, start)."""
    stream = text_stream([Timed(*word) for word in words], num_frames, FakeTokenizer(), CONFIG)
    return stream.ids_T.tolist(), stream.overflow_pieces, stream.late_words, stream.max_lag_frames


def test_a_word_starts_at_its_frame_with_epad_before_it() -> None:
    assert place([("7.8", 0.25)], 7) == ([PAD, PAD, EPAD, 7, 8, PAD, PAD], 0, 0, 0)  # 0.25 s * 12.5 = 3.1


def test_a_decimal_time_on_a_frame_edge_is_not_a_frame_short() -> None:
    for frame in range(60):
        ids = place([("7", round(frame * 0.08, 2))], 60)[0]
        assert ids.index(7) == frame


def test_a_word_in_frame_0_has_no_epad() -> None:
    assert place([("7", 0.0)], 3)[0] == [7, PAD, PAD]


def test_pieces_follow_on_when_the_frame_is_taken_and_the_lag_is_reported() -> None:
    words = [("10.11.12", 0.08), ("20", 0.16), ("30", 0.40)]
    # The word 20 was due at frame 2 and comes at 4; 30 is in time.
    assert place(words, 7) == ([EPAD, 10, 11, 12, 20, 30, PAD], 0, 1, 2)


def test_epad_never_replaces_a_piece() -> None:
    assert place([("10", 0.08), ("20", 0.16), ("30", 0.32)], 6)[0] == [EPAD, 10, 20, EPAD, 30, PAD]


def test_pieces_past_the_end_are_counted() -> None:
    assert place([("10.11.12", 0.16), ("13.14", 0.4)], 4) == ([PAD, EPAD, 10, 11], 3, 0, 0)
    assert place([("10", 0.32)], 4) == ([PAD] * 4, 1, 0, 0)


def test_words_out_of_order_are_refused() -> None:
    with refused("bad-transcript", "'8'", 0.1, 0.5):
        place([("7", 0.5), ("8", 0.1)], 9)
    with refused("bad-transcript", "'7'", -0.1):
        place([("7", -0.1)], 9)


def test_text_comes_back_from_its_stream(tokenizer: TextTokenizer) -> None:
    words = [Timed("hello", 0.2), Timed("there", 1.0), Timed("you", 2.0)]
    stream = text_stream(words, 60, tokenizer, CONFIG)
    assert stream.overflow_pieces == 0
    assert tokenizer.decode(stream.ids_T.tolist()) == "hello there you"


def test_pieces_are_shown_with_spaces_and_special_names(tokenizer: TextTokenizer) -> None:
    assert [tokenizer.piece(i) for i in range(4)] == ["EPAD", "BOS", "EOS", "PAD"]
    assert "".join(tokenizer.piece(i) for i in tokenizer.encode("hello you")) == " hello you"
    with refused("bad-value", tokenizer.card):
        tokenizer.piece(tokenizer.card)


def test_an_unknown_character_is_refused_and_named(tokenizer: TextTokenizer) -> None:
    with refused("bad-value", "'hello 7'", "no piece for '7'"):
        tokenizer.encode("hello 7")


def test_a_tokenizer_without_a_padding_id_3_is_refused(tmp_path: Path) -> None:
    path = train(tmp_path / "default.model")  # SentencePiece's defaults: id 3 is an ordinary piece
    with refused("bad-value", path, "id 3", "PAD", "pad_id=3"):
        TextTokenizer(path)


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "none.model"):
        TextTokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"hello")
    with refused("unreadable", tmp_path / "bad.model"):
        TextTokenizer(tmp_path / "bad.model")


def test_a_tokenizer_whose_pieces_are_no_text_is_refused(tmp_path: Path) -> None:
    data = (GOLDEN / "training/tokenizer.model").read_bytes()
    at = data.rindex(WORD_MARK.encode())
    (tmp_path / "bad.model").write_bytes(data[:at] + b"\xff" * 3 + data[at + 3 :])
    with refused("unreadable", tmp_path / "bad.model"):
        TextTokenizer(tmp_path / "bad.model")
