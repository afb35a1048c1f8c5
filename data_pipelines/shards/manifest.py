"""SHARDS/manifest.json: what a folder of shards holds and what made it.

It is written last, so that a folder without it is known to be incomplete.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from data_pipelines.files import write_json
from data_pipelines.records.schema import SOURCE_PATTERN, SPLITS
from data_pipelines.records.typed import record
from data_pipelines.shards.pack import FORMAT, DialogueSummary, ShardFile
from data_pipelines.shards.rows import HASH_PATTERN, TAR_PATTERN
from data_pipelines.shards.storage import Folder, Storage, is_url, storage_at
from model.errors import UserError
from model.files import check_link

NAME = "manifest.json"
PACKAGES = ("torch", "numpy", "soundfile", "soxr", "pyloudnorm")
"""Packages whose versions may change codes or voice prompts."""


@dataclass(kw_only=True, frozen=True)
class CodecFacts:
    """The codec that made the codes."""

    fingerprint: str
    """Identifies its weights."""
    card: int
    """How many codes a codebook has."""
    num_codebooks: int
    silence_codes: tuple[int, ...]
    """Of a frame of silence, one for each codebook."""
    sine_codes: tuple[int, ...]
    """Of a frame of a sine, one for each codebook."""


@dataclass(kw_only=True, frozen=True)
class SourceCounts:
    """What one split holds of one source."""

    dialogues: int
    samples: int
    hours: float
    agent_words: int


@dataclass(kw_only=True, frozen=True)
class LicenceCounts:
    """What all splits hold under one licence."""

    dialogues: int
    hours: float


@dataclass(kw_only=True, frozen=True)
class VoiceCounts:
    """How many sides of one split each voice speaks, by the names of voices."""

    agent: dict[str, int]
    user: dict[str, int]


@dataclass(kw_only=True, frozen=True)
class Manifest:
    """The content of manifest.json."""

    format: int
    codec: CodecFacts
    content: dict[str, dict[str, SourceCounts]]
    """By split, then by source."""
    licences: dict[str, LicenceCounts]
    voices: dict[str, VoiceCounts]
    """By split."""
    engines: dict[str, int]
    """How many dialogues each engine had a part in."""
    packages: dict[str, str]
    """Versions of PACKAGES."""
    gates: dict[str, int]
    """How many dialogues passed gates with these limits, which are the key, as JSON."""
    shards: dict[str, ShardFile]
    """By path, such as "train/service-00000.tar"."""
    inputs: str
    """Identifies the dialogues, the codec and the size of the tars."""
    index: dict[str, str] = field(default_factory=dict)
    """Hex SHA-256 of the index of each split; manifests of early versions have none."""
    recorded: int = 0
    """How many dialogues are of recorded people; older manifests do not say it."""
    masked: int = 0
    """In how many dialogues personal numbers and names were masked."""


def make_manifest(
    dialogues: Sequence[DialogueSummary],
    codec: CodecFacts,
    shards: Mapping[str, ShardFile],
    inputs: str,
    index: Mapping[str, str],
) -> Manifest:
    """Sums up the dialogues of all splits."""
    content: dict[str, dict[str, dict[str, float]]] = {}
    licences: dict[str, dict[str, float]] = {}
    voices: dict[str, dict[str, Counter[str]]] = {}
    for one in dialogues:
        hours = one.seconds / 3600
        parts = {"dialogues": 1, "samples": len(one.agent_sides), "hours": hours, "agent_words": one.agent_words}
        _add(content.setdefault(one.split, {}).setdefault(one.source, {}), parts)
        _add(licences.setdefault(one.licence, {}), {"dialogues": 1, "hours": hours})
        heard = voices.setdefault(one.split, {"agent": Counter(), "user": Counter()})
        heard["agent"].update(one.agent_voices)
        heard["user"].update(one.user_voices)
    return Manifest(
        format=FORMAT,
        codec=codec,
        content={
            split: {source: SourceCounts(**counts) for source, counts in by_source.items()}  # type: ignore[arg-type]
            for split, by_source in content.items()
        },
        licences={name: LicenceCounts(**counts) for name, counts in licences.items()},  # type: ignore[arg-type]
        voices={
            split: VoiceCounts(agent=dict(heard["agent"]), user=dict(heard["user"])) for split, heard in voices.items()
        },
        engines=dict(Counter(engine for one in dialogues for engine in one.engines)),
        packages={name: version(name) for name in PACKAGES},
        gates=dict(Counter(one.gate_limits for one in dialogues if one.gate_limits)),
        shards=dict(shards),
        inputs=inputs,
        index=dict(index),
        recorded=sum(one.is_recorded for one in dialogues),
        masked=sum(one.is_masked for one in dialogues),
    )


def _add(total: dict[str, float], parts: dict[str, float]) -> None:
    for name, value in parts.items():
        total[name] = total.get(name, 0) + value


def read_manifest(shards: Path | str | Storage) -> Manifest:
    """Reads SHARDS/manifest.json, by path or URL. Raises UserError if it is missing, broken or of another format."""
    storage = storage_at(shards) if isinstance(shards, (Path, str)) else shards
    path = f"{storage}/{NAME}"
    if not storage.is_remote and not Path(str(storage)).is_dir():
        raise UserError(f"{storage} is no folder: make it with `ppx-data shard --out {storage}`", code="not-found")
    data = storage.whole(NAME)
    if data is None:
        above = Path(str(storage)).absolute().parent
        if storage.is_remote:
            raise UserError(f"{path} is not there: check the URL, or copy it after the shards", code="not-found")
        if (above / NAME).is_file():
            raise UserError(f"{storage} is one split of shards: give {above}", code="bad-shards")
        raise UserError(
            f"{path} is missing, so the shards are incomplete: run the same `ppx-data shard` again", code="bad-shards"
        )
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as why:
        raise UserError(
            f"{path} is not JSON ({why}): make the shards again with `ppx-data shard`", code="unreadable"
        ) from why
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} is a manifest of format {found!r}, not {FORMAT}: make the shards again with `ppx-data shard`",
            code="bad-shards",
        )
    try:
        manifest = record(Manifest, data)
        _check(manifest)
    except ValueError as why:
        raise UserError(
            f"{path} is damaged ({' '.join(str(why).split())}): make the shards again with `ppx-data shard`",
            code="bad-shards",
        ) from why
    if isinstance(storage, Folder):
        for split in manifest.content:
            check_link(storage.path, split)
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError that names the first split, source, tar, hash or code that cannot be one."""
    for split in (*manifest.content, *manifest.voices, *manifest.index):
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split")
    for source in (source for by_source in manifest.content.values() for source in by_source):
        if not SOURCE_PATTERN.fullmatch(source):
            raise ValueError(f"{source!r} is no name of a source")
    for name, shard in manifest.shards.items():
        split, _, tar = name.partition("/")
        if split not in SPLITS or not TAR_PATTERN.fullmatch(tar):
            raise ValueError(f"{name!r} is no name of a tar")
        if shard.bytes < 1:
            raise ValueError(f"{name} has {shard.bytes} bytes")
    for found in (*manifest.index.values(), *(shard.sha256 for shard in manifest.shards.values())):
        if not HASH_PATTERN.fullmatch(found):
            raise ValueError(f"{found!r} is no SHA-256")
    codec = manifest.codec
    for name, codes in (("silence_codes", codec.silence_codes), ("sine_codes", codec.sine_codes)):
        if len(codes) != codec.num_codebooks or not all(0 <= code < codec.card for code in codes):
            raise ValueError(f"codec.{name} are {list(codes)}, not {codec.num_codebooks} of 0 to {codec.card - 1}")


def stated_index(split: Path | str) -> str | None:
    """The hash that the manifest in the folder above SHARDS/SPLIT states for its index.

    None if a split lies alone, is read by URL, or its manifest is of an early version, which states none.
    Raises: UserError as read_manifest, if there is a manifest that cannot be read.
    """
    above = Path(split).absolute().parent
    if is_url(split) or not (above / NAME).is_file():
        return None
    return read_manifest(above).index.get(Path(split).name)


def note_index(split_dir: Path, sha256: str) -> None:
    """Notes that SHARDS/SPLIT has an index of this hash, if the folder above has a manifest that holds the split.

    Raises: UserError as read_manifest, if there is a manifest that cannot be read.
    """
    shards, split = split_dir.absolute().parent, split_dir.absolute().name
    if not (shards / NAME).is_file():
        return
    manifest = read_manifest(shards)
    if split in manifest.content and manifest.index.get(split) != sha256:
        write_json(shards / NAME, asdict(replace(manifest, index={**manifest.index, split: sha256})))


def masking_sentence(recorded: int, masked: int) -> str:
    """What a card says about personal data in its dialogues, `recorded` of which are of real people."""
    if masked:
        return (
            f"Personal numbers and names were masked in {masked:,} dialogues ({recorded:,} are recorded calls), by "
            "rules that do not find all of them."
        )
    if recorded:
        return f"Personal numbers and names were not masked: {recorded:,} dialogues are recorded calls."
    return "No dialogue is marked as a recorded call, and none was masked."


def summary(out: Path, manifest: Manifest, num_rejected: int) -> str:
    """What was made, in one line, then a line for each licence."""
    groups = [(split, counts) for split, by_source in manifest.content.items() for counts in by_source.values()]
    hours = {split: sum(counts.hours for s, counts in groups if s == split) for split in SPLITS}
    lines = [
        f"{out}: {sum(g.dialogues for _, g in groups)} dialogues, {sum(g.samples for _, g in groups)} samples, "
        f"{hours['train']:.2f} h train, {hours['heldout']:.2f} h held out, {len(manifest.shards)} shards; "
        f"{num_rejected} rejected" + (f" (see {out / 'report.json'})" if num_rejected else "")
    ]
    for name, licence in sorted(manifest.licences.items()):
        lines.append(f"licence {name}: {licence.dialogues} dialogues, {licence.hours:.2f} h")
    return "\n".join(lines)
