"""From shards to micro-batches: sequences with their prompt, in an order that is a pure function of the seed."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from data_pipelines.records.schema import SIDES
from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.order import Mixture, Place, StepPlan
from data_pipelines.shards.packing import packed
from data_pipelines.shards.storage import StorageError, storage_at
from model.errors import UserError
from model.prompt import PAUSE_FRAMES, wrap_role
from ppx_train.config.data import Data
from ppx_train.training.micro_batch import MicroBatch, collate
from ppx_train.training.ranks import rank, world_size
from ppx_train.training.sequences import SequenceBuilder, TrainingSequence, dropped_parts

CHARS_PER_PIECE = 4
"""Characters of role text per token, assumed to estimate lengths for batching before the text is tokenised."""
REQUESTS = 16
"""Concurrent requests to shards that are read by URL."""


class SamplePool:
    """The rows of one split of several shard folders, pooled by source."""

    def __init__(self, data: Data, split: str, builder: SequenceBuilder | None, seed: int | None = None) -> None:
        """builder: None for a pool whose sequences are counted alone; their codec is then not checked.

        seed: of the prompts that are left out, see `dropped_parts`; None leaves none out.
        """
        self.data, self._builder, self.seed = data, builder, seed
        self.bad: dict[str, str] = {}
        self.readers: list[ShardReader] = []
        self.rows: dict[str, npt.NDArray[np.int32]] = {}
        """For each source [samples, 2]: the number of the reader and the row in it."""
        self.lengths: dict[str, npt.NDArray[np.int32]] = {}
        """For each source [samples]: frames, prompt included, as far as the index knows them."""
        self.rooms: dict[str, npt.NDArray[np.int32]] = {}
        """For each source [samples]: frames that a sequence has at most; what would go beyond them is cut."""
        for path in data.paths:
            if data.paths.count(path) > 1:
                raise UserError(
                    f"data.paths names {path} more than once: give it once, and weigh sources by data.mix",
                    code="bad-value",
                )
            storage = storage_at(path)
            manifest = read_manifest(storage)
            if builder is not None and manifest.codec.fingerprint != builder.fingerprint:
                raise UserError(
                    f"{path} was encoded with another codec than {builder.codec}: set model.codec to the one it was "
                    f"made with, or make it again with `ppx-data shard --codec {builder.codec}`",
                    code="bad-combination",
                )
            if split in manifest.content:
                self._add(ShardReader(storage.inside(split), manifest.index.get(split)))
        self._requests = ThreadPoolExecutor(REQUESTS) if any(r.storage.is_remote for r in self.readers) else None

    def _add(self, reader: ShardReader) -> None:
        data, index = self.data, reader.index.columns
        usable = np.ones(len(reader), bool) if data.both_sides else index["side"] == SIDES.index("left")
        without_role = index["voice_frames"] + index["num_frames"]
        frames = without_role + index["role_chars"] // CHARS_PER_PIECE
        # A token has a character at least, but for those that a tokenizer can only spell in bytes.
        rooms = without_role + index["role_chars"] + len(wrap_role("")) + 2 * PAUSE_FRAMES
        if data.micro_frames is None:  # Nothing depends on the room of a sequence.
            rooms = np.full_like(frames, data.max_frames)
        for number, source in enumerate(reader.index.source_names):
            at = np.flatnonzero(usable & (index["source"] == number)).astype(np.int32)
            if not len(at):
                continue
            rows = np.stack([np.full_like(at, len(self.readers)), at], axis=1)
            for column, more in (
                (self.rows, rows),
                (self.lengths, np.minimum(data.max_frames, frames[at]).astype(np.int32)),
                (self.rooms, np.minimum(data.max_frames, rooms[at]).astype(np.int32)),
            ):
                column[source] = np.concatenate([column[source], more] if source in column else [more])[: data.limit]
        self.readers.append(reader)

    @property
    def builder(self) -> SequenceBuilder:
        """What makes the sequences."""
        assert self._builder is not None, "this pool counts its sequences alone"
        return self._builder

    def sizes(self) -> dict[str, int]:
        """Returns the number of samples of each source."""
        return {source: len(rows) for source, rows in self.rows.items()}

    def sequence(self, place: Place) -> TrainingSequence:
        """Returns the sequence at a place; a bad sample is recorded and the next good one of its source is taken.

        It never exceeds the room of the place.
        Raises: UserError if every sample of the source is bad; StorageError if a disk or a server fails.
        """
        rows, builder, room = self.rows[place.source], self.builder, int(self.rooms[place.source][place.row])
        dropped = () if self.seed is None else dropped_parts(self.data, self.seed, place.number)
        for skipped in range(len(rows)):
            number, row = rows[(place.row + skipped) % len(rows)].tolist()
            reader = self.readers[number]
            try:
                return builder(reader.read(row), dropped, room)
            except StorageError:
                raise  # The sample is not at fault: no sample may be skipped because a disk or a server fails.
            except UserError as why:
                self.bad[reader.rows[row].id] = why.reason if isinstance(why, BadSample) else str(why)
        first = next(iter(self.bad.items()))
        raise UserError(
            f"every sample of source {place.source!r} is bad; first {first[0]} ({first[1]})", code="no-data"
        )

    def batches(self, groups: Sequence[Sequence[Place]]) -> list[MicroBatch]:
        """Returns one micro-batch per group; samples in remote storage are fetched concurrently."""
        in_turn, builder = map if self._requests is None else self._requests.map, self.builder
        found = iter(in_turn(self.sequence, [place for group in groups for place in group]))
        return [collate([next(found) for _ in group], builder.loss, builder.lm) for group in groups]


class StepLoader:
    """Yields the micro-batches of this rank for each optimiser step; its whole state is one number.

    A thread with a cursor of its own prefetches steps; only handing a step over moves `consumed`. The loader has a
    length because Lightning prefetches one step from a loader without one, and loses it on resume.
    """

    def __init__(self, pool: SamplePool, data: Data, seed: int, read_ahead: int = 4) -> None:
        missing = sorted(data.sources - set(pool.sizes()))
        if missing:
            there = ", ".join(sorted(pool.sizes())) or "nothing"
            raise UserError(
                f"the mixture names {', '.join(missing)} but data.paths hold {there}: set its draws to 0",
                code="no-data",
            )
        later = {from_step * data.batch: mix for from_step, mix in data.mixtures.items() if from_step}
        mixture = Mixture(pool.lengths, data.mix, seed=seed, by=data.mix_by, later=later)
        self.plan = StepPlan(mixture, batch=data.batch, micro_batch=data.micro_batch, window=data.bucket_steps)
        self.budget = data.micro_frames
        self.pool, self.read_ahead, self.consumed = pool, read_ahead, 0
        self.seconds_waited = 0.0
        """How long training has waited for steps, on this rank."""

    def __len__(self) -> int:
        """Returns more steps than any run takes: the order of samples has no end."""
        return 10**9

    def step(self, number: int, rank: int, ranks: int) -> list[MicroBatch]:
        """Returns the micro-batches of one of several ranks for a step, as many as those of every other rank."""
        return self.pool.batches(self.groups(number, ranks)[rank::ranks])

    def groups(self, number: int, ranks: int) -> list[list[Place]]:
        """Returns the micro-batches of all ranks for a step; rank r takes number r, r + ranks, ..."""
        groups = self.plan.step(number)
        if self.budget is None:
            return groups
        ((*places,),) = groups
        room = [int(self.pool.rooms[place.source][place.row]) for place in places]
        parts = packed([self.plan.length(place) for place in places], room, ranks=ranks, budget=self.budget)
        return [[places[i] for i in part] for part in parts]

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
                began = time.perf_counter()
                item = ahead.get()
                self.seconds_waited += time.perf_counter() - began
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
    if not data.sources & set(pool.sizes()):
        raise UserError(
            "data.paths hold no held-out sample of any source of the mixture: set data.heldout_samples=0",
            code="no-data",
        )
    turns = [(at, source) for source, size in pool.sizes().items() if source in data.sources for at in range(size)]
    chosen = sorted(turns)[: data.heldout_samples]
    chosen.sort(key=lambda item: (pool.lengths[item[1]][item[0]], item[1], item[0]))
    places = [Place(source, at, number) for number, (at, source) in enumerate(chosen)]
    batches = pool.batches(_consecutive(pool, data, places))
    # A sharded model needs the same number of forward passes on every rank, so batches without loss fill the gap.
    while len(batches) % world_size():
        batches.append(batches[-1].without_loss())
    return batches[rank() :: world_size()]


def _consecutive(pool: SamplePool, data: Data, places: Sequence[Place]) -> list[list[Place]]:
    """Cuts the places into micro-batches without changing their order."""
    groups: list[list[Place]] = []
    left = 0
    for place in places:
        # With a fixed count every sequence has the room of the longest, and a pass that of its count.
        room = int(pool.rooms[place.source][place.row])
        if room > left:
            groups.append([])
            left = data.pass_frames
        groups[-1].append(place)
        left -= room
    return groups
