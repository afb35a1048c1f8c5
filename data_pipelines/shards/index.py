"""Where every sample lies in the tars of one split, and the reader that uses it.

A sample is (dialogue, agent side): a call between equals gives two. SPLIT/index.npz holds one row for each, so
that any sample is read by its number with three `pread` calls, in any order, from any process or thread.
"""

import argparse
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from data_pipelines.schema import SIDES, SPLITS, Dialogue, Side
from data_pipelines.shards.pack import npy_array
from model.errors import UserError

NAME = "index.npz"
ROW = np.dtype(
    [("shard", "<i4"), ("side", "<i1"), ("source", "<i2")]
    + [(f"{part}_{what}", "<i8") for part in ("meta", "codes", "voice", "audio", "clip") for what in ("offset", "size")]
    + [("num_frames", "<i4"), ("voice_frames", "<i4"), ("num_words", "<i4"), ("role_chars", "<i4")]
)
"""`side` counts in SIDES, `shard` and `source` in the lists beside the rows; the rest are bytes, frames and counts.
`num_words` are the agent's; `role_chars` is the length of its role prompt."""

Members = dict[str, tuple[int, int]]  # member name without the id -> (offset, size) of its bytes


class BadSample(UserError):
    """One sample cannot be used; the others can. `id` names its dialogue."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(f"sample {id}: {reason}: look with `ppx-data check`, then make its shard again")
        self.id, self.reason = id, reason


class Row(NamedTuple):
    """What the index knows of one sample without reading it."""

    id: str
    side: str
    """The agent's channel, "left" or "right"."""
    source: str
    num_frames: int
    voice_frames: int
    num_words: int
    """Words of the agent."""
    role_chars: int
    """Length of the agent's role prompt."""


@dataclass(kw_only=True)
class Sample:
    """One training sample, agent first."""

    id: str
    side: str
    source: str
    codes_KT: Tensor
    """int64 [16, T]: the agent's eight codebooks, then the user's."""
    voice_codes_CP: Tensor
    """int64 [8, P]"""
    dialogue: Dialogue

    @property
    def agent_side(self) -> Side:
        """Words, role prompt and speaker of the agent."""
        return self.dialogue.side(self.side)

    @property
    def user_side(self) -> Side:
        return self.dialogue.side("right" if self.side == "left" else "left")


@dataclass
class Index:
    """All rows of a split. `ids` has one entry a row."""

    rows: npt.NDArray[Any]
    ids: npt.NDArray[np.bytes_]
    source_names: list[str]
    shard_names: list[str]
    shard_sizes: list[int]

    def save(self, path: Path) -> None:
        """Writes the .npz, atomically; the same index gives the same bytes."""
        temporary = path.with_name(f".{path.name}.part")
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                rows=self.rows,
                ids=self.ids,
                source_names=np.array(self.source_names),
                shard_names=np.array(self.shard_names),
                shard_sizes=np.array(self.shard_sizes, dtype=np.int64),
            )
        os.replace(temporary, path)

    def describe(self) -> list[Row]:
        """The rows as plain values."""
        fields = ("side", "source", "num_frames", "voice_frames", "num_words", "role_chars")
        columns = zip(*(self.rows[field].tolist() for field in fields), strict=True)
        return [
            Row(key.decode(), SIDES[side], self.source_names[source], *rest)
            for key, (side, source, *rest) in zip(self.ids.tolist(), columns, strict=True)
        ]

    @staticmethod
    def load(path: Path) -> "Index":
        """Raises: UserError if the file is missing, broken or of another layout."""
        if not path.is_file():
            raise UserError(f"{path}: no index: make it with `ppx-data index {path.parent}`")
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = {key: [str(name) for name in stored[key]] for key in ("source_names", "shard_names")}
                sizes = [int(size) for size in stored["shard_sizes"]]
                index = Index(stored["rows"], stored["ids"], names["source_names"], names["shard_names"], sizes)
        except Exception as why:  # a damaged zip fails in many ways
            raise UserError(f"{path}: broken index ({why}): make it again with `ppx-data index {path.parent}`") from why
        if index.rows.dtype != ROW or len(index.ids) != len(index.rows):
            raise UserError(f"{path}: an index of another version: make it again with `ppx-data index {path.parent}`")
        return index


class ShardReader:
    """Random access to the samples of one split. Holds no open file, so it may be forked and shared by threads."""

    def __init__(self, path: Path | str) -> None:
        """Opens SHARDS/SPLIT. Raises UserError if the folder or its index is missing, or a tar is not as indexed."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder of shards: make it with `ppx-data shard`")
        self.index = Index.load(self.path / NAME)
        self._files = [self.path / name for name in self.index.shard_names]
        for file, expected in zip(self._files, self.index.shard_sizes, strict=True):
            actual = file.stat().st_size if file.is_file() else None
            if actual != expected:
                found = "is missing" if actual is None else f"has {actual} bytes"
                raise UserError(
                    f"{file}: {found}, its index expects {expected} bytes: copy it again, "
                    f"or index what is there with `ppx-data index {self.path}`"
                )

        self.rows = self.index.describe()

    def __len__(self) -> int:
        return len(self.rows)

    def sources(self) -> dict[str, list[int]]:
        """Row numbers of each source, in the order of the tars."""
        found: dict[str, list[int]] = {name: [] for name in self.index.source_names}
        for i, row in enumerate(self.rows):
            found[row.source].append(i)
        return found

    def read(self, i: int) -> Sample:
        """Reads sample i. Raises BadSample if its bytes are not what the index promises."""
        row = self.rows[i]
        meta, codes, voice = self._bytes(i, "meta", "codes", "voice")
        try:
            codes_KT = _codes(codes, "codes", 16, row.num_frames)
            voice_CP = _codes(voice, "voice codes", 8, row.voice_frames)
        except ValueError as why:
            raise BadSample(row.id, str(why)) from why
        return Sample(
            id=row.id,
            side=row.side,
            source=row.source,
            codes_KT=torch.from_numpy(codes_KT if row.side == "left" else np.roll(codes_KT, 8, axis=0)),
            voice_codes_CP=torch.from_numpy(voice_CP),
            dialogue=self._parse(i, meta),
        )

    def dialogue(self, i: int) -> Dialogue:
        """The dialogue of row i, without its codes. Raises BadSample."""
        return self._parse(i, *self._bytes(i, "meta"))

    def audio(self, i: int) -> tuple[npt.NDArray[np.float32], int]:
        """The recording of row i: (float32 [2, samples], left and right as recorded; rate in Hz). Raises BadSample."""
        return self._sound(i, "audio")

    def voice_clip(self, i: int) -> tuple[npt.NDArray[np.float32], int]:
        """The voice prompt of row i as recorded: (float32 [1, samples], rate in Hz). Raises BadSample."""
        return self._sound(i, "clip")

    def shard_path(self, i: int) -> Path:
        """The tar that holds row i."""
        return self._files[self.index.rows[i]["shard"]]

    def _bytes(self, i: int, *parts: str) -> list[bytes]:
        row = self.index.rows[i]
        # Opened for each read: 10 us on a disk, no limit on the number of shards, nothing to share between processes
        file = os.open(self.shard_path(i), os.O_RDONLY)
        try:
            return [os.pread(file, int(row[f"{part}_size"]), int(row[f"{part}_offset"])) for part in parts]
        finally:
            os.close(file)

    def _sound(self, i: int, part: str) -> tuple[npt.NDArray[np.float32], int]:
        (data,) = self._bytes(i, part)
        try:
            wav_SC, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as why:
            name = "audio.flac" if part == "audio" else "voice.flac"
            raise BadSample(self.rows[i].id, f"{name} cannot be decoded ({why})") from why
        return np.ascontiguousarray(wav_SC.T), int(rate)

    def _parse(self, i: int, meta: bytes) -> Dialogue:
        try:
            dialogue = Dialogue.from_json(meta.decode(), "meta.json")
            if dialogue.id != self.rows[i].id:
                raise ValueError(f"meta.json is of dialogue {dialogue.id!r}")
            if self.rows[i].side not in dialogue.agent_sides:
                raise ValueError(f"its {self.rows[i].side} side is not an agent")
        except Exception as why:  # JSON of a wrong shape fails in many ways; the other samples are good
            raise BadSample(self.rows[i].id, str(why)) from why
        return dialogue


def _codes(data: bytes, what: str, codebooks: int, frames: int) -> npt.NDArray[np.int64]:
    """Codes as int64 [codebooks, frames]. Raises ValueError if they are anything else."""
    array = npy_array(data)
    if array.dtype != np.int16 or array.shape != (codebooks, frames):
        raise ValueError(f"{what} are {array.dtype} {list(array.shape)}, not int16 {[codebooks, frames]}")
    if array.size and array.min() < 0:
        raise ValueError(f"{what} hold the negative value {array.min()}")
    return array.astype(np.int64)


def scan_tar(path: Path) -> dict[str, Members]:
    """Members of one tar by dialogue id. Raises UserError if it is truncated, no plain tar, or empty."""
    found: dict[str, Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and "." in member.name:
                    key, name = member.name.split(".", 1)
                    found.setdefault(key, {})[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as why:
        raise UserError(f"{path}: not a whole plain tar ({why}): copy it or make it again") from why
    if not found:
        raise UserError(f"{path}: an empty shard: delete it or make it again with `ppx-data shard`")
    last = max(offset + size for members in found.values() for offset, size in members.values())
    if last > path.stat().st_size:
        raise UserError(f"{path}: truncated at {path.stat().st_size} of at least {last} bytes: copy it again")
    return found


def scan_split(split_dir: Path) -> tuple[Index, list[str]]:
    """Indexes all tars of a folder; returns the index and a line for each dialogue that had to be left out.

    Raises: UserError if the folder holds no tar, if a tar is broken or empty, or if no sample is usable.
    """
    if not split_dir.is_dir():
        raise UserError(f"{split_dir}: no such folder of shards: make it with `ppx-data shard`")
    paths = sorted(split_dir.glob("*.tar"))
    if not paths:
        raise UserError(f"{split_dir}: holds no shard (*.tar): make some with `ppx-data shard`")
    found: list[tuple[str, str, dict[str, int]]] = []  # id, source, fields of the row
    problems = []
    for number, path in enumerate(paths):
        for key, members in scan_tar(path).items():
            try:
                found += [(key, source, row | {"shard": number}) for source, row in _rows(path, key, members)]
            except (ValueError, KeyError) as why:
                problems.append(f"{path.name}: {key}: {f'no {why.args[0]}' if isinstance(why, KeyError) else why}")
    if not found:
        raise UserError(f"{split_dir}: no usable sample in {len(paths)} shards; the first: {problems[0]}")
    names = sorted({source for _, source, _ in found})
    rows = np.zeros(len(found), dtype=ROW)
    for n, (_, source, row) in enumerate(found):
        rows[n] = tuple((row | {"source": names.index(source)})[field] for field in ROW.names or ())
    ids = np.array([key.encode() for key, _, _ in found])
    return Index(rows, ids, names, [p.name for p in paths], [p.stat().st_size for p in paths]), problems


def _rows(path: Path, key: str, members: Members) -> list[tuple[str, dict[str, int]]]:
    """(source, row) of each agent side. Raises ValueError or KeyError naming what is wrong with the dialogue."""
    with open(path, "rb") as file:

        def data(name: str) -> bytes:
            offset, size = members[name]
            return os.pread(file.fileno(), size, offset)

        dialogue = Dialogue.from_json(data("meta.json").decode(), "meta.json")
        if dialogue.id != key:
            raise ValueError(f"meta.json is of dialogue {dialogue.id!r}")
        codes = npy_array(data("codes.npy"))
        _codes(data("codes.npy"), "codes", 16, codes.shape[-1])
        rows = []
        for side in dialogue.agent_sides:
            voice = npy_array(data(f"{side}.voice.npy"))
            _codes(data(f"{side}.voice.npy"), "voice codes", 8, voice.shape[-1])
            row = {
                "side": SIDES.index(side),
                "num_frames": codes.shape[-1],
                "voice_frames": voice.shape[-1],
                "num_words": len(dialogue.side(side).words),
                "role_chars": len(dialogue.side(side).role_prompt),
            }
            places = {"meta": "meta.json", "codes": "codes.npy", "audio": "audio.flac"}
            places |= {"voice": f"{side}.voice.npy", "clip": f"{side}.voice.flac"}
            for part, name in places.items():
                row[f"{part}_offset"], row[f"{part}_size"] = members[name]
            rows.append((dialogue.source, row))
        return rows


def build_index(split_dir: Path) -> list[str]:
    """Writes SPLIT/index.npz from the tars; returns a line for each dialogue left out. Raises as scan_split."""
    index, problems = scan_split(Path(split_dir))
    index.save(Path(split_dir) / NAME)
    return problems


def split_folders(shards: Path) -> list[Path]:
    """The splits below SHARDS, or SHARDS itself if it holds tars. Raises UserError if there is none."""
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder of shards: make it with `ppx-data shard`")
    if any(shards.glob("*.tar")):
        return [shards]
    folders = [shards / split for split in SPLITS if (shards / split).is_dir()]
    if not folders:
        raise UserError(
            f"{shards}: holds no shard and neither of {', '.join(SPLITS)}: give the folder of `ppx-data shard`"
        )
    return folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ppx-data index`."""
    parser.add_argument(
        "shards", type=Path, metavar="SHARDS", help="folder made by `ppx-data shard`, or one split of it"
    )


def run(args: argparse.Namespace) -> None:
    """Rebuilds the index of every split and prints what it holds and what it leaves out."""
    for folder in split_folders(args.shards):
        problems = build_index(folder)
        reader = ShardReader(folder)
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in reader.sources().items())
        print(f"{folder}: {len(reader)} samples ({counts}), {len(problems)} dialogues left out")
        for problem in problems:
            print(f"  {problem}")
