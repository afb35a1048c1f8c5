"""A folder of recordings: stereo files, or two mono files for each, with subtitles, JSON or text beside them.

Patterns say which file is what: "{name}" stands for the recording, "{side}" for a side's name. By default

    call.wav  +  call.srt | call.json | call.txt                      (speakers named in it)
    call.wav  +  call.left.srt, call.right.srt                        (or .json, .txt)
    call.left.wav, call.right.wav  +  any of these

The same reads audio without transcripts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.recordings.recording import AUDIO_SUFFIXES, Broken, Recording, from_two, named_file
from data_pipelines.recordings.transcripts import parse_json, read_text_file, read_transcript
from data_pipelines.recordings.utterances import Sides
from data_pipelines.records.schema import SIDES
from data_pipelines.sound.audio import Audio, read_audio
from model.errors import UserError

TEXT_SUFFIXES = (".json", ".srt", ".txt")


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """How files are named, from the folder on; "" stands for the defaults above. `sides` is what {side} can be."""

    audio: str = ""
    text: str = ""
    meta: str = ""
    sides: tuple[str, str] = SIDES

    def __post_init__(self) -> None:
        for option, pattern in (("audio", self.audio), ("text", self.text), ("meta", self.meta)):
            if pattern and "{name}" not in pattern:
                raise UserError(
                    f"--{option}-pattern {pattern}: must hold {{name}}, which tells recordings apart", code="bad-value"
                )


@dataclass(frozen=True, kw_only=True)
class FolderRecording:
    """One recording of a folder, a batch of its own: a stereo file, or one mono file for each side."""

    root: Path
    name: str
    audio: tuple[Path, ...]
    patterns: Patterns
    labels: tuple[str, str] | None
    has_text: bool = True

    @property
    def label(self) -> str:
        """The name of the recording."""
        return self.name

    def recordings(self) -> Iterator[Recording | Broken]:
        """Yields the one recording."""
        try:
            metadata = self._metadata()
            yield Recording(
                name=self.name,
                audio=self._audio,
                sides=self._sides if self.has_text else dict,
                attachment=lambda field: named_file(self.root, metadata, field),
                metadata=metadata,
            )
        except UserError as why:
            yield Broken(name=self.name, reason=str(why))

    def _audio(self) -> tuple[Audio, int]:
        if len(self.audio) == 1:
            return read_audio(self.audio[0])
        left, right = (read_audio(path) for path in self.audio)
        return from_two(left, right, self.name)

    def _sides(self) -> Sides:
        found: Sides = {}
        for side, label in zip(SIDES, self.patterns.sides, strict=True):
            if own := self._text_file(label):
                found |= read_transcript(own, self.labels, side)
        if found:
            return found
        common = self._text_file("")
        return read_transcript(common, self.labels) if common else {}

    def _text_file(self, label: str) -> Path | None:
        """Returns the transcript of one side, or with "" that of both; None if there is no such file."""
        if self.patterns.text:
            if ("{side}" in self.patterns.text) != bool(label):
                return None
            path = self.root / self.patterns.text.replace("{name}", self.name).replace("{side}", label)
            return path if path.is_file() else None
        stem = f"{self.name}.{label}" if label else self.name
        paths = [self.root / (stem + suffix) for suffix in TEXT_SUFFIXES]
        return next((path for path in paths if path.is_file()), None)

    def _metadata(self) -> dict[str, Any]:
        """Returns the keys of the JSON beside the recording."""
        path = self.root / self.patterns.meta.replace("{name}", self.name) if self.patterns.meta else None
        if path is None:
            path = self._text_file("")
            if path is None or path.suffix != ".json":
                return {}
        value = parse_json(read_text_file(path), str(path))
        return value if isinstance(value, dict) else {}


def find(
    root: Path, patterns: Patterns, labels: tuple[str, str] | None, *, has_text: bool = True
) -> list[FolderRecording]:
    """Returns the recordings below a folder, by name; without `has_text` no transcript is looked for.

    Raises: UserError if the folder is missing or holds no recording (code "not-found").
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of recordings", code="not-found")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            name, side = _name(path.relative_to(root).as_posix(), patterns)
            if name:
                found.setdefault(name, {}).setdefault(side, path)
    if not found:
        wanted = patterns.audio or f"*{{{','.join(AUDIO_SUFFIXES)}}}"
        raise UserError(
            f"{root}: holds no recording named {wanted}, give its folder or another --audio-pattern", code="not-found"
        )
    recordings = []
    for name, files in sorted(found.items()):
        pair = tuple(files[side] for side in patterns.sides if side in files)
        audio = (files[""],) if "" in files else pair
        recordings.append(
            FolderRecording(root=root, name=name, audio=audio, patterns=patterns, labels=labels, has_text=has_text)
        )
    return recordings


def _name(path: str, patterns: Patterns) -> tuple[str, str]:
    """Returns the recording and side of an audio file, with side "" for a stereo file; ("", "") without a match."""
    sides = "|".join(map(re.escape, patterns.sides))
    if patterns.audio:
        pattern = (
            re.escape(patterns.audio).replace(r"\{name\}", "(?P<name>.+)", 1).replace(r"\{side\}", f"(?P<side>{sides})")
        )
        found = re.fullmatch(pattern, path)
        return (found["name"], found.groupdict().get("side") or "") if found else ("", "")
    stem = path[: path.rindex(".")]
    found = re.fullmatch(rf"(?P<name>.+)\.(?P<side>{sides})", stem)
    return (found["name"], found["side"]) if found else (stem, "")
