"""The voices that leave with a model: those of its held-out dialogues, or of a folder, each with its terms of use."""

# Shapes: P prompt frames, Q codebooks

import json
import re
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.records.provenance import voice_rights
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import is_url, storage_at
from model.errors import UserError
from model.mimi.codec import Mimi
from model.text_safety import plain
from ppx_train.voices.folder import check_voices, save_voice, voice_paths
from ppx_train.voices.voice_file import VoiceFile, read_voice

SHOWN_REFUSALS = 20
"""Voices that are left out and named in a line each; of more the number is printed."""


def voices_of_shards(shards: Iterable[Path | str], limit: int, fingerprint: str) -> list[VoiceFile]:
    """Returns a clip of each speaker in the held-out splits who may be imitated, at most `limit`, in order of name.

    These are engines' own voices and those cloned with stated consent, by the provenance of their dialogues. All
    others are left out, and a line that is printed for each says why.
    fingerprint: of the codec that the model is exported with.
    Raises: UserError if a shard folder is missing, broken or of another codec ("bad-combination"), or there are voices
    and none may leave ("licence").
    """
    voices: dict[str, VoiceFile] = {}
    refusals: dict[str, str] = {}
    for folder in shards:
        if not is_url(folder) and not Path(folder).is_dir():
            raise UserError(
                f"{folder}: the run's shards are not there; give --data DIR, or --include-voices with a folder of "
                "voices or none",
                code="not-found",
            )
        storage = storage_at(folder)
        manifest = read_manifest(storage)
        if "heldout" not in manifest.content or not limit:
            continue
        if manifest.codec.fingerprint != fingerprint:
            raise UserError(
                f"{folder}: the voices in it are codes of another codec than the model's, give --include-voices a "
                "folder of voices, or none",
                code="bad-combination",
            )
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
            voices[name] = VoiceFile(
                id=name,
                label=speaker,
                licence=rights.licence or dialogue.licence,
                consent=rights.consent,
                codec=fingerprint,
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


def voices_of_folder(folder: Path, codec: Mimi) -> list[VoiceFile]:
    """Reads all voices of a folder that `ppx-voice add` or `convert` filled.

    Raises: UserError if the folder holds no voice, or with the first fault that `ppx-voice check` finds.
    """
    if not folder.is_dir():
        raise UserError(
            f"--include-voices {folder}: no such folder, give a folder of voices, or none", code="not-found"
        )
    for _, faults in check_voices(folder, codec, codec.fingerprint()):
        if faults:
            raise faults[0]
    voices = [read_voice(path, codec) for path in voice_paths(folder).values()]
    if not voices:
        raise UserError(f"--include-voices {folder}: holds no voice; `ppx-voice add` makes them", code="no-data")
    return voices


def write_voices(folder: Path, voices: list[VoiceFile]) -> None:
    """Writes FOLDER/ID.safetensors of each voice, and what they state as a list to FOLDER/voices.json."""
    if not voices:
        return
    facts = []
    for voice in voices:
        path = save_voice(folder, voice)
        facts.append(voice.texts() | {"checksum": voice.checksum(), "file": path.name, "seconds": voice.seconds})
    (folder / "voices.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _file_name(text: str) -> str:
    """The text with letters, digits, - and _ only, which are safe in a file name and in a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:64] or "voice"
