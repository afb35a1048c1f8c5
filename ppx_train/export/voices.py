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
from data_pipelines.records.provenance import voice_rights
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import is_url, storage_at
from model.errors import UserError
from model.mimi.codec import Mimi
from model.text_safety import plain
from ppx_train.inference.loading import AUDIO_SUFFIXES, encode_voice

SHOWN_REFUSALS = 20
"""Voices that are left out and named in a line each; of more the number is printed."""


@dataclass(frozen=True, kw_only=True)
class ExportedVoice:
    """A voice that the model can be prompted with, and its terms.

    Shapes: codes_QP [8, P].
    consent: why the speaker may be imitated. sha256: of the clip, or of its codes.
    """

    name: str
    label: str
    licence: str
    consent: str
    sha256: str
    codes_QP: Tensor


def voices_of_shards(shards: Iterable[Path | str], limit: int) -> list[ExportedVoice]:
    """Returns a clip of each speaker in the held-out splits who may be imitated, at most `limit`, in order of name.

    These are engines' own voices and those cloned with stated consent, by the provenance of their dialogues. All
    others are left out, and a line that is printed for each says why.
    Raises: UserError if a shard folder is missing or broken, or there are voices and none may leave (code "licence").
    """
    voices: dict[str, ExportedVoice] = {}
    refusals: dict[str, str] = {}
    for folder in shards:
        if not is_url(folder) and not Path(folder).is_dir():
            raise UserError(
                f"{folder}: the run's shards are not there; give --data DIR, or --include-voices with a folder of "
                "clips or none",
                code="not-found",
            )
        storage = storage_at(folder)
        manifest = read_manifest(storage)
        if "heldout" not in manifest.content:
            continue
        reader = ShardReader(storage.inside("heldout"), manifest.index.get("heldout"))
        for i, row in enumerate(reader.rows):
            dialogue = reader.dialogue(i)
            speaker = dialogue.side(row.side).speaker
            name = _file_name(speaker)
            if name in voices or speaker in refusals:
                continue
            try:
                rights = voice_rights(dialogue.provenance, row.side, speaker)
            except UserError as why:
                refusals[speaker] = str(why)
                continue
            sample = reader.read(i)
            voices[name] = ExportedVoice(
                name=name,
                label=speaker,
                licence=rights.licence or dialogue.licence,
                consent=rights.consent,
                sha256=hashlib.sha256(sample.voice_codes_QP.numpy().tobytes()).hexdigest(),
                codes_QP=sample.voice_codes_QP,
            )
    lines = [plain(refusals[speaker]) for speaker in sorted(refusals)]
    if lines and not voices and limit:
        raise UserError(f"none of {len(lines)} held-out voices may leave with the model: {lines[0]}", code="licence")
    for line in lines[:SHOWN_REFUSALS]:
        print(f"not exported: {line}")
    if len(lines) > SHOWN_REFUSALS:
        print(f"not exported: {len(lines) - SHOWN_REFUSALS} more voices that no record gives the right to pass on")
    return [voices[name] for name in sorted(voices)][:limit]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms the voice of a clip may be used, as its owner states them. label: the speaker's name."""

    licence: str
    consent: str
    label: str | None = None


def read_terms(path: Path) -> Terms:
    """Reads NAME.json of a clip. Raises UserError if it is missing, or licence or consent are."""
    example = '{"licence": "CC-BY-4.0", "consent": "the speaker agreed in writing on 2026-01-31", "label": "Anna"}'
    if not path.is_file():
        raise UserError(f"{path}: missing, say on what terms the voice may be used, e.g. {example}", code="licence")
    try:
        terms = json.loads(path.read_text("utf-8"))
    except ValueError as why:
        raise UserError(f"{path}: not JSON ({why}), write e.g. {example}", code="unreadable") from why
    if not isinstance(terms, dict) or not all(str(terms.get(key, "")).strip() for key in ("licence", "consent")):
        raise UserError(f"{path}: needs licence and consent, e.g. {example}", code="licence")
    label = str(terms["label"]) if "label" in terms else None
    return Terms(licence=str(terms["licence"]), consent=str(terms["consent"]), label=label)


def voices_of_folder(folder: Path, codec: Mimi) -> list[ExportedVoice]:
    """Encodes every clip of a folder. NAME.wav needs NAME.json with licence and consent, which may have a label, too.

    Raises: UserError if there is no clip, or a clip is unusable or without its terms.
    """
    if not folder.is_dir():
        raise UserError(f"--include-voices {folder}: no such folder, give a folder of clips, or none", code="not-found")
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    if not clips:
        raise UserError(f"--include-voices {folder}: holds no clip ({', '.join(AUDIO_SUFFIXES)})", code="no-data")
    voices = []
    for clip in clips:
        terms = read_terms(clip.with_suffix(".json"))
        voices.append(
            ExportedVoice(
                name=_file_name(clip.stem),
                label=clip.stem if terms.label is None else terms.label,
                licence=terms.licence,
                consent=terms.consent,
                sha256=sha256_file(clip),
                codes_QP=encode_voice(clip, codec).cpu(),
            )
        )
    names = [voice.name for voice in voices]
    if len(set(names)) < len(names):
        raise UserError(
            f"--include-voices {folder}: two clips have the same name up to signs, rename one", code="bad-combination"
        )
    return voices


def write_voices(folder: Path, voices: list[ExportedVoice]) -> None:
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
    """The bytes of a safetensors file with the keys of its header in order, since safetensors shuffles metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _file_name(text: str) -> str:
    """The text with letters, digits, - and _ only, which are safe in a file name and in a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "voice"
