"""The trained tokenizer has Moshi's id layout, keeps `<system>` whole and is the same file every time."""

import re
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.records.schema import Script
from data_pipelines.verbs import main
from data_pipelines.writer.synth import write_scripts
from data_pipelines.writer.tokenizer import train_tokenizer, training_text
from model.errors import UserError
from tests.refusals import refused


def save(path: Path, scripts: list[Script]) -> None:
    path.write_text("".join(script.to_json() + "\n" for script in scripts))


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    return write_scripts("service", num=150, seed=1) + write_scripts("assistant", num=100, seed=1)


@pytest.fixture(scope="module")
def pieces(scripts: list[Script]) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer(scripts, 600))


def test_ids_0_to_3_are_unknown_begin_end_and_padding(pieces: sentencepiece.SentencePieceProcessor) -> None:
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, 3)
    assert pieces.get_piece_size() == 600


def test_the_text_stream_never_gets_one_of_the_special_ids(
    pieces: sentencepiece.SentencePieceProcessor, scripts: list[Script]
) -> None:
    for text in training_text(scripts):
        assert min(pieces.encode(text)) > 3


def test_prompts_and_turns_survive_encoding(
    pieces: sentencepiece.SentencePieceProcessor, scripts: list[Script]
) -> None:
    for text in training_text(scripts[:40]):
        assert pieces.decode(pieces.encode(text)) == text


def test_the_system_tag_is_one_piece(pieces: sentencepiece.SentencePieceProcessor) -> None:
    text = "<system> You enjoy having a good conversation. <system>"
    tag = pieces.piece_to_id("<system>")
    assert tag > 3 and pieces.encode(text).count(tag) == 2
    assert pieces.decode(pieces.encode(text)) == text


def test_unseen_characters_fall_back_to_bytes(pieces: sentencepiece.SentencePieceProcessor) -> None:
    text = "caf\u00e9 \u0416"
    assert min(pieces.encode(text)) > 3 and pieces.decode(pieces.encode(text)) == text


def test_training_twice_gives_the_same_bytes(scripts: list[Script]) -> None:
    assert train_tokenizer(scripts, 500) == train_tokenizer(scripts, 500)


def test_the_verb_writes_once_and_never_overwrites(
    tmp_path: Path, scripts: list[Script], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "scripts.jsonl", tmp_path / "text.model"
    save(source, scripts)
    words = ["tokenizer", "--out", str(out), "--vocab", "400", "--scripts", str(source), str(source)]
    main(words)
    assert "400 pieces, written" in capsys.readouterr().out
    main(words)
    assert "already there, unchanged" in capsys.readouterr().out
    with refused("exists", out):
        main([*words[:4], "450", *words[5:]])


def test_a_vocabulary_that_does_not_fit_is_refused_with_one_that_does(scripts: list[Script]) -> None:
    with refused("bad-value", "--vocab 100", "at least 300"):
        train_tokenizer(scripts[:60], 100)
    with pytest.raises(UserError, match=r"--vocab 32000 does not fit .* use --vocab (\d+) or less") as why:
        train_tokenizer(scripts[:60], 32000)
    largest = re.search(r"use --vocab (\d+)", str(why.value))
    assert largest and train_tokenizer(scripts[:60], int(largest[1]))


def test_too_little_text_is_refused(tmp_path: Path, scripts: list[Script]) -> None:
    with refused("bad-value", "--vocab 1000"):
        train_tokenizer(scripts[:1], 1000)
    with refused("no-data", "0 scripts"):
        train_tokenizer([], 1000)
    with refused("not-found", tmp_path / "none.jsonl"):
        main(["tokenizer", "--out", str(tmp_path / "t.model"), "--scripts", str(tmp_path / "none.jsonl")])


def test_the_file_name_must_end_in_model(tmp_path: Path) -> None:
    with refused("bad-value", tmp_path / "text.bin", ".model"):  # This comes before the scripts are looked for.
        main(["tokenizer", "--out", str(tmp_path / "text.bin"), "--scripts", str(tmp_path / "none.jsonl")])
