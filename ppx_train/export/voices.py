"""Voices of an exported model: codes of short clips with their terms of use, one safetensors file each."""

# Shapes: P prompt frames, Q codebooks

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from data_pipelines.files import sha256_file
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import is_url, storage_at
from model.errors import UserError
from model.mimi.codec import Mimi
from ppx_train.inference.loading import AUDIO_SUFFIXES, encode_voice

RECORDED_SOURCES = ("fisher",)
"""Real people who agreed to be recorded, not to lend their voice to a machine: never exported as a voice."""


@dataclass(kw_only=True)
class Voice:
    """codes_QP: [8, P]. `consent` says why the speaker may be imitated; `sha256` is that of the clip or its codes."""

    name: str
    label: str
    licence: str
    consent: str
    sha256: str
    codes_QP: Tensor


def voices_of_shards(shards: Iterable[Path | str], limit: int) -> list[Voice]:
    """The first clip of each synthetic speaker in the held-out splits, at most `limit`, in order of name.

    Raises: UserError if a shard folder is missing or broken.
    """
    voices: dict[str, Voice] = {}
    for folder in shards:
        if not is_url(folder) and not Path(folder).is_dir():
            raise UserError(
                f"{folder}: the run's shards are not there: give data=DIR, or voices=DIR of clips, or voices=none"
            )
        storage = storage_at(folder)
        if "heldout" not in read_manifest(storage)["content"]:
            continue
        reader = ShardReader(storage.inside("heldout"))
        for i, row in enumerate(reader.rows):
            if row.source in RECORDED_SOURCES:
                continue
            dialogue = reader.dialogue(i)
            speaker = dialogue.side(row.side).speaker
            name = _file_name(speaker)
            if name in voices:
                continue
            sample = reader.read(i)
            voices[name] = Voice(
                name=name,
                label=speaker,
                licence=dialogue.licence,
                consent="synthetic voice of a text-to-speech engine, no natural speaker",
                sha256=hashlib.sha256(sample.voice_codes_QP.numpy().tobytes()).hexdigest(),
                codes_QP=sample.voice_codes_QP,
            )
    return [voices[name] for name in sorted(voices)][:limit]


def voices_of_folder(folder: Path, codec: Mimi) -> list[Voice]:
    """Encodes every clip of a folder; NAME.wav needs NAME.json with licence and consent, and may have a label.

    Raises: UserError if there is no clip, or a clip is unusable or without its terms.
    """
    if not folder.is_dir():
        raise UserError(f"voices={folder}: no such folder: give a folder of clips, or voices=none")
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    if not clips:
        raise UserError(f"voices={folder}: holds no clip ({', '.join(AUDIO_SUFFIXES)})")
    voices = []
    for clip in clips:
        terms = _terms(clip)
        voices.append(
            Voice(
                name=_file_name(clip.stem),
                label=terms.get("label", clip.stem),
                licence=terms["licence"],
                consent=terms["consent"],
                sha256=sha256_file(clip),
                codes_QP=encode_voice(clip, codec).cpu(),
            )
        )
    names = [voice.name for voice in voices]
    if len(set(names)) < len(names):
        raise UserError(f"voices={folder}: two clips have the same name up to case and signs: rename one")
    return voices


def write_voices(folder: Path, voices: list[Voice]) -> None:
    """Writes FOLDER/NAME.safetensors (int32 `codes`, the terms as metadata) and FOLDER/voices.json."""
    if not voices:
        return
    folder.mkdir()
    facts = []
    for voice in voices:
        values = {key: value for key, value in asdict(voice).items() if key != "codes_QP"}
        codes_QP = voice.codes_QP.to(torch.int32).contiguous()
        data = _sorted_header(save({"codes": codes_QP}, metadata=values))
        (folder / f"{voice.name}.safetensors").write_bytes(data)
        facts.append(values | {"file": f"{voice.name}.safetensors", "frames": codes_QP.shape[1]})
    (folder / "voices.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _sorted_header(data: bytes) -> bytes:
    """The bytes of a safetensors file with the keys of its header in order: safetensors shuffles metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _terms(clip: Path) -> dict[str, str]:
    path = clip.with_suffix(".json")
    example = '{"licence": "CC-BY-4.0", "consent": "the speaker agreed in writing on 2026-01-31", "label": "Anna"}'
    if not path.is_file():
        raise UserError(f"{path}: missing: say on what terms the voice may be used, e.g. {example}")
    try:
        terms = json.loads(path.read_text("utf-8"))
    except ValueError as why:
        raise UserError(f"{path}: not JSON ({why}): write e.g. {example}") from why
    if not isinstance(terms, dict) or not all(str(terms.get(key, "")).strip() for key in ("licence", "consent")):
        raise UserError(f"{path}: needs licence and consent, e.g. {example}")
    return {key: str(value) for key, value in terms.items()}


def _file_name(text: str) -> str:
    """Letters, digits, - and _: safe as a file name and in a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "voice"
