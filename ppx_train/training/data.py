"""From shards to micro-batches: sequences with their prompt, in an order that is a pure function of the seed."""

# Shapes: B batch, K streams, P prompt frames, Q codebooks, T frames

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_pipelines.records.schema import SIDES
from data_pipelines.shards.index import BadSample, Sample, ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.order import Place, StepPlan
from data_pipelines.shards.storage import StorageError, storage_at
from model.config import FRAME_RATE, ZERO_ID, LMConfig
from model.duplex import LossRows, loss_rows
from model.errors import UserError
from model.mimi.files import load_mimi
from model.prompt import hybrid_prompt, role_ids, training_sequence
from model.text import TextTokenizer, text_stream
from ppx_train.config.parts import Data, Loss
from ppx_train.training.loss import target_weights
from ppx_train.training.ranks import rank, world_size

CHARS_PER_PIECE = 4
"""Characters of role text per token, assumed to estimate lengths for batching before the text is tokenised."""
REQUESTS = 16
"""Concurrent requests to shards that are read by URL."""
MIN_DIALOGUE_FRAMES = 25
"""2 s: a shorter dialogue after the prompt teaches nothing."""


@dataclass
class MicroBatch:
    """Sequences padded to the longest, with all that a forward pass would otherwise ask a GPU for.

    codes_BKT int64 (ZERO_ID on padding); weights_BKT fp32, the loss weight of each target; lengths in frames; rows:
    which positions carry loss.
    """

    codes_BKT: Tensor
    weights_BKT: Tensor
    lengths: tuple[int, ...]
    rows: LossRows
    ids: tuple[str, ...]

    @property
    def frames(self) -> int:
        """Frames that are not padding."""
        return sum(self.lengths)

    def to(self, device: torch.device, **_: Any) -> "MicroBatch":
        """Returns a copy on `device`; Lightning calls it with more arguments, which change nothing."""

        def there(part: Tensor) -> Tensor:
            # Only a copy from pinned memory lets the host run ahead of the GPU.
            return (part.pin_memory() if device.type == "cuda" else part).to(device, non_blocking=True)

        text_M, audio_M, num_steps = self.rows
        return replace(
            self,
            codes_BKT=there(self.codes_BKT),
            weights_BKT=there(self.weights_BKT),
            rows=LossRows(there(text_M), there(audio_M), num_steps),
        )

    def without_loss(self) -> "MicroBatch":
        """Returns the same sequences with no loss on any of them."""
        nothing = self.codes_BKT.new_zeros(1)
        return replace(
            self, weights_BKT=torch.zeros_like(self.weights_BKT), rows=LossRows(nothing, nothing, num_steps=1)
        )


def collate(sequences: list[tuple[str, Tensor, Tensor]], loss: Loss, lm: LMConfig) -> MicroBatch:
    """Pads sequences (id, codes_KT, has_loss_T) to one length and weighs their targets.

    Padding adds no embedding and no loss.
    """
    lengths = tuple(codes.shape[1] for _, codes, _ in sequences)
    streams = sequences[0][1].shape[0]
    codes_BKT = torch.full((len(sequences), streams, max(lengths)), ZERO_ID, dtype=torch.int64)
    has_loss_BT = torch.zeros(len(sequences), max(lengths), dtype=torch.bool)
    for row, (_, codes_KT, has_loss_T) in enumerate(sequences):
        codes_BKT[row, :, : codes_KT.shape[1]] = codes_KT
        has_loss_BT[row, : codes_KT.shape[1]] = has_loss_T
    weights_BKT = target_weights(codes_BKT, has_loss_BT, torch.tensor(lengths), loss, lm)
    rows = loss_rows(lm, codes_BKT, weights_BKT, lengths)
    return MicroBatch(codes_BKT, weights_BKT, lengths, rows, tuple(name for name, _, _ in sequences))


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

    def __call__(self, sample: Sample) -> tuple[str, Tensor, Tensor]:
        """Returns (id, codes_KT, has_loss_T): the hybrid prompt from frame 1 on, then the dialogue, cut to the budget.

        Raises: BadSample if the prompt leaves no room or the text falls behind the audio.
        """
        codes_QT = sample.codes_QT
        highest = max(int(codes_QT.max()), int(sample.voice_codes_QP.max()))
        if highest >= self.lm.card:
            raise BadSample(sample.id, f"code {highest} is outside 0..{self.lm.card - 1}")
        role = role_ids(sample.role_prompt, self.tokenizer)
        prompt_KP = hybrid_prompt(self.lm, sample.voice_codes_QP, role, self.silence, self.sine)
        room = self.data.max_frames - (prompt_KP.shape[1] - 1)
        frames = min(room, codes_QT.shape[1])
        if frames < MIN_DIALOGUE_FRAMES:
            raise BadSample(sample.id, f"{frames} frames left after a prompt of {prompt_KP.shape[1]}")
        words = [word for word in sample.words if word.start * FRAME_RATE < frames]
        text = text_stream(words, frames, self.words, self.lm)
        if text.max_lag_frames > self.data.max_text_lag_frames:
            raise BadSample(sample.id, f"text falls {text.max_lag_frames} frames behind the audio")
        dialogue_KT = torch.cat([text.ids_T[None], codes_QT[:, :frames]])
        codes_KT, has_loss_T = training_sequence(self.lm, prompt_KP, dialogue_KT)
        return f"{sample.id}/{sample.side}", codes_KT, has_loss_T


class SamplePool:
    """The rows of one split of several shard folders, pooled by source."""

    def __init__(self, paths: list[str], split: str, builder: SequenceBuilder) -> None:
        self.builder = builder
        self.bad: dict[str, str] = {}
        self.readers: list[ShardReader] = []
        self.rows: dict[str, npt.NDArray[np.int32]] = {}
        """For each source [samples, 2]: the number of the reader and the row in it."""
        self.lengths: dict[str, npt.NDArray[np.int32]] = {}
        """For each source [samples]: frames, prompt included, as far as the index knows them."""
        for path in paths:
            if paths.count(path) > 1:
                raise UserError(
                    f"data.paths names {path} more than once: give it once, and weigh sources by data.mix",
                    code="bad-value",
                )
            storage = storage_at(path)
            manifest = read_manifest(storage)
            if manifest.codec.fingerprint != builder.fingerprint:
                raise UserError(
                    f"{path} was encoded with another codec than {builder.codec}: set model.codec to the one it was "
                    f"made with, or make it again with `ppx-data shard --codec {builder.codec}`",
                    code="bad-combination",
                )
            if split in manifest.content:
                self._add(ShardReader(storage.inside(split), manifest.index.get(split)))
        self._requests = ThreadPoolExecutor(REQUESTS) if any(r.storage.is_remote for r in self.readers) else None

    def _add(self, reader: ShardReader) -> None:
        data, index = self.builder.data, reader.index.columns
        usable = np.ones(len(reader), bool) if data.both_sides else index["side"] == SIDES.index("left")
        frames = index["voice_frames"] + index["role_chars"] // CHARS_PER_PIECE + index["num_frames"]
        for number, source in enumerate(reader.index.source_names):
            at = np.flatnonzero(usable & (index["source"] == number)).astype(np.int32)
            rows = np.stack([np.full_like(at, len(self.readers)), at], axis=1)
            lengths = np.minimum(data.max_frames, frames[at]).astype(np.int32)
            if source in self.rows:
                rows = np.concatenate([self.rows[source], rows])
                lengths = np.concatenate([self.lengths[source], lengths])
            if len(rows):
                self.rows[source], self.lengths[source] = rows[: data.limit], lengths[: data.limit]
        self.readers.append(reader)

    def sizes(self) -> dict[str, int]:
        """Returns the number of samples of each source."""
        return {source: len(rows) for source, rows in self.rows.items()}

    def sequence(self, source: str, at: int) -> tuple[str, Tensor, Tensor]:
        """Returns the sequence at a place; a bad sample is recorded and the next good one of its source is taken.

        Raises: UserError if every sample of the source is bad; StorageError if a disk or a server fails.
        """
        rows = self.rows[source]
        for skipped in range(len(rows)):
            number, row = rows[(at + skipped) % len(rows)].tolist()
            reader = self.readers[number]
            try:
                return self.builder(reader.read(row))
            except StorageError:
                raise  # The sample is not at fault: no sample may be skipped because a disk or a server fails.
            except UserError as why:
                self.bad[reader.rows[row].id] = why.reason if isinstance(why, BadSample) else str(why)
        first = next(iter(self.bad.items()))
        raise UserError(f"every sample of source {source!r} is bad; first {first[0]} ({first[1]})", code="no-data")

    def batches(self, groups: Sequence[Sequence[Place]]) -> list[MicroBatch]:
        """Returns one micro-batch per group; samples in remote storage are fetched concurrently."""
        in_turn = map if self._requests is None else self._requests.map
        found = iter(in_turn(lambda place: self.sequence(*place), [place for group in groups for place in group]))
        return [collate([next(found) for _ in group], self.builder.loss, self.builder.lm) for group in groups]


class StepLoader:
    """Yields the micro-batches of this rank for each optimiser step; its whole state is one number.

    A thread with a cursor of its own prefetches steps; only handing a step over moves `consumed`. The loader has a
    length because Lightning prefetches one step from a loader without one, and loses it on resume.
    """

    def __init__(self, pool: SamplePool, data: Data, seed: int, read_ahead: int = 4) -> None:
        slots = {source: draws for source, draws in data.mix.items() if draws}
        missing = sorted(set(slots) - set(pool.sizes()))
        if missing:
            there = ", ".join(sorted(pool.sizes())) or "nothing"
            raise UserError(
                f"data.mix names {', '.join(missing)} but data.paths hold {there}: set its draws to 0", code="no-data"
            )
        lengths = {source: pool.lengths[source] for source in slots}
        self.plan = StepPlan(
            lengths, seed=seed, slots=slots, batch=data.batch, micro_batch=data.micro_batch, window=data.bucket_steps
        )
        self.pool, self.read_ahead, self.consumed = pool, read_ahead, 0

    def __len__(self) -> int:
        """Returns more steps than any run takes: the order of samples has no end."""
        return 10**9

    def step(self, number: int, first: int, stride: int) -> list[MicroBatch]:
        """Returns the micro-batches first, first + stride, ... of one step."""
        return self.pool.batches(self.plan.step(number)[first::stride])

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yields steps from `consumed` on. Raises: what reading a step raises, in the training thread."""
        ahead: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(maxsize=self.read_ahead)
        stopped = threading.Event()

        def put(item: list[MicroBatch] | BaseException) -> None:
            while not stopped.is_set():
                try:
                    ahead.put(item, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def read(cursor: int) -> None:
            try:
                while not stopped.is_set():
                    put(self.step(cursor, rank(), world_size()))
                    cursor += 1
            except BaseException as why:  # noqa: BLE001 - the training thread raises it
                put(why)

        thread = threading.Thread(target=read, args=(self.consumed,), daemon=True)
        thread.start()
        try:
            while True:
                item = ahead.get()
                if isinstance(item, BaseException):
                    raise item
                self.consumed += (
                    1  # Counted before the yield, because a checkpoint is saved while the loader waits in it.
                )
                yield item
        finally:
            stopped.set()
            thread.join()

    def state_dict(self) -> dict[str, int]:
        """Returns how many steps were handed over."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the steps that `state` counts."""
        self.consumed = state["consumed"]


def heldout_batches(pool: SamplePool, data: Data) -> list[MicroBatch]:
    """Returns the fixed held-out micro-batches of this rank: samples of all sources in turn, sorted by length."""
    if not any(data.mix.get(source) for source in pool.sizes()):
        raise UserError(
            "data.paths hold no held-out sample of any source in data.mix: set data.heldout_samples=0", code="no-data"
        )
    turns = [(at, source) for source, size in pool.sizes().items() if data.mix.get(source) for at in range(size)]
    chosen = sorted(turns)[: data.heldout_samples]
    chosen.sort(key=lambda item: (pool.lengths[item[1]][item[0]], item[1], item[0]))
    groups = [chosen[k : k + data.micro_batch] for k in range(0, len(chosen), data.micro_batch)]
    batches = pool.batches([[(source, at) for at, source in group] for group in groups])
    # A sharded model needs the same number of forward passes on every rank, so batches without loss fill the gap.
    while len(batches) % world_size():
        batches.append(batches[-1].without_loss())
    return batches[rank() :: world_size()]
