"""The index of a split, made from its tars."""

import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipelines.files import sha256_file
from data_pipelines.records.schema import ID_PATTERN, SIDES, SOURCE_PATTERN, SPLITS, Dialogue
from data_pipelines.shards.members import AUDIO, CODES, META, clip_name, parse_codes, parse_text, text_name, voice_name
from data_pipelines.shards.rows import COLUMNS, NAME, TAR_PATTERN, Index
from data_pipelines.sound.audio import FLAC_MAGIC
from model.errors import UserError
from model.files import check_link

Members = dict[str, tuple[int, int]]  # member name without the id -> (offset, size) of its bytes
NO_HASHES: Mapping[str, str] = MappingProxyType({})
FARTHEST = np.iinfo(np.int32).max
"""How many bytes the members of a dialogue may lie apart: an index stores their places as int32."""


class _Found(NamedTuple):
    """One sample of a tar; all but `id` are columns of the index."""

    id: str
    source: str
    offset: int
    places: list[int]
    side: int
    num_frames: int
    voice_frames: int
    num_words: int
    role_chars: int


def scan_tar(path: Path) -> dict[str, Members]:
    """Members of one tar by dialogue id. Raises UserError if it is truncated, no plain tar, or empty."""
    found: dict[str, Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and "." in member.name:
                    key, name = member.name.split(".", 1)
                    found.setdefault(key, {})[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as why:
        raise UserError(f"{path} is no whole plain tar ({why}): copy it or make it again", code="bad-shards") from why
    if not found:
        raise UserError(
            f"{path} is an empty shard: delete it or make it again with `ppx-data shard`", code="bad-shards"
        )
    last = max(offset + size for members in found.values() for offset, size in members.values())
    if last > path.stat().st_size:
        raise UserError(
            f"{path} is truncated at {path.stat().st_size} of at least {last} bytes: copy it again", code="bad-shards"
        )
    return found


def scan_split(split_dir: Path, hashes: Mapping[str, str] = NO_HASHES) -> tuple[Index, list[str]]:
    """Indexes all tars of a folder; returns the index and a line for each dialogue that is left out.

    `hashes` holds the SHA-256 of tars by name, as far as the caller has computed them.
    Raises: UserError if the folder holds no tar, if a tar is broken, empty, a link that leads elsewhere or has another
    kind of name, or if no sample is usable.
    """
    if not split_dir.is_dir():
        raise UserError(f"{split_dir} is no folder of shards: make it with `ppx-data shard`", code="not-found")
    paths = sorted(split_dir.glob("*.tar"))
    if not paths:
        raise UserError(f"{split_dir} holds no shard (*.tar): make some with `ppx-data shard`", code="no-data")
    parts: list[dict[str, npt.NDArray[Any]]] = []
    names: list[str] = []  # of sources, in the order in which they turn up
    problems: list[str] = []
    for number, path in enumerate(paths):
        check_link(split_dir, path.name)
        if not TAR_PATTERN.fullmatch(path.name):
            raise UserError(
                f"{path} is not named like a shard: call it SOURCE-00000.tar, in lower-case letters, digits and '_'",
                code="bad-shards",
            )
        found: list[_Found] = []
        for key, members in scan_tar(path).items():
            try:
                found += _samples(path, key, members)
            except (ValueError, KeyError) as why:
                problems.append(f"{path.name}: {key}: {f'no {why.args[0]}' if isinstance(why, KeyError) else why}")
        if found:
            names += sorted({sample.source for sample in found} - set(names))
            parts.append(_columns(found, number, names))
    if not parts:
        raise UserError(
            f"{split_dir} has no usable sample in {len(paths)} shards; the first problem is {problems[0]!r}",
            code="no-data",
        )
    columns = _joined(parts)
    order = np.argsort(names)
    columns["source"] = np.argsort(order)[columns["source"]].astype(np.int16)
    sizes = [path.stat().st_size for path in paths]
    sums = [hashes.get(path.name) or sha256_file(path) for path in paths]
    return Index(columns, [names[k] for k in order], [path.name for path in paths], sizes, sums), problems


def _columns(found: Sequence[_Found], shard: int, names: list[str]) -> dict[str, npt.NDArray[Any]]:
    """The columns of one tar; `source` holds positions in `names`."""
    ids = np.array([sample.id.encode() for sample in found])
    columns = {
        "ids": ids.view(np.uint8).reshape(len(found), -1),
        "shard": np.full(len(found), shard),
        "source": np.array([names.index(sample.source) for sample in found]),
    }
    for name in COLUMNS.keys() - columns.keys():
        columns[name] = np.array([getattr(sample, name) for sample in found])
    return {name: column.astype(COLUMNS[name]) for name, column in columns.items()}


def _joined(parts: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    widest = max(part["ids"].shape[1] for part in parts)
    for part in parts:
        part["ids"] = np.pad(part["ids"], ((0, 0), (0, widest - part["ids"].shape[1])))
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def _samples(path: Path, key: str, members: Members) -> list[_Found]:
    """One sample for each agent side. Raises ValueError or KeyError that says what is wrong with the dialogue."""
    with open(path, "rb") as file:

        def data(name: str, limit: int = FARTHEST) -> bytes:
            offset, size = members[name]
            return os.pread(file.fileno(), min(size, limit), offset)

        dialogue = Dialogue.from_json(data(META).decode(), META)
        if dialogue.id != key:
            raise ValueError(f"{META} is of dialogue {dialogue.id!r}")
        if not ID_PATTERN.fullmatch(key) or not SOURCE_PATTERN.fullmatch(dialogue.source):
            raise ValueError(f"id {key!r} or source {dialogue.source!r} holds other characters than letters and digits")
        for name in (AUDIO, *map(clip_name, dialogue.agent_sides)):
            if data(name, len(FLAC_MAGIC)) != FLAC_MAGIC:
                raise ValueError(f"{name} is no FLAC")
        codes = parse_codes(data(CODES), "codes", 16)
        first = min(offset for offset, _ in members.values())
        samples = []
        for name in dialogue.agent_sides:
            side = dialogue.side(name)
            if parse_text(data(text_name(name)))[0] != side.role_prompt:
                raise ValueError(f"{text_name(name)} and {META} have different role prompts")
            places: list[int] = []
            for member in (CODES, voice_name(name), text_name(name), META, AUDIO, clip_name(name)):
                offset, size = members[member]
                if not size:
                    raise ValueError(f"{member} is empty")
                places += [offset - first, size]
            if max(places) > FARTHEST:
                raise ValueError("its members lie more than 2 GB apart")
            samples.append(
                _Found(
                    id=key,
                    source=dialogue.source,
                    offset=first,
                    places=places,
                    side=SIDES.index(name),
                    num_frames=codes.shape[1],
                    voice_frames=parse_codes(data(voice_name(name)), "voice codes", 8).shape[1],
                    num_words=len(side.words),
                    role_chars=len(side.role_prompt),
                )
            )
        return samples


def build_index(split_dir: Path, hashes: Mapping[str, str] = NO_HASHES) -> list[str]:
    """Writes SPLIT/index.safetensors from the tars; returns a line for each dialogue left out.

    `hashes` and what it raises are those of scan_split.
    """
    index, problems = scan_split(Path(split_dir), hashes)
    index.save(Path(split_dir) / NAME)
    return problems


def split_folders(shards: Path) -> list[Path]:
    """The splits below SHARDS, or SHARDS itself if it holds tars. Raises: UserError without either."""
    if not shards.is_dir():
        raise UserError(f"{shards} is no folder of shards: make it with `ppx-data shard`", code="not-found")
    if any(shards.glob("*.tar")):
        return [shards]
    folders = [shards / split for split in SPLITS if (shards / split).is_dir()]
    if not folders:
        raise UserError(
            f"{shards} holds no shard and neither of {', '.join(SPLITS)}: give the folder of `ppx-data shard`",
            code="no-data",
        )
    for folder in folders:
        check_link(shards, folder.name)
    return folders
