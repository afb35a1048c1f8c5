"""Shards: plain tars that webdataset, Hugging Face datasets and `tar` read alike.

    SHARDS/{train,heldout}/{source}-00000.tar
    SHARDS/{train,heldout}/index.safetensors    where every sample lies (data_pipelines.shards.rows)
    SHARDS/report.json                          what was rejected, and why
    SHARDS/manifest.json                        written last: a folder without it is incomplete

Members of one dialogue in this order, for each side that may be the agent (`left`, `right` or both):

    ID.codes.npy          int16 [16, T]: Mimi codes of left (8), then of right (8)
    ID.left.voice.npy     int16 [8, P]: codes of the voice prompt at -24 LUFS
    ID.left.text.json     role prompt and words with their starts: what training reads of the record
    ID.meta.json          a data_pipelines.records.schema.Dialogue
    ID.audio.flac         the two channels, 24 kHz
    ID.left.voice.flac    the voice prompt as recorded

The same dialogues give the same bytes: members have a fixed order, no times and no owners.
docs/shards.md shows how others read them.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_pipelines.files import digest, write_json
from data_pipelines.records.folder import load_dialogue
from data_pipelines.records.schema import SIDES, SPLITS, Dialogue
from data_pipelines.shards.members import AUDIO, META, clip_name, in_order, npy_bytes, text_bytes, text_name
from data_pipelines.shards.rows import NAME
from model.config import FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file

FORMAT = 2
"""Version of the layout above, in the manifest."""

NAMED_ENGINES = ("word_times", "resampler", "aligner", "asr", "engine", "model")
"""Keys of a provenance under which an engine may be a plain name; a record with name and version always is one."""

Codes = npt.NDArray[np.int16]


@dataclass(kw_only=True, frozen=True)
class Item:
    """A usable dialogue, without its words and audio: 100,000 of them fit in memory."""

    id: str
    folder: Path
    signature: str
    source: str
    split: str
    agent_sides: tuple[str, ...]
    seconds: float
    agent_words: int
    licence: str
    agent_voices: tuple[str, ...]
    user_voices: tuple[str, ...]
    """Of the sides that are no agent."""
    engines: tuple[str, ...]
    gate_limits: str
    """Thresholds of the gates it passed, as JSON; "" if there were none."""
    num_bytes: int
    """Size in a tar, near enough for the cuts, which must not depend on how the codec was run."""

    @staticmethod
    def of(dialogue: Dialogue, folder: Path, signature: str) -> "Item":
        """Sums up a dialogue and the files of its folder."""
        sides = dialogue.agent_sides
        flacs = ["audio.flac", *(f"{side}.voice.flac" for side in sides)]
        sizes = [(folder / name).stat().st_size for name in flacs]
        # 128: header of a .npy file; a voice prompt has at most 125 frames
        sizes += [128 + 32 * -(-round(dialogue.seconds * SAMPLE_RATE) // FRAME_SAMPLES), *[128 + 16 * 125] * len(sides)]
        sizes += [len(dialogue.to_json().encode()), *(len(text_bytes(dialogue.side(side))) for side in sides)]
        limits = dialogue.provenance.get("gate_limits")
        return Item(
            id=dialogue.id,
            folder=folder,
            signature=signature,
            source=dialogue.source,
            split=dialogue.split,
            agent_sides=sides,
            seconds=dialogue.seconds,
            agent_words=sum(len(dialogue.side(side).words) for side in sides),
            licence=dialogue.licence,
            agent_voices=tuple(dialogue.side(side).speaker for side in sides),
            user_voices=tuple(dialogue.side(side).speaker for side in SIDES if side not in sides),
            engines=tuple(engines_of(dialogue.provenance)),
            gate_limits=json.dumps(limits, sort_keys=True) if limits else "",
            num_bytes=sum(512 + -(-size // 512) * 512 for size in sizes),
        )


def engines_of(provenance: Mapping[str, Any]) -> list[str]:
    """Every engine that had a part in a dialogue, as "role: name version", sorted: what spoke, aligned, wrote, ..."""
    return sorted(set(_engines(provenance))) or ["engine: none stated"]


def _engines(provenance: Mapping[str, Any]) -> Iterator[str]:
    for role, value in provenance.items():
        if isinstance(value, Mapping) and "name" in value and ("version" in value or "model" in value):
            # a fetched model is told by its checksum as well, for versions of packages say nothing about it
            parts = [value["name"], value.get("version"), value.get("model"), str(value.get("model_sha256", ""))[:12]]
            yield f"{role}: {' '.join(str(part) for part in parts if part)}"
        elif isinstance(value, Mapping):
            yield from _engines(value)
        elif role in NAMED_ENGINES and isinstance(value, str) and value:
            yield f"{role}: {value}"


def cut_into_shards(sizes: Sequence[int], limit: int) -> list[range]:
    """Consecutive ranges of items whose sizes sum to at most `limit`; one larger item has a shard of its own."""
    shards, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            shards.append(range(start, i))
            start, total = i, 0
        total += size
    return [*shards, range(start, len(sizes))] if sizes else []


class _HashingFile:
    """Passes writes on and keeps their number and sha256."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


def write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> dict[str, Any]:
    """Writes one tar, atomically, from (id, {member name: bytes}) in the order given.

    Returns {"bytes": size of the tar, "sha256": its hash}.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as raw:
        file = _HashingFile(raw)
        with tarfile.open(fileobj=file, mode="w|") as tar:  # type: ignore[call-overload]
            for key, members in samples:
                for name, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{name}")  # time 0, no owner: the bytes depend on the data alone
                    member.size, member.mode = len(data), 0o444
                    tar.addfile(member, io.BytesIO(data))
    return {"bytes": file.size, "sha256": file.hash.hexdigest()}


def pack_all(items: Sequence[Item], out: Path, work: Path, limit: int) -> dict[str, dict[str, Any]]:
    """Writes the tars of every split and source, of at most `limit` bytes each.

    Codes come from WORK/ID.npz. Finished tars of a killed run over the same dialogues are kept; those over other
    dialogues are deleted. Raises UserError if a split's folder holds anything that this stage did not write.
    Returns {"train/service-00000.tar": {"bytes", "sha256", "dialogues"}}.
    """
    plan: dict[str, list[Item]] = {}
    for split in SPLITS:
        for source in sorted({item.source for item in items}):
            group = [i for i in items if (i.split, i.source) == (split, source)]
            for n, cut in enumerate(cut_into_shards([i.num_bytes for i in group], limit)):
                plan[f"{split}/{source}-{n:05d}.tar"] = [group[i] for i in cut]
    for split in SPLITS:  # what a killed run over other dialogues left
        for path in (out / split).glob("*"):
            name = path.name.removeprefix(".").removesuffix(".part")
            if name != NAME and not _note(out / split / name, work).is_file():
                raise UserError(f"{path}: was not written by `ppx-data shard`: move it elsewhere")
            if f"{split}/{path.name}" not in plan:
                path.unlink()
    shards = tqdm(plan.items(), desc="pack", unit="shard", disable=None)
    return {name: _pack(out / name, content, work) for name, content in shards}


def _note(path: Path, work: Path) -> Path:
    """Where the tar at `path` is noted; only files with a note are ours to replace."""
    return work / f"{path.parent.name}-{path.stem}.json"


def _pack(path: Path, items: Sequence[Item], work: Path) -> dict[str, Any]:
    plan = digest(*(f"{item.id} {item.signature}" for item in items))
    note = _note(path, work)
    if note.is_file() and path.is_file():
        before = json.loads(note.read_text("utf-8"))
        if before["plan"] == plan and before["shard"] and before["shard"]["bytes"] == path.stat().st_size:
            return before["shard"]
    write_json(note, {"plan": plan, "shard": None})  # from here on a file of this name is ours
    shard = write_shard(path, _members(items, work)) | {"dialogues": len(items)}
    write_json(note, {"plan": plan, "shard": shard})
    return shard


def _members(items: Sequence[Item], work: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    for item in items:
        dialogue = load_dialogue(item.folder)
        members = {META: dialogue.to_json().encode()}
        for name in (AUDIO, *map(clip_name, item.agent_sides)):
            members[name] = (item.folder / name).read_bytes()
        for side in item.agent_sides:
            members[text_name(side)] = text_bytes(dialogue.side(side))
        with np.load(work / f"{item.id}.npz", allow_pickle=False) as values:
            members |= {name: npy_bytes(values[name]) for name in values.files if name != "signature"}
        yield item.id, {name: members[name] for name in in_order(item.agent_sides)}
