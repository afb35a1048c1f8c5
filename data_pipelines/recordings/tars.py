"""Reads tars of the webdataset kind: members of one recording follow each other and share their name up to a dot.

call_1.flac, call_1.json            stereo, with a transcript or only facts in the JSON
call_2.left.flac, call_2.right.flac, call_2.json
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.recordings.kept import kept_terms
from data_pipelines.recordings.recording import AUDIO_SUFFIXES, Broken, Recording, from_two
from data_pipelines.recordings.transcripts import decode, parse_json, read_json, read_plain, read_srt
from data_pipelines.recordings.utterances import Sides
from data_pipelines.records.schema import SIDES
from data_pipelines.sound.audio import Audio, read_audio
from model.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
Members = dict[str, bytes]
META = "meta.json"
"""The member with the dialogue's record in the tars that `ppx-data shard` writes."""
MAX_BYTES = 2 << 30
"""The largest recording: its members are held in memory. 2 GiB are 3 h of two channels at 48 kHz and 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Tar:
    """One tar, read from its beginning to its end. `audio` and `text` name members: "flac", or one for each side."""

    root: Path
    path: Path
    labels: tuple[str, str] | None
    audio: Mapping[str, str]
    text: Mapping[str, str]

    @property
    def label(self) -> str:
        """The name of the tar."""
        return self.path.name

    def recordings(self) -> Iterator[Recording | Broken]:
        """Yields the recordings in the order of their members, and one that is broken where the tar is cut off."""
        shard = self.path.relative_to(self.root).as_posix()
        seen = set()
        try:
            for key, members, size in _samples(self.path):
                name = f"{shard}/{key}"
                if key.startswith("/") or ".." in PurePosixPath(key).parts:
                    yield Broken(name=name, reason="its name leads out of the tar: only plain names are read")
                elif key in seen:
                    yield Broken(
                        name=f"{name} (again)", reason="its members do not follow each other, or it is there twice"
                    )
                elif size > MAX_BYTES:
                    yield Broken(
                        name=name,
                        reason=f"its members hold {size / 2**30:.1f} GiB, {MAX_BYTES / 2**30:g} are read: cut it",
                    )
                else:
                    try:
                        yield self._recording(name, members)
                    except UserError as why:
                        yield Broken(name=name, reason=str(why))
                seen.add(key)
        except (tarfile.TarError, OSError, EOFError) as why:
            yield Broken(
                name=f"{shard} after {len(seen)}", reason=f"the tar is broken from here on ({why}): copy it again"
            )

    def _recording(self, name: str, members: Members) -> Recording:
        terms = kept_terms(members.get(META, b"").decode("utf-8", "replace"))
        return Recording(
            name=name,
            audio=lambda: self._audio(name, members),
            sides=lambda: self._sides(members),
            attachment=lambda member: _member(members, member),
            metadata=_metadata(members),
            licence=terms.licence,
            split=terms.split,
            masked=terms.masked,
        )

    def _audio(self, name: str, members: Members) -> tuple[Audio, int]:
        if set(self.audio) == set(SIDES):
            left, right = (read_audio(_member(members, self.audio[side]), self.audio[side]) for side in SIDES)
            return from_two(left, right, name)
        if "" in self.audio:
            return read_audio(_member(members, self.audio[""]), self.audio[""])
        found = [member for member in members if f".{member.rpartition('.')[2].lower()}" in AUDIO_SUFFIXES]
        pair = [next((m for m in found if m.rpartition(".")[0] == side), None) for side in SIDES]
        if pair[0] and pair[1]:
            left, right = (read_audio(members[str(member)], str(member)) for member in pair)
            return from_two(left, right, name)
        whole = [member for member in found if "." not in member]
        if len(whole) != 1:
            raise UserError(
                f"{len(whole)} audio members among {', '.join(members)}: name one with --audio-field", code="bad-record"
            )
        return read_audio(members[whole[0]], whole[0])

    def _sides(self, members: Members) -> Sides:
        if set(self.text) == set(SIDES):
            return {k: v for side in SIDES for k, v in _parse(members, self.text[side], self.labels, side).items()}
        name = self.text.get("") or next((n for n in ("json", "srt", "txt") if n in members), "")
        return _parse(members, name, self.labels, "") if name else {}


def find(path: Path, labels: tuple[str, str] | None, audio: Mapping[str, str], text: Mapping[str, str]) -> list[Tar]:
    """Returns the tars of a folder, or the one at a path. Raises UserError if nothing is found (code "not-found")."""
    if path.is_dir():
        tars = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
        root = path
    else:
        tars, root = [path] if path.is_file() else [], path.parent
    if not tars:
        raise UserError(f"{path}: no such tar, nor a folder that holds one ({', '.join(SUFFIXES)})", code="not-found")
    return [Tar(root=root, path=file, labels=labels, audio=audio, text=text) for file in tars]


def _samples(path: Path) -> Iterator[tuple[str, Members, int]]:
    """Yields one recording after the other: its key, its members by the rest of their names, and their size in bytes.

    A recording of more than MAX_BYTES comes without the members that are beyond: they are not read.
    Raises: tarfile.TarError and OSError where the tar is damaged.
    """
    key: str | None = None
    members: Members = {}
    size = 0
    with tarfile.open(path, "r|*") as tar:
        for entry in tar:
            if not entry.isfile() or "." not in PurePosixPath(entry.name).name:
                continue
            folder, _, base = entry.name.rpartition("/")
            stem, _, rest = base.partition(".")
            own = f"{folder}/{stem}" if folder else stem
            if key is not None and own != key:
                yield key, members, size
                members, size = {}, 0
            key, size = own, size + entry.size
            if size > MAX_BYTES:
                continue
            file = tar.extractfile(entry)
            data = file.read() if file else b""
            if len(data) != entry.size:
                raise tarfile.ReadError(f"{entry.name} is cut off")
            members[rest] = data
    if key is not None:
        yield key, members, size


def _member(members: Members, name: str) -> bytes:
    if name not in members:
        raise UserError(f"it has no member {name!r}, only {', '.join(members)}", code="bad-record")
    return members[name]


def _metadata(members: Members) -> dict[str, Any]:
    """Returns the JSON of a recording if it can be read, else {}: reading it as a transcript says what is wrong."""
    try:
        value = parse_json(decode(members["json"], "json"), "json") if "json" in members else {}
    except UserError:
        return {}
    return value if isinstance(value, dict) else {}


def _parse(members: Members, name: str, labels: tuple[str, str] | None, side: str) -> Sides:
    text = decode(_member(members, name), name)
    if name.endswith("json"):
        return read_json(parse_json(text, name), labels, name, side)
    return (read_srt if name.endswith("srt") else read_plain)(text, labels, name, side)
