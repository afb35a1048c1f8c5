"""Another text vocabulary at the start: which rows are kept, which are means, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from torch.distributed.device_mesh import init_device_mesh

from model.errors import Code
from model.text import SPECIAL_NAMES, TextTokenizer
from model.weights.checkpoint import save_native
from ppx_train.config.load import load
from ppx_train.config.run import Run
from ppx_train.training.build import base_lm
from ppx_train.training.optim import TEXT_TABLES, make_optimizer
from ppx_train.training.start import sharded_lm
from ppx_train.training.vocabulary import NewVocabulary
from tests.ppx_train.fixtures import build_lm, make_tokenizer, run_arguments
from tests.refusals import refused

SPANISH = (
    "buenos días en qué puedo ayudarle hoy la recogida de basura es el doce de abril cada dos semanas mañana también "
    "gracias por llamar su pedido llegará el viernes por la tarde quiere que le envíe una confirmación por correo"
)
SPECIAL = len(SPECIAL_NAMES)


def make_other(path: Path, vocab: int = 320, text: str = SPANISH, byte_fallback: bool = True) -> Path:
    lines = [" ".join(np.random.default_rng(n).permutation(text.split())) for n in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=vocab,
        byte_fallback=byte_fallback, unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English and a Spanish tokenizer of as many pieces, and weights in the public layout."""
    folder = tmp_path_factory.mktemp("vocabulary")
    make_tokenizer(folder / "old.model")
    card = TextTokenizer(folder / "old.model").card
    make_other(folder / "tokenizer.model", vocab=card)
    save_native(folder / "weights", build_lm(run_of(folder, "seed=5", f"model.tokenizer={folder / 'old.model'}")))
    return folder


def run_of(folder: Path, *more: str) -> Run:
    return load(run_arguments(folder, folder / "run", *more))


def swapped(folder: Path, *more: str) -> Run:
    return run_of(folder, f"model.init={folder / 'weights'}", f"model.init_tokenizer={folder / 'old.model'}", *more)


def test_every_source_spells_its_piece_letter_by_letter(folder: Path) -> None:
    old, new = (TextTokenizer(folder / name) for name in ("old.model", "tokenizer.model"))
    vocabulary = NewVocabulary(old, new, old.card)
    spelt = 0
    for i, (piece, ids) in enumerate(zip(new.pieces, vocabulary.sources, strict=True)):
        if i < SPECIAL:
            assert ids == [i]
        elif piece in old.pieces:
            assert [old.pieces[k] for k in ids] == [piece]
        else:
            as_bytes = [old.byte(k) for k in ids]
            parts = [
                old.pieces[k].encode() if byte is None else bytes([byte]) for k, byte in zip(ids, as_bytes, strict=True)
            ]
            assert b"".join(parts).decode() == piece and ids
            spelt += 1
    assert spelt > 10 and f"{spelt} begin as the mean" in vocabulary.describe()
    assert f"{vocabulary.kept} keep" in vocabulary.describe() and vocabulary.kept > 256  # all bytes, and letters


@pytest.mark.parametrize("name", TEXT_TABLES)
def test_rows_are_kept_or_means_and_the_initial_id_stays(folder: Path, name: str) -> None:
    before = base_lm(run_of(folder, f"model.init={folder / 'weights'}", f"model.tokenizer={folder / 'old.model'}"))
    after = base_lm(swapped(folder))
    old_VD, new_VD = before.get_parameter(name), after.get_parameter(name)
    old, new = (TextTokenizer(folder / name) for name in ("old.model", "tokenizer.model"))
    assert torch.equal(new_VD[:SPECIAL], old_VD[:SPECIAL])
    assert torch.equal(new_VD[old.card :], old_VD[old.card :]) and new_VD.shape == old_VD.shape
    for i, ids in enumerate(NewVocabulary(old, new, old.card).sources):
        torch.testing.assert_close(new_VD[i], torch.stack([old_VD[k] for k in ids]).sum(0) / len(ids))
    others = [other for other, _ in before.named_parameters() if other not in TEXT_TABLES]
    assert all(torch.equal(before.get_parameter(other), after.get_parameter(other)) for other in others)


def test_a_sharded_start_has_the_same_rows(folder: Path, tmp_path: Path) -> None:
    run = swapped(folder, "trainer.strategy=fsdp2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        lm, _ = sharded_lm(run, init_device_mesh("cpu", (1,)), torch.device("cpu"))
        whole = base_lm(run)
        for name, value in lm.named_parameters():
            assert torch.equal(value.to_local(), whole.get_parameter(name)), name  # type: ignore[attr-defined]
    finally:
        torch.distributed.destroy_process_group()


def test_what_cannot_be_spelt_begins_near_the_mean_of_all_and_nowhere_twice(tmp_path: Path) -> None:
    texts = {"old": "abcdefghij klmnopqrst uvwx", "new": "αβγδεζηθικ λμνξοπρστυ φχψω"}
    made = [make_other(tmp_path / f"{name}.model", 40, text, byte_fallback=False) for name, text in texts.items()]
    old, new = map(TextTokenizer, made)
    card = min(old.card, new.card)
    assert old.card == new.card == card, "the texts above give as many pieces"
    vocabulary = NewVocabulary(old, new, card)
    assert vocabulary.unknown > 20
    table_VD = torch.randn(card + 1, 64, generator=torch.Generator().manual_seed(0))
    rows_VD = vocabulary.rows(TEXT_TABLES[0], table_VD)
    unknown_VD = rows_VD[[i for i, ids in enumerate(vocabulary.sources) if not ids]]
    mean_D = table_VD[SPECIAL:card].mean(0)
    apart = (unknown_VD - mean_D).norm(dim=1) / table_VD[SPECIAL:card].std(0).norm()
    assert (apart < 0.01).all() and len(unknown_VD.unique(dim=0)) == len(unknown_VD)
    assert torch.equal(rows_VD, vocabulary.rows(TEXT_TABLES[0], table_VD))


def test_the_rows_can_train_alone(folder: Path) -> None:
    run = swapped(folder, "optim.lr.text=1e-3", "optim.lr.temporal=0", "optim.lr.depth=0")
    lm = base_lm(run)
    before = {name: value.detach().clone() for name, value in lm.named_parameters()}
    optimizer = make_optimizer(lm.named_parameters(), run.optim)
    sum((value**2).sum() for value in lm.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    moved = {name for name, value in lm.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(TEXT_TABLES)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups}["text"] == 1e-3


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["model.init_tokenizer=x"], "bad-combination", ["model.init_tokenizer", "scratch"]),
        (
            ["model.init=x", "model.init_tokenizer=x", "model.lora.rank=2"],
            "bad-combination",
            ["init_tokenizer", "lora"],
        ),
        (["model.init=x", "optim.lr.text=0.1", "model.lora.rank=2"], "bad-combination", ["optim.lr.text", "frozen"]),
        (["optim.lr.text=2"], "bad-value", ["optim.lr.text=2"]),
    ],
)
def test_settings_that_cannot_take_effect_are_refused(
    folder: Path, words: list[str], code: Code, names: list[str]
) -> None:
    with refused(code, *names):
        run_of(folder, *words)


def test_unfit_tokenizers_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    weights = f"model.init={folder / 'weights'}"
    old, new = folder / "old.model", folder / "tokenizer.model"
    other = make_other(tmp_path / "other.model", vocab=300)
    special = tmp_path / "special.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SPANISH] * 50), model_prefix=str(special.with_suffix("")), vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    cases: tuple[tuple[Code, Path, Path, list[str]], ...] = (
        ("bad-combination", new, new, ["leave it out"]),
        ("bad-combination", other, new, ["other.model", "300 pieces", "320"]),
        ("bad-combination", old, other, ["other.model", "300 pieces", "320"]),
        ("bad-value", old, special, ["special.model", "id 3"]),
        ("not-found", tmp_path / "none.model", new, ["none.model"]),
    )
    for code, before, after, names in cases:
        with refused(code, *names):
            base_lm(run_of(folder, weights, f"model.init_tokenizer={before}", f"model.tokenizer={after}"))
