"""`ppx-data to-hf`: shards as a repository that Hugging Face `datasets` loads, on disk or on the hub.

    OUT/README.md                                    the data set's card: configurations, licence, sizes; written last
    OUT/data/SOURCE/{train,heldout}-00000-of-N.parquet

A row is a dialogue: `audio` is the FLAC as it is in the shards (left, right, 24 kHz), `left` and `right` hold the
sides with their words, `left_voice` and `right_voice` the voice prompts of those that may be the agent, and `record`
all of it as JSON. Audio columns are declared undecoded, so that loading needs no decoder; cast them to Audio() for
samples.
"""

import argparse
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder, sha256_file
from data_pipelines.publish.cards import card
from data_pipelines.publish.licences import check_public
from data_pipelines.records.schema import SIDES, SPLITS, Dialogue
from data_pipelines.shards.index import BadSample, ShardReader, open_once
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.pack import cut_into_shards
from data_pipelines.shards.rows import PARTS
from model.errors import UserError
from model.extras import require
from model.files import inside, write_bytes
from model.weights.hub_push import Target, check_push, push

README = "README.md"
ROWS_IN_GROUP = 100
"""Rows of a parquet row group, which is the least that a stream reads at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data to-hf`."""
    parser.add_argument("shards", metavar="SHARDS", help="folder or URL of shards, made by `ppx-data shard`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make, or to resume")
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="also upload it to this dataset repository, which is private"
    )
    parser.add_argument("--public", action="store_true", help="with --push: everybody may see the repository")
    parser.add_argument("--name", help="title of the card (default: the name of the folder)")
    parser.add_argument(
        "--allow-licence", nargs="+", default=[], metavar="LICENCE",
        help="export sources under this licence, which restricts publication, because you have the right to",
    )  # fmt: skip
    parser.add_argument("--file-mb", type=int, default=256, help="largest size of a parquet file in MB")
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data to-hf`."""
    if args.public and not args.push:
        raise UserError("--public has an effect with --push only: add --push, or leave it out", code="bad-combination")
    if not 1 <= args.file_mb <= 1000:
        raise UserError(f"--file-mb {args.file_mb}: give 1 to 1000", code="bad-value")
    check_public(read_manifest(args.shards).licences, args.allow_licence)
    target = None
    if args.push:
        target = Target(
            name=args.push, asked=f"--push {args.push}", public=args.public, public_flag="--public", kind="dataset"
        )
        is_whole = (args.out / README).is_file()
        check_push(target, args.out if is_whole else None, _sums(args.out) if is_whole else {})
    count = export(args.shards, args.out, executor_of(args), file_mb=args.file_mb, title=args.name or args.out.name)
    print(f"{args.out}: {count} dialogues; load it with datasets.load_dataset({str(args.out)!r})")
    if target is not None:
        print(f"uploaded: {push(args.out, target, _sums(args.out))}")


@dataclass(frozen=True, kw_only=True)
class ParquetFile:
    """One parquet file to write, and the rows of its split's shards that it holds."""

    path: str
    split: str
    rows: tuple[int, ...]


def export(shards: str, out: Path, executor: Executor, *, file_mb: int, title: str) -> int:
    """Writes the repository and returns how many dialogues it holds. Licences are not checked here.

    Raises: UserError for shards that are incomplete or damaged, an `out` that holds something else, or a missing
    package.
    """
    require("datasets", extra="datasets")
    shards = shards.rstrip("/")
    manifest = read_manifest(shards)
    splits = [split for split in SPLITS if split in manifest.content]
    readers = {split: ShardReader(f"{shards}/{split}", manifest.index.get(split)) for split in splits}
    settings = {"shards": manifest.inputs, "file_mb": file_mb, "title": title}
    claim_folder(out, ".to-hf.json", settings, "to-hf")
    plan = [file for reader in readers.values() for file in _plan(reader, file_mb * 1_000_000)]
    todo = [file for file in plan if not inside(out, file.path).is_file()]
    hashes = {split: reader.sha256 for split, reader in readers.items()}
    work = partial(_write, shards=shards, hashes=hashes, licences=frozenset(manifest.licences), out=out)
    for _ in tqdm(executor.run(work, todo), total=len(todo), desc="to-hf", unit="file", disable=None):
        pass
    sizes = {file.path: (out / file.path).stat().st_size for file in plan}
    rows = {file.path: len(file.rows) for file in plan}
    write_bytes(out / README, card(title, manifest, rows, sizes).encode())
    return sum(rows.values())


def _plan(reader: ShardReader, limit: int) -> list[ParquetFile]:
    """The files of each source, of about `limit` bytes each at most; a call between equals is one row."""
    sources: dict[str, list[int]] = {}
    seen: set[str] = set()
    for n, row in enumerate(reader.rows):
        if row.id not in seen:
            sources.setdefault(row.source, []).append(n)
        seen.add(row.id)
    files = []
    for source, rows in sorted(sources.items()):
        places = reader.index.columns["places"]
        sizes = [int(sum(places[n][2 * PARTS.index(part) + 1] for part in ("audio", "clip", "meta"))) for n in rows]
        cuts = cut_into_shards(sizes, limit)
        for n, cut in enumerate(cuts):
            path = f"data/{source}/{reader.name}-{n:05d}-of-{len(cuts):05d}.parquet"
            files.append(ParquetFile(path=path, split=reader.name, rows=tuple(rows[i] for i in cut)))
    return files


def _write(file: ParquetFile, shards: str, hashes: Mapping[str, str], licences: Collection[str], out: Path) -> str:
    """Writes one parquet file, whole or not at all; returns its path. Only dialogues under `licences` are written."""
    schema = features().arrow_schema  # it carries what `datasets` needs to know about the columns
    import pyarrow
    from pyarrow import parquet

    reader = open_once(f"{shards}/{file.split}", hashes[file.split])
    try:
        rows = [_row(reader, n, licences) for n in file.rows]
    except BadSample as why:
        raise UserError(str(why), code=why.code) from why
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), data, row_group_size=ROWS_IN_GROUP)
    path = inside(out, file.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data.getvalue())
    return file.path


def features() -> Any:
    """The columns as `datasets.Features`. Raises UserError if `datasets` is not installed."""
    d = require("datasets", extra="datasets")
    text, number, sound = d.Value("string"), d.Value("float64"), d.Audio(decode=False)
    side = {
        "speaker": text,
        "is_agent": d.Value("bool"),
        "role_prompt": text,
        "prompt_level": text,
        "words": d.List({"text": text, "start": number, "end": number}),
    }
    return d.Features(
        {
            **dict.fromkeys(("id", "source", "scenario", "licence"), text),
            "seconds": number,
            "audio": sound,
            "left": side,
            "right": side,
            "left_voice": sound,
            "right_voice": sound,
            "record": text,
        }
    )


def _row(reader: ShardReader, n: int, licences: Collection[str]) -> dict[str, Any]:
    dialogue = reader.dialogue(n)
    if dialogue.licence not in licences:
        raise BadSample(dialogue.id, f"its licence {dialogue.licence!r} is not in the manifest")
    row = {name: getattr(dialogue, name) for name in ("id", "source", "scenario", "licence", "seconds")}
    row |= {side: _side(dialogue, side) for side in SIDES}
    row |= {f"{side}_voice": None for side in SIDES}
    row["audio"] = {"bytes": reader.stored(n, "audio"), "path": f"{dialogue.id}.flac"}
    for m in _samples(reader, n):
        side = reader.rows[m].side
        row[f"{side}_voice"] = {"bytes": reader.stored(m, "clip"), "path": f"{dialogue.id}.{side}.flac"}
    row["record"] = dialogue.to_json()
    return row


def _samples(reader: ShardReader, n: int) -> Sequence[int]:
    """The rows of a dialogue, which are one for each agent side and follow each other."""
    return [m for m in (n, n + 1) if m < len(reader.rows) and reader.rows[m].id == reader.rows[n].id]


def _side(dialogue: Dialogue, side: str) -> dict[str, Any]:
    return asdict(dialogue.side(side)) | {"words": [asdict(word) for word in dialogue.side(side).words]}


def _sums(out: Path) -> dict[str, str]:
    """The sha256 of each file that is uploaded, by path."""
    files = [out / README, *sorted(out.glob("data/*/*.parquet"))]
    return {file.relative_to(out).as_posix(): sha256_file(file) for file in files if file.is_file()}
