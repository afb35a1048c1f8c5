"""Speed of random reads from indexed shards: codes alone, whole training samples, start-up, memory.

    python scripts/bench/loader.py --shards 1000 --dialogues 150

It writes shards of random codes (no audio) with words as dense as those of calls and reads them on one core in random
order. With --rows it also opens an index of that many rows.
"""

# Shapes: P prompt frames, Q codebooks, T frames

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, table, write_json

from data_pipelines.records.schema import Dialogue, Side, Word
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.members import CODES, META, in_order, npy_bytes, text_bytes, text_name, voice_name
from data_pipelines.shards.pack import write_shard
from data_pipelines.shards.rows import COLUMNS, NAME, PARTS, Index
from data_pipelines.shards.scan import build_index
from data_pipelines.sound.audio import FLAC_MAGIC
from model.config import LMConfig
from model.mimi.files import load_mimi
from model.weights.sources import codec_path
from ppx_train.config.data import Data
from ppx_train.config.parts import Loss
from ppx_train.training.micro_batch import collate
from ppx_train.training.sequences import SequenceBuilder

README = Path(__file__).resolve().parents[2] / "README.md"
WORDS = [word for word in README.read_text("utf-8").split() if word.isalpha()]
"""What the dialogues say."""
OF_A_RANK = 4
"""Sequences of a step that each of 8 GPUs takes of a batch of 32."""
SHARD_BYTES = 700 * 800_000 + 100_000_000
"""The size that an index without shards states for each."""


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="loader-", dir=args.folder))
    try:
        split = folder / "train"
        write_shards(split, args)
        figures = {"start-up, s": in_a_new_process(split, "start")} | in_a_new_process(split, "read", args)
        if args.rows:
            write_rows(folder / "rows", args.rows)
            figures |= {f"{args.rows} rows: {name}": value for name, value in rows_alone(folder / "rows").items()}
    finally:
        shutil.rmtree(folder)
    print(machine("cpu"))
    print(f"{args.shards} shards, {args.shards * args.dialogues} samples of {args.seconds:g} s, {args.words} words\n")
    print(table([{"what": name, "figure": value} for name, value in figures.items()]))
    write_json(args.json, {"machine": machine("cpu"), "settings": vars_of(args), "figures": figures})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000, help="number of shards (default: 1000)")
    parser.add_argument("--dialogues", type=int, default=150, help="dialogues in each shard (default: 150)")
    parser.add_argument("--seconds", type=float, default=63.0, help="length of a dialogue (default: 63)")
    parser.add_argument("--words", type=int, default=200, help="words of each side (default: 200)")
    parser.add_argument("--reads", type=int, default=100_000, help="samples to read (default: 100000)")
    parser.add_argument("--rows", type=int, default=0, help="also open an index of this many rows, without shards")
    parser.add_argument("--folder", type=Path, help="folder for the shards (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def vars_of(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def write_shards(split: Path, args: argparse.Namespace) -> None:
    """Writes shards that differ in ids alone. The audio is the first bytes of a FLAC, because it is not read here."""
    draw = np.random.default_rng(0)
    frames = round(args.seconds * 12.5)
    content = [members(dialogue(f"d-00000-{n:04d}", args, draw), frames, draw) for n in range(args.dialogues)]
    for number in range(args.shards):
        ids = [f"d-{number:05d}-{n:04d}" for n in range(args.dialogues)]
        renamed = [c | {META: c[META].replace(b"d-00000-", f"d-{number:05d}-".encode())} for c in content]
        write_shard(split / f"service-{number:05d}.tar", zip(ids, renamed, strict=True))
    build_index(split)


def dialogue(id: str, args: argparse.Namespace, draw: np.random.Generator) -> Dialogue:
    sides = []
    for _ in range(2):
        starts = np.sort(draw.uniform(0, args.seconds - 0.5, args.words)).round(3).tolist()
        texts = [WORDS[k] for k in draw.integers(0, len(WORDS), args.words)]
        words = tuple(Word(text=text, start=t, end=round(t + 0.2, 3)) for text, t in zip(texts, starts, strict=True))
        sides.append(Side(speaker="bench/voice", words=words))
    prompt = "You work for CitySan Services which is a waste management and your name is Ayelen Lucero."
    left = Side(speaker="bench/agent", words=sides[0].words, is_agent=True, role_prompt=prompt)
    return Dialogue(
        id=id, source="service", split="train", scenario="x", seconds=args.seconds, left=left, right=sides[1],
        licence="none",
    )  # fmt: skip


def members(d: Dialogue, frames: int, draw: np.random.Generator) -> dict[str, bytes]:
    content = {
        CODES: npy_bytes(draw.integers(0, 2048, (16, frames), np.int16)),
        voice_name("left"): npy_bytes(draw.integers(0, 2048, (8, 50), np.int16)),
        text_name("left"): text_bytes(d.left),
        META: d.to_json().encode(),
    }
    return {name: content.get(name, FLAC_MAGIC) for name in in_order(["left"])}


def in_a_new_process(split: Path, what: str, args: argparse.Namespace | None = None) -> Any:
    """Returns what a fresh process measures, whose memory and caches are its own."""
    words = [sys.executable, __file__, "--child", f"{what} {split}", "--reads", str(args.reads if args else 0)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str, split: Path, reads: int) -> Any:
    torch.set_num_threads(1)
    if what == "start":
        began = time.perf_counter()
        reader = ShardReader(split)
        reader.read(len(reader) - 1)
        return time.perf_counter() - began
    reader = ShardReader(split)
    order = np.random.default_rng(1).integers(0, len(reader), reads).tolist()
    codec, tokenizer = codec_path("small"), tokenizer_file(split)
    lm = LMConfig(card=load_mimi(codec).card, text_card=tokenizer[1])
    builder = SequenceBuilder(lm, data(), Loss(), codec, tokenizer[0])
    for i in order[:200]:
        builder(small_codes(reader.read(i), builder))
    before = resident()
    figures = {"codes alone, samples/s": rate(reader.codes, order)}
    figures["memory grown, MiB"] = (resident() - before) / 2**20
    figures["codes, words and role prompt, samples/s"] = rate(reader.read, order[: reads // 4])
    build = rate(lambda i: builder(small_codes(reader.read(i), builder)), order[: reads // 20])
    figures["whole training sequences, samples/s"] = build
    steps = [order[k : k + OF_A_RANK] for k in range(0, reads // 20 - OF_A_RANK, OF_A_RANK)]
    figures[f"steps of {OF_A_RANK} sequences as a rank is handed them, steps/s"] = rate(
        lambda k: collate([builder(small_codes(reader.read(i), builder)) for i in steps[k]], Loss(), lm),
        list(range(len(steps))),
    )
    return figures


def small_codes(sample: Any, builder: SequenceBuilder) -> Any:
    """The sample with codes of the full codec folded into the range of the small one, whose weights are here."""
    sample.codes_QT.remainder_(builder.lm.card)
    sample.voice_codes_QP.remainder_(builder.lm.card)
    return sample


def data() -> Data:
    return Data(paths=["-"], mix={"service": 1}, batch=1, micro_batch=1, max_text_lag_frames=10_000)


def tokenizer_file(split: Path) -> tuple[Path, int]:
    """A tokenizer of 500 pieces, trained on WORDS, and its size."""
    import sentencepiece

    path = split.parent / "text.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_prefix=str(path.with_suffix("")), vocab_size=500, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, byte_fallback=True, user_defined_symbols=["<system>"], minloglevel=2,
    )  # fmt: skip
    return path, sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()


def rate(read: Callable[[int], Any], order: list[int]) -> float:
    """Calls in a second of this thread's CPU or of the clock, whichever is worse."""
    wall, cpu = time.perf_counter(), time.process_time()
    for i in order:
        read(i)
    return len(order) / max(time.perf_counter() - wall, time.process_time() - cpu)


def resident() -> int:
    """Bytes of memory that are this process's own; pages of mapped files can be dropped and do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def write_rows(folder: Path, count: int) -> None:
    """Writes an index of `count` rows like those of real shards, with 700 dialogues in a shard."""
    folder.mkdir()
    n = np.arange(count)
    frames = 400 + n * 7919 % 1600
    sizes = np.stack(
        [128 + 32 * frames, n * 0 + 928, n % 2000 + 4000, n % 9000 + 20000, frames * 5000, n * 0 + 180_000], 1
    )
    ends = np.cumsum(512 + -(-sizes // 512) * 512, axis=1)
    columns: dict[str, Any] = {
        "offset": n % 700 * 800_000, "places": np.stack([ends - sizes, sizes], 2).reshape(count, 2 * len(PARTS)),
        "shard": n // 700, "source": n % 3, "side": n % 2, "num_frames": frames, "voice_frames": n * 0 + 50,
        "num_words": n % 200, "role_chars": n % 300,
        "ids": np.char.mod("service-7-%09d", n).astype("S").view(np.uint8).reshape(count, -1),
    }  # fmt: skip
    names = [f"service-{k:05d}.tar" for k in range(-(-count // 700))]
    columns = {name: column.astype(COLUMNS[name]) for name, column in columns.items()}
    Index(columns, ["assistant", "fisher", "service"], names, [SHARD_BYTES] * len(names)).save(folder / NAME)


def rows_alone(folder: Path) -> dict[str, float]:
    """Measures size and start-up of an index. Its tars are files without content, which take no room on the disk."""
    for name in Index.load(folder).shard_names:
        (folder / name).touch()
        os.truncate(folder / name, SHARD_BYTES)
    return {"index, MB": os.path.getsize(folder / NAME) / 1e6} | in_a_new_process(folder, "rows")


def child_rows(folder: Path) -> dict[str, float]:
    from data_pipelines.shards.order import epoch_order

    began = time.perf_counter()
    reader = ShardReader(folder)
    opened = time.perf_counter()
    index = reader.index.columns
    frames = index["voice_frames"] + index["role_chars"] // 4 + index["num_frames"]
    rows = [np.flatnonzero(index["source"] == k) for k in range(len(reader.index.source_names))]
    lengths = [frames[at] for at in rows]
    pooled = time.perf_counter()
    for k, length in enumerate(lengths):
        epoch_order(0, str(k), 0, len(length))
    ordered = time.perf_counter()
    return {
        "open, s": opened - began, "pool by source and length, s": pooled - opened,
        "order of an epoch, s": ordered - pooled, "own memory, MiB": resident() / 2**20,
    }  # fmt: skip


if __name__ == "__main__":
    if "--child" in sys.argv:
        given = arguments()
        job, where = given.child.split(" ", 1)
        result = child_rows(Path(where)) if job == "rows" else child(job, Path(where), given.reads)
        print(json.dumps(result))
    else:
        main()
