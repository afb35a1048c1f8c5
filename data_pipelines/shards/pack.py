"""Shards: plain tars that webdataset, Hugging Face datasets and `tar` read alike.

    SHARDS/{train,heldout}/{source}-00000.tar
    SHARDS/{train,heldout}/index.npz     where every sample lies (data_pipelines.shards.index)
    SHARDS/report.json                   what was rejected, and why
    SHARDS/manifest.json                 written last: a folder without it is incomplete

Members of one dialogue, for each side that may be the agent (`left`, `right` or both):

    ID.meta.json          a data_pipelines.schema.Dialogue
    ID.audio.flac         the two channels, 24 kHz
    ID.codes.npy          int16 [16, T]: Mimi codes of left (8), then of right (8)
    ID.left.voice.flac    the voice prompt as recorded
    ID.left.voice.npy     int16 [8, P]: its codes at -24 LUFS

The same dialogues give the same bytes: members are sorted, without times or owners.
`datasets` guesses the columns from the first five dialogues; give it all of them instead:

    codes = List(List(Value("int16")))
    load_dataset("webdataset", data_files="SHARDS/train/*.tar", features=Features({
        "__key__": Value("string"), "__url__": Value("string"), "meta.json": Json(), "codes.npy": codes,
        "audio.flac": Value("binary"), "left.voice.flac": Value("binary"), "left.voice.npy": codes,
        "right.voice.flac": Value("binary"), "right.voice.npy": codes}))
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_pipelines.files import digest, write_json
from data_pipelines.folder import load_dialogue
from data_pipelines.schema import SPLITS, Dialogue
from model.config import FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError

FACTS = ("codec", "content", "licences", "engines", "shards")  # mappings in the manifest, beside format and inputs
FORMAT = 1
"""Version of the layout above, in the manifest."""

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
    engine: str
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
        sizes += [len(dialogue.to_json().encode())]
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
            engine=_engine_label(dialogue),
            num_bytes=sum(512 + -(-size // 512) * 512 for size in sizes),
        )


def _engine_label(dialogue: Dialogue) -> str:
    """What spoke: provenance["engine"] is a name, or a record with name and version."""
    engine = dialogue.provenance.get("engine", "none stated")
    return f"{engine.get('name')} {engine.get('version', '')}".strip() if isinstance(engine, dict) else str(engine)


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def npy_array(data: bytes) -> npt.NDArray[Any]:
    """The array in the bytes of a .npy file. Raises ValueError if they are anything else, pickles included."""
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as why:  # a damaged header fails in a dozen ways (syntax, tokens, sizes, memory)
        raise ValueError(f"not a .npy array: {why}") from why


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
    from webdataset.writer import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as raw:
        file = _HashingFile(raw)
        # mtime 0: the bytes depend on the dialogues alone
        with TarWriter(file, encoder=False, compress=False, mtime=0, user="", group="") as tar:
            for key, members in samples:
                tar.write({"__key__": key, **members})
    os.replace(temporary, path)
    return {"bytes": file.size, "sha256": file.hash.hexdigest()}


def read_manifest(shards: Path) -> dict[str, Any]:
    """Reads SHARDS/manifest.json. Raises UserError if it is missing, broken or of another format."""
    path = shards / "manifest.json"
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder: make it with `ppx-data shard --out {shards}`")
    if not path.is_file():
        raise UserError(f"{path}: missing, so the shards are incomplete: run the same `ppx-data shard` again")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as why:
        raise UserError(f"{path}: not JSON ({why}): make the shards again with `ppx-data shard`") from why
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a manifest of format {FORMAT}: make the shards again with `ppx-data shard`")
    lost = [key for key in FACTS if not isinstance(manifest.get(key), dict)]
    lost += [] if isinstance(manifest.get("inputs"), str) else ["inputs"]
    if lost or "fingerprint" not in manifest["codec"]:
        what = lost[0] if lost else "codec.fingerprint"
        raise UserError(f"{path}: damaged, {what} is not there: make the shards again with `ppx-data shard`")
    return manifest


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
            if name != "index.npz" and not _note(out / split / name, work).is_file():
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
        members = {"meta.json": load_dialogue(item.folder).to_json().encode()}
        for name in ("audio.flac", *(f"{side}.voice.flac" for side in item.agent_sides)):
            members[name] = (item.folder / name).read_bytes()
        with np.load(work / f"{item.id}.npz", allow_pickle=False) as values:
            members |= {name: npy_bytes(values[name]) for name in values.files if name != "signature"}
        yield item.id, members


def make_manifest(
    items: Sequence[Item], codec: dict[str, Any], shards: dict[str, dict[str, Any]], inputs: str
) -> dict[str, Any]:
    """Hours and counts for each split and source, licences, engines, codec and tars; plain JSON values."""
    content: dict[str, dict[str, dict[str, float]]] = {}
    licences: dict[str, dict[str, float]] = {}
    for item in items:
        hours = item.seconds / 3600
        parts = {"dialogues": 1, "samples": len(item.agent_sides), "hours": hours, "agent_words": item.agent_words}
        _add(content.setdefault(item.split, {}).setdefault(item.source, {}), parts)
        _add(licences.setdefault(item.licence, {}), {"dialogues": 1, "hours": hours})
    return {
        "format": FORMAT,
        "codec": codec,
        "content": content,
        "licences": licences,
        "engines": dict(Counter(item.engine for item in items)),
        "shards": shards,
        "inputs": inputs,
    }


def _add(total: dict[str, float], parts: dict[str, float]) -> None:
    for name, value in parts.items():
        total[name] = total.get(name, 0) + value


def summary(out: Path, manifest: dict[str, Any], report: dict[str, Any]) -> str:
    """What was made, in one line, then a line for each licence."""
    groups = [(split, g) for split, by_source in manifest["content"].items() for g in by_source.values()]
    hours = {split: sum(g["hours"] for s, g in groups if s == split) for split in SPLITS}
    lines = [
        f"{out}: {sum(g['dialogues'] for _, g in groups)} dialogues, {sum(g['samples'] for _, g in groups)} samples, "
        f"{hours['train']:.2f} h train, {hours['heldout']:.2f} h held out, {len(manifest['shards'])} shards; "
        f"{len(report['rejected'])} rejected" + (f" (see {out / 'report.json'})" if report["rejected"] else "")
    ]
    for name, licence in sorted(manifest["licences"].items()):
        lines.append(f"licence {name}: {licence['dialogues']} dialogues, {licence['hours']:.2f} h")
    return "\n".join(lines)
