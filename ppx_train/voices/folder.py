"""Folders of voices: `voices/` of a model's folder, or any other. A voice is in it under its file's name."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.files import save_once
from data_pipelines.sound.audio import CLIP_SUFFIXES
from model.errors import Code, UserError
from model.files import write_bytes
from ppx_train.voices.voice_file import SUFFIX, VOICE_ID, Codebooks, VoiceFile, check_codec, read_voice

VOICES = "voices"
"""The folder of voices inside a model's folder."""
PICKLE = ".pt"
"""The ending of the voices of the public PersonaPlex model."""


def voice_paths(folder: Path) -> dict[str, Path]:
    """The voice files of a folder by name, in order. Raises UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"voice folder {folder}: no such folder", code="not-found")
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}")) if path.is_file()}


def find_voice_file(folder: Path, name: str) -> Path:
    """The file of a voice. Raises UserError naming those that are there."""
    found = voice_paths(folder)
    if name not in found:
        path = next((path for path in unready(folder) if path.stem == name), None)
        if path is not None:
            raise not_ready(path)
        raise UserError(
            f"voice {name}: not in {folder}, which has {', '.join(found) or 'no voice'}", code="unknown-name"
        )
    return found[name]


def unready(folder: Path) -> list[Path]:
    """Clips and pickled voices in a folder that no voice file of the same name was made of."""
    made = voice_paths(folder)
    kinds = (PICKLE, *CLIP_SUFFIXES)
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds and path.stem not in made]


def refuse_unready(folder: Path) -> None:
    """Raises UserError with the command for a clip or pickle that would have to become a voice first."""
    for path in unready(folder):
        raise not_ready(path)


def not_ready(path: Path) -> UserError:
    """What is said of a clip or a pickle where a voice file is needed: the command that makes one."""
    if path.suffix.lower() == PICKLE:
        words = ["ppx-voice", "convert", str(path), "--model", "MODEL", "--out", str(path.with_suffix(SUFFIX))]
        return UserError(
            f"voice {path}: a pickle for one model; convert it once with `{shlex.join(words)}`, or add a clip of the "
            "speaker with `ppx-voice add`",
            code="unreadable",
        )
    words = ["ppx-voice", "add", str(path), "--model", "MODEL", "--voice-prompt-dir", str(path.parent)]
    return UserError(
        f"{path}: a clip, and no voice yet; add it once with `{shlex.join(words)} --consent '...'`, which checks it "
        "and keeps its terms",
        code="old-form",
    )


def save_voice(folder: Path, voice: VoiceFile, *, overwrite: bool = False) -> Path:
    """Writes FOLDER/ID.safetensors, whole or not at all, and returns its path; the same voice may be saved again.

    Raises: UserError if there is another voice of this id, without `overwrite`, or the folder cannot be written.
    """
    data = voice.to_bytes()
    path = folder / f"{voice.id}{SUFFIX}"
    if overwrite and path.is_file():
        write_bytes(path, data)
        return path
    try:
        save_once(path, data)
    except UserError as why:
        if why.code != "exists":
            raise
        raise UserError(
            f"{path}: another voice has this id; give --name another one, or --overwrite to replace it", code="exists"
        ) from why
    return path


def check_voices(folder: Path, codec: Codebooks, fingerprint: str) -> Iterator[tuple[Path, list[UserError]]]:
    """Yields (file, what is wrong with it) for each voice of a folder, and for what is no voice yet."""
    for path in voice_paths(folder).values():
        yield path, _faults(path, codec, fingerprint)
    for path in unready(folder):
        yield path, [not_ready(path)]


def _faults(path: Path, codec: Codebooks, fingerprint: str) -> list[UserError]:
    try:
        voice = read_voice(path, codec)
        check_codec(voice, fingerprint, path)
    except UserError as why:
        return [why]
    found: list[tuple[str, Code]] = []
    if not voice.is_sealed or voice.codec is None:
        found.append(("states no checksum or no codec; add or convert it again", "bad-record"))
    lacking = [name for name in ("consent", "licence") if getattr(voice, name) is None]
    found += [(f"states no {name}; add or convert it again with --{name}", "licence") for name in lacking]
    if not VOICE_ID.fullmatch(path.stem):
        found.append(("its name is no id of letters, digits, - and _, so that no server offers it", "bad-value"))
    elif voice.id != path.stem:
        found.append((f"its id is {voice.id}; give the file its name back, or add the voice again", "bad-record"))
    return [UserError(f"{path}: {fault}", code) for fault, code in found]
