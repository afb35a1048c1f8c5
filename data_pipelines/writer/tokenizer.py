"""`ppx-data tokenizer`: a small SentencePiece model trained on scripts, with the id layout of Moshi's tokenizer.

Ids 0 to 3 are unknown (used as EPAD in the text stream), BOS, EOS and PAD; `<system>` is one piece, and bytes
stand for characters that were never seen. Training runs on one thread and gives the same file every time.
"""

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from data_pipelines.files import save_once
from data_pipelines.records.schema import Script, read_scripts
from data_pipelines.writer.synth import write_scripts
from model.errors import UserError

SYSTEM_TAG = "<system>"
FRESH_SCRIPTS = {"service": 2500, "assistant": 1000}
"""How many scripts of each source are written for training when no scripts file is given."""
SMALLEST = 300
"""The smallest vocabulary: ids 0 to 3, the tag and 256 bytes leave room for letters from here on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data tokenizer`."""
    parser.add_argument("--out", type=Path, required=True, help="SentencePiece model to write, e.g. text.model")
    parser.add_argument("--vocab", type=int, default=1000, help=f"number of pieces, from {SMALLEST} up")
    fresh = " and ".join(f"{num:,} {source}" for source, num in FRESH_SCRIPTS.items())
    help_scripts = f"scripts files to train on (default: {fresh} scripts written for it)"
    parser.add_argument("--scripts", type=Path, nargs="+", help=help_scripts)
    parser.add_argument("--seed", type=int, default=0, help="seed of the scripts that are written without --scripts")


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data tokenizer`."""
    if args.out.suffix != ".model":
        raise UserError(f"{args.out}: a tokenizer file ends in .model", code="bad-value")
    if args.scripts:
        scripts = [script for path in args.scripts for script in read_scripts(path)]
    else:
        scripts = [s for source, num in FRESH_SCRIPTS.items() for s in write_scripts(source, num=num, seed=args.seed)]
    data = train_tokenizer(scripts, args.vocab)
    new = save_once(args.out, data)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    words = [word for script in scripts[:500] for turn in script.turns for word in turn.text.split()]
    rate = sum(len(ids) for ids in pieces.encode(words)) / len(words)
    print(f"{args.out}: {pieces.get_piece_size()} pieces, {'written' if new else 'already there, unchanged'}")
    print(f"trained on {len(scripts)} scripts; {rate:.2f} pieces a word")


def training_text(scripts: Sequence[Script]) -> Iterator[str]:
    """What the text stream will hold: the turns, and the role prompts between `<system>` tags."""
    for script in scripts:
        if script.role_prompt:
            yield f"{SYSTEM_TAG} {script.role_prompt} {SYSTEM_TAG}"
        yield from (turn.text for turn in script.turns)


def train_tokenizer(scripts: Sequence[Script], vocab: int) -> bytes:
    """Trains a unigram model with `vocab` pieces; returns the bytes of the .model file.

    Raises: UserError if the vocabulary is too small for bytes and letters or too large for the text ("bad-value"), or
    if the scripts hold no text ("no-data").
    """
    if vocab < SMALLEST:
        raise UserError(
            f"--vocab {vocab}: byte fallback alone takes 261 pieces, use at least {SMALLEST}", code="bad-value"
        )
    sentences = list(training_text(scripts))
    if not sentences:
        raise UserError(f"{len(scripts)} scripts hold no text: write some with `ppx-data synth`", code="no-data")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            byte_fallback=True,
            character_coverage=1.0,
            split_digits=True,
            user_defined_symbols=[SYSTEM_TAG],
            max_sentence_length=1 << 16,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as why:
        fits = re.search(r"value <= (\d+)", str(why))
        advice = f"use --vocab {fits[1]} or less" if fits else "give more scripts or a smaller --vocab"
        raise UserError(
            f"--vocab {vocab} does not fit {len(sentences)} lines of text: {advice}", code="bad-value"
        ) from why
    return model.getvalue()
