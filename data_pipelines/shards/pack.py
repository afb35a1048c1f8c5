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

The same dialogues give the same bytes: members have a fixed order, no times and no owners. docs/reference/shards.md
shows how other programs read them.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_pipelines.files import digest, write_json
from data_pipelines.records.folder import load_dialogue
from data_pipelines.records.provenance import engines_of, gate_limits_of, is_masked, is_recorded
from data_pipelines.records.schema import SIDES, SPLITS, Dialogue
from data_pipelines.records.typed import record
from data_pipelines.shards.members import AUDIO, META, clip_name, in_order, npy_bytes, text_bytes, text_name
from data_pipelines.shards.rows import NAME
from model.config import FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file

FORMAT = 2
"""Version of the layout above, in the manifest."""

Codes = npt.NDArray[np.int16]


@dataclass(kw_only=True, frozen=True)
class DialogueSummary:
    """A dialogue that can be packed, without its words and audio: 100,000 of them fit in memory."""

    id: str
    folder: Path
    signature: str
    """Identifies the content of the folder and the codec."""
    source: str
    split: str
    agent_sides: tuple[str, ...]
    seconds: float
    agent_words: int
    licence: str
    agent_voices: tuple[str, ...]
    user_voices: tuple[str, ...]
    """Voices of the sides that are no agent."""
    engines: tuple[str, ...]
    gate_limits: str
    """Limits of the gates that it passed, as JSON; "" if no gate judged it."""
    is_recorded: bool
    """True for recorded people, False for an engine's speech."""
    is_masked: bool
    """True if personal numbers and names were masked."""
    num_bytes: int
    """About its size in a tar. The cuts depend on it, so it must not depend on how the codec was run."""

    @staticmethod
    def of(dialogue: Dialogue, folder: Path, signature: str) -> "DialogueSummary":
        """Sums up a dialogue and the files of its folder."""
        sides = dialogue.agent_sides
        flacs = ["audio.flac", *(f"{side}.voice.flac" for side in sides)]
        sizes = [(folder / name).stat().st_size for name in flacs]
        # The header of a .npy file has 128 bytes, and a voice prompt at most 125 frames.
        sizes += [128 + 32 * -(-round(dialogue.seconds * SAMPLE_RATE) // FRAME_SAMPLES), *[128 + 16 * 125] * len(sides)]
        sizes += [len(dialogue.to_json().encode()), *(len(text_bytes(dialogue.side(side))) for side in sides)]
        limits = gate_limits_of(dialogue.provenance)
        return DialogueSummary(
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
            is_recorded=is_recorded(dialogue.provenance),
            is_masked=is_masked(dialogue.provenance),
            num_bytes=sum(512 + -(-size // 512) * 512 for size in sizes),
        )


@dataclass(kw_only=True, frozen=True)
class ShardFile:
    """One tar: its size in bytes, its hash, and how many dialogues it holds."""

    bytes: int
    sha256: str
    dialogues: int


def cut_into_shards(sizes: Sequence[int], limit: int) -> list[range]:
    """Consecutive ranges of items whose sizes sum to at most `limit`; a larger item has a shard of its own."""
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


def write_shard(path: Path, dialogues: Iterable[tuple[str, dict[str, bytes]]]) -> ShardFile:
    """Writes one tar from (id, {member name: bytes}), in the order given; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as raw:
        file, num = _HashingFile(raw), 0
        with tarfile.open(fileobj=file, mode="w|") as tar:  # type: ignore[call-overload]
            for key, members in dialogues:
                num += 1
                for name, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{name}")  # time 0, no owner: the bytes depend on the data alone
                    member.size, member.mode = len(data), 0o444
                    tar.addfile(member, io.BytesIO(data))
    return ShardFile(bytes=file.size, sha256=file.hash.hexdigest(), dialogues=num)


def pack_all(dialogues: Sequence[DialogueSummary], out: Path, work: Path, limit: int) -> dict[str, ShardFile]:
    """Writes the tars of every split and source, of at most `limit` bytes each.

    Codes come from WORK/ID.npz. Finished tars of a killed run over the same dialogues are kept; those over other
    dialogues are deleted.
    Returns: the tars by path, such as "train/service-00000.tar".
    Raises: UserError if a split's folder holds anything that this stage did not write.
    """
    plan: dict[str, list[DialogueSummary]] = {}
    for split in SPLITS:
        for source in sorted({one.source for one in dialogues}):
            group = [one for one in dialogues if (one.split, one.source) == (split, source)]
            for n, cut in enumerate(cut_into_shards([one.num_bytes for one in group], limit)):
                plan[f"{split}/{source}-{n:05d}.tar"] = [group[i] for i in cut]
    for split in SPLITS:  # a killed run over other dialogues may have left tars
        for path in (out / split).glob("*"):
            name = path.name.removeprefix(".").removesuffix(".part")
            if name != NAME and not _note(out / split / name, work).is_file():
                raise UserError(f"{path} was not written by `ppx-data shard`: move it elsewhere", code="exists")
            if f"{split}/{path.name}" not in plan:
                path.unlink()
    shards = tqdm(plan.items(), desc="pack", unit="shard", disable=None)
    return {name: _pack(out / name, content, work) for name, content in shards}


def tar_hashes(shards: Mapping[str, ShardFile], split: str) -> dict[str, str]:
    """SHA-256 of the tars of one split, by their names in it."""
    return {name.removeprefix(f"{split}/"): one.sha256 for name, one in shards.items() if name.startswith(f"{split}/")}


def _note(path: Path, work: Path) -> Path:
    """The note about the tar at `path`: only a file with a note is ours to replace."""
    return work / f"{path.parent.name}-{path.stem}.json"


@dataclass(kw_only=True, frozen=True)
class _Note:
    """What WORK keeps about a tar; `shard` is null until it is written."""

    plan: str
    """Identifies its dialogues."""
    shard: ShardFile | None = None


def _pack(path: Path, dialogues: Sequence[DialogueSummary], work: Path) -> ShardFile:
    note = _note(path, work)
    plan = digest(*(f"{one.id} {one.signature}" for one in dialogues))
    if note.is_file() and path.is_file():
        before = record(_Note, note.read_bytes())
        if before.plan == plan and before.shard and before.shard.bytes == path.stat().st_size:
            return before.shard
    write_json(note, asdict(_Note(plan=plan)))  # from here on a file of this name is ours
    shard = write_shard(path, _members(dialogues, work))
    write_json(note, asdict(_Note(plan=plan, shard=shard)))
    return shard


def _members(dialogues: Sequence[DialogueSummary], work: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    for one in dialogues:
        dialogue = load_dialogue(one.folder)
        members = {META: dialogue.to_json().encode()}
        for name in (AUDIO, *map(clip_name, one.agent_sides)):
            members[name] = (one.folder / name).read_bytes()
        for side in one.agent_sides:
            members[text_name(side)] = text_bytes(dialogue.side(side))
        with np.load(work / f"{one.id}.npz", allow_pickle=False) as values:
            members |= {name: npy_bytes(values[name]) for name in values.files if name != "signature"}
        yield one.id, {name: members[name] for name in in_order(one.agent_sides)}
