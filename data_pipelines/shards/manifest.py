"""SHARDS/manifest.json: what a folder of shards holds and what made it. Written last, so that no half folder passes."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipelines.records.schema import SPLITS
from data_pipelines.records.typed import record
from data_pipelines.shards.pack import FORMAT, Item
from data_pipelines.shards.storage import Storage, storage_at
from model.errors import UserError

NAME = "manifest.json"
PACKAGES = ("torch", "numpy", "soundfile", "soxr", "pyloudnorm")
"""Whose versions may change codes or voice prompts."""


@dataclass(kw_only=True)
class _Codec:
    fingerprint: str
    card: int
    num_codebooks: int
    silence_codes: tuple[int, ...]
    sine_codes: tuple[int, ...]


@dataclass(kw_only=True)
class _Source:
    dialogues: int
    samples: int
    hours: float
    agent_words: int


@dataclass(kw_only=True)
class _Shard:
    bytes: int
    sha256: str
    dialogues: int


@dataclass(kw_only=True)
class _Manifest:
    """The shape of a manifest: counts by name, content and voices first by split."""

    format: int
    codec: _Codec
    content: dict[str, dict[str, _Source]]
    licences: dict[str, dict[str, float]]
    voices: dict[str, dict[str, dict[str, int]]]
    engines: dict[str, int]
    packages: dict[str, str]
    gates: dict[str, int]
    shards: dict[str, _Shard]
    inputs: str


def make_manifest(
    items: Sequence[Item], codec: dict[str, Any], shards: dict[str, dict[str, Any]], inputs: str
) -> dict[str, Any]:
    """Hours and counts for each split and source, licences, voices, engines, gates, codec and tars, as plain JSON."""
    content: dict[str, dict[str, dict[str, float]]] = {}
    licences: dict[str, dict[str, float]] = {}
    voices: dict[str, dict[str, Counter[str]]] = {}
    for item in items:
        hours = item.seconds / 3600
        parts = {"dialogues": 1, "samples": len(item.agent_sides), "hours": hours, "agent_words": item.agent_words}
        _add(content.setdefault(item.split, {}).setdefault(item.source, {}), parts)
        _add(licences.setdefault(item.licence, {}), {"dialogues": 1, "hours": hours})
        heard = voices.setdefault(item.split, {"agent": Counter(), "user": Counter()})
        heard["agent"].update(item.agent_voices)
        heard["user"].update(item.user_voices)
    return {
        "format": FORMAT,
        "codec": codec,
        "content": content,
        "licences": licences,
        "voices": voices,
        "engines": dict(Counter(engine for item in items for engine in item.engines)),
        "packages": {name: version(name) for name in PACKAGES},
        "gates": dict(Counter(item.gate_limits for item in items if item.gate_limits)),
        "shards": shards,
        "inputs": inputs,
    }


def _add(total: dict[str, float], parts: dict[str, float]) -> None:
    for name, value in parts.items():
        total[name] = total.get(name, 0) + value


def read_manifest(shards: Path | str | Storage) -> dict[str, Any]:
    """Reads SHARDS/manifest.json, by path or URL. Raises UserError if it is missing, broken or of another format."""
    storage = storage_at(shards) if isinstance(shards, (Path, str)) else shards
    path = f"{storage}/{NAME}"
    if not storage.is_remote and not Path(str(storage)).is_dir():
        raise UserError(f"{storage}: no such folder: make it with `ppx-data shard --out {storage}`")
    data = storage.whole(NAME)
    if data is None:
        above = Path(str(storage)).absolute().parent
        if storage.is_remote:
            raise UserError(f"{path}: not there: check the URL, or copy it after the shards")
        if (above / NAME).is_file():
            raise UserError(f"{storage}: is one split of shards: give {above}")
        raise UserError(f"{path}: missing, so the shards are incomplete: run the same `ppx-data shard` again")
    try:
        manifest = json.loads(data)
    except ValueError as why:
        raise UserError(f"{path}: not JSON ({why}): make the shards again with `ppx-data shard`") from why
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise UserError(
            f"{path}: not a manifest of format {FORMAT} but of {found!r}: make the shards again with `ppx-data shard`"
        )
    try:
        record(_Manifest, data)
    except ValueError as why:
        raise UserError(f"{path}: damaged, {why}: make the shards again with `ppx-data shard`") from why
    return manifest


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
