"""Random access to the samples of one split of shards, and `ppx-data index`.

A sample is (dialogue, agent side). Any process or thread reads a sample by its number, in any order, with one read of
its tar, on disk or by URL.
"""

# Shapes: C channels, P prompt frames, Q codebooks, S samples, T frames

import argparse
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.records.schema import SIDES, Dialogue
from data_pipelines.shards.manifest import note_index
from data_pipelines.shards.members import WordStart, parse_codes, parse_text
from data_pipelines.shards.rows import NAME, PARTS, Index, SampleRows
from data_pipelines.shards.scan import build_index, split_folders
from data_pipelines.shards.storage import Folder, Storage, StorageError, storage_at
from data_pipelines.sound.audio import FLAC_MAGIC, Audio, read_audio
from model.errors import UserError

FILES = {"audio": "audio.flac", "clip": "voice.flac"}
"""How messages name the parts that are sound."""


class BadSample(UserError):
    """One sample cannot be used, while the others can. `id` names its dialogue."""

    def __init__(self, id: str, reason: str) -> None:
        """`reason` says what is wrong with the sample of dialogue `id`."""
        super().__init__(
            f"sample {id}: {reason}: look with `ppx-data check`, then make its shard again", code="bad-shards"
        )
        self.id, self.reason = id, reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Keeps id and reason of an error that crosses processes."""
        return BadSample, (self.id, self.reason)


@dataclass(kw_only=True)
class Sample:
    """What training reads of one sample."""

    id: str
    side: str
    source: str
    codes_QT: Tensor
    """int64 [16, T]: the agent's eight codebooks, then the user's."""
    voice_codes_QP: Tensor
    """int64 [8, P]: the agent's voice prompt."""
    role_prompt: str
    words: list[WordStart]
    """The words that the agent says."""


class ShardReader:
    """The samples of one split. A reader holds no open file, so it may be forked, pickled and shared by threads."""

    def __init__(self, path: Path | str | Storage, expected: str | None = None) -> None:
        """Opens SHARDS/SPLIT, a folder or a URL; `expected` is the `sha256` that the manifest or an earlier run names.

        Raises: UserError if it or its index is missing, the index is damaged or not the expected one ("checksum"), or a
        tar has not the size that was indexed (unless the storage cannot list sizes, as plain HTTP).
        """
        self.storage: Storage = storage_at(path) if isinstance(path, (str, Path)) else path
        if isinstance(self.storage, Folder) and not self.storage.path.is_dir():
            raise UserError(f"{self.storage} is no folder of shards: make it with `ppx-data shard`", code="not-found")
        self.index = Index.load(self.storage)
        if expected not in (None, self.sha256):
            raise UserError(
                f"{self.storage}/{NAME} has sha256 {self.sha256[:16]}..., not {str(expected)[:16]}...: it was changed "
                "since; look with `ppx-data check`, and accept the tars that are there with `ppx-data index`",
                code="checksum",
            )
        self.rows = SampleRows(self.index)
        self._check_sizes()

    def __reduce__(self) -> tuple[Any, ...]:
        """Is pickled as its storage, and opened again; another process must find the same index."""
        return ShardReader, (self.storage, self.sha256)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.index)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the bytes of the index, which holds that of each tar."""
        return self.index.sha256

    @property
    def name(self) -> str:
        """The name of the split, which is the last part of its path."""
        return str(self.storage).rpartition("/")[2]

    def _check_sizes(self) -> None:
        try:
            sizes = self.storage.sizes(self.index.shard_names)
        except NotImplementedError:
            return  # without a list of sizes, a read that comes out short is refused when it happens
        for name, actual, expected in zip(self.index.shard_names, sizes, self.index.shard_sizes, strict=True):
            if actual != expected:
                found = "is missing" if actual is None else f"has {actual} bytes"
                raise UserError(
                    f"{self.storage}/{name} {found}, its index expects {expected} bytes: copy it again, "
                    f"or index what is there with `ppx-data index {self.storage}`",
                    code="bad-shards",
                )

    def sources(self) -> dict[str, list[int]]:
        """Row numbers of each source, in the order of the tars."""
        numbers = self.index.columns["source"]
        return {name: np.flatnonzero(numbers == k).tolist() for k, name in enumerate(self.index.source_names)}

    def read(self, i: int) -> Sample:
        """Sample i. Raises BadSample if its bytes are damaged, StorageError if they cannot be read."""
        row = self.rows[i]
        codes_QT, voice_QP, text = self._codes(i, "text")
        try:
            role_prompt, words = parse_text(text)
        except ValueError as why:
            raise BadSample(row.id, str(why)) from why
        return Sample(
            id=row.id,
            side=row.side,
            source=row.source,
            codes_QT=codes_QT,
            voice_codes_QP=voice_QP,
            role_prompt=role_prompt,
            words=words,
        )

    def codes(self, i: int) -> tuple[Tensor, Tensor]:
        """The codes of sample i and of its voice prompt, without words. Raises as read.

        Shapes: int64 [16, T], agent first, and [8, P].
        """
        codes_QT, voice_QP, *_ = self._codes(i)
        return codes_QT, voice_QP

    def dialogue(self, i: int) -> Dialogue:
        """The record of row i. Raises BadSample."""
        row = self.rows[i]
        (meta,) = self._bytes(i, "meta")
        try:
            dialogue = Dialogue.from_json(meta.decode(), "meta.json")
            if dialogue.id != row.id:
                raise ValueError(f"meta.json is of dialogue {dialogue.id!r}")
            if dialogue.source != row.source:
                raise ValueError(f"meta.json is of source {dialogue.source!r}, not {row.source!r}")
            if row.side not in dialogue.agent_sides:
                raise ValueError(f"its {row.side} side is not an agent")
        except (UserError, ValueError) as why:
            raise BadSample(row.id, str(why)) from why
        return dialogue

    def audio(self, i: int) -> tuple[Audio, int]:
        """The recording of row i, left and right as recorded, and its rate in Hz. Raises BadSample.

        Shapes: float32 [2, samples].
        """
        return self._sound(i, "audio")

    def voice_clip(self, i: int) -> tuple[Audio, int]:
        """The voice prompt of row i as recorded, and its rate in Hz. Raises BadSample.

        Shapes: float32 [1, samples].
        """
        return self._sound(i, "clip")

    def stored(self, i: int, part: str) -> bytes:
        """A file of row i as it is stored: "audio" (the FLAC of its dialogue) or "clip" (that of its voice prompt).

        Raises: BadSample if it is no FLAC, so that nothing else can be passed on as audio.
        """
        (data,) = self._bytes(i, part)
        if not data.startswith(FLAC_MAGIC):
            raise BadSample(self.index.id(i), f"{FILES[part]} is no FLAC")
        return data

    def _codes(self, i: int, *more: str) -> tuple[Any, ...]:
        """codes_QT, voice_QP and the bytes of further parts, by one read."""
        columns = self.index.columns
        codes, voice, *others = self._bytes(i, "codes", "voice", *more)
        try:
            codes_QT = parse_codes(codes, "codes", 16, int(columns["num_frames"][i])).astype(np.int64)
            voice_QP = parse_codes(voice, "voice codes", 8, int(columns["voice_frames"][i])).astype(np.int64)
        except ValueError as why:
            raise BadSample(self.index.id(i), str(why)) from why
        if SIDES[columns["side"][i]] == "right":
            codes_QT = np.concatenate([codes_QT[8:], codes_QT[:8]])
        return torch.from_numpy(codes_QT), torch.from_numpy(voice_QP), *others

    def _bytes(self, i: int, *parts: str) -> list[bytes]:
        """The bytes of some members, by one read of the stretch from the first to the last."""
        columns = self.index.columns
        places = columns["places"][i].tolist()
        ranges = [places[2 * PARTS.index(part) : 2 * PARTS.index(part) + 2] for part in parts]
        start, end = min(at for at, _ in ranges), max(at + size for at, size in ranges)
        shard = self.index.shard_names[columns["shard"][i]]
        data = self.storage.read(shard, int(columns["offset"][i]) + start, end - start)
        if len(data) != end - start:
            raise StorageError(
                f"{self.storage}/{shard} has {len(data)} of {end - start} bytes at {columns['offset'][i] + start}, so "
                "it is not the file that was indexed: copy it again",
                code="bad-shards",
            )
        return [data[at - start : at - start + size] for at, size in ranges]

    def _sound(self, i: int, part: str) -> tuple[Audio, int]:
        data = self.stored(i, part)
        try:
            return read_audio(data, FILES[part])
        except UserError as why:
            raise BadSample(self.index.id(i), str(why)) from why


@lru_cache(maxsize=4)
def open_once(path: str, sha256: str) -> ShardReader:
    """A reader of SHARDS/SPLIT, folder or URL, that is opened once in each process: for jobs that are sent to workers.

    Raises: UserError as ShardReader, also if the index is not the one with this hash.
    """
    return ShardReader(path, sha256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data index`."""
    parser.add_argument(
        "shards", type=Path, metavar="SHARDS", help="folder made by `ppx-data shard`, or one split of it"
    )


def run(args: argparse.Namespace) -> None:
    """Rebuilds the index of every split, notes its hash in the manifest and prints what it holds and leaves out."""
    for folder in split_folders(args.shards):
        problems = build_index(folder)
        reader = ShardReader(folder)
        note_index(folder, reader.sha256)
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in reader.sources().items())
        print(f"{folder}: {len(reader)} samples ({counts}), {len(problems)} dialogues left out")
        for problem in problems:
            print(f"  {problem}")
