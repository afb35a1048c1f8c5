"""The audio that a codec is trained on: folders of files, or shards, decoded once into one file of the run folder.

RUN/audio/NAME.i16     all samples, int16 mono at 24 kHz, mapped into memory: hours of audio take no memory
RUN/audio/NAME.json    which recording lies where, with its sounds; the checksum of all; what it was made from
"""

# Shapes: S samples (at 24 kHz), C channels, T frames (of 20 ms), D width (of the recogniser's features)

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
from tqdm import tqdm

from data_pipelines.shards.index import BadSample, ShardReader
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import storage_at
from data_pipelines.sound.audio import Audio, read_audio
from model.config import SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file, write_bytes

KINDS = (".flac", ".wav")
SHORTEST_SECONDS = 0.2

Sounds = list[tuple[float, float, str]]
"""(start, end in seconds, symbol) of each sound of a recording."""


@dataclass
class Track:
    """One recording: int16 mono at 24 kHz, its sounds and the recogniser's features."""

    audio_S: npt.NDArray[np.int16]
    sounds: Sounds = field(default_factory=list)
    features_TD: npt.NDArray[np.float16] | None = None
    """[T, D], 50 a second."""


@dataclass
class Tracks:
    """All recordings of a run, and the SHA-256 over their samples and sounds, by which a resumed run knows them."""

    items: list[Track]
    sha256: str

    @property
    def minutes(self) -> float:
        """Their length together."""
        return sum(len(item.audio_S) for item in self.items) / SAMPLE_RATE / 60


def open_tracks(places: Sequence[str], split: str, cache: Path) -> Tracks:
    """Opens the audio of some folders in the order of its names, decoding it into `cache` unless it is there already.

    A place is a folder of files, or of shards with audio, of which `split` is taken, each side for itself. What is no
    audio, silent or too short is left out with a line.
    Raises: UserError for a place that does not exist or holds no usable audio.
    """
    sources = [_source(place, split) for place in places]
    made_from = hashlib.sha256(json.dumps([signature for signature, _ in sources]).encode()).hexdigest()
    samples, record = cache.with_suffix(".i16"), cache.with_suffix(".json")
    kept = json.loads(record.read_bytes()) if record.is_file() and samples.is_file() else {}
    if kept.get("made_from") != made_from:
        kept = {"made_from": made_from, **_decode(places, [pieces for _, pieces in sources], samples)}
        write_bytes(record, json.dumps(kept).encode())
    whole = np.memmap(samples, np.int16, "r")
    items, at = [], 0
    for length, sounds in zip(kept["lengths"], kept["sounds"], strict=True):
        items.append(Track(whole[at : at + length], [(start, end, symbol) for start, end, symbol in sounds]))
        at += length
    return Tracks(items, kept["sha256"])


def _decode(places: Sequence[str], sources: Sequence[Any], path: Path) -> dict[str, Any]:
    """Writes all samples into one file."""
    digest = hashlib.sha256()
    lengths: list[int] = []
    all_sounds: list[Sounds] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        for place, pieces in zip(places, sources, strict=True):
            before = len(lengths)
            for audio_S, sounds in tqdm(pieces, desc=f"reading {place}", unit="recording", disable=None):
                file.write(audio_S.tobytes())
                digest.update(audio_S.tobytes())
                digest.update(f"{len(audio_S)} {sounds}".encode())
                lengths.append(len(audio_S))
                all_sounds.append(sounds)
            if len(lengths) == before:
                raise UserError(
                    f"{place} holds no usable speech: give a folder of {' or '.join(KINDS)} files, or of shards",
                    code="no-data",
                )
    return {"sha256": digest.hexdigest(), "lengths": lengths, "sounds": all_sounds}


def _source(place: str, split: str) -> tuple[Any, Iterator[tuple[npt.NDArray[np.int16], Sounds]]]:
    """(what tells whether a place has changed, its recordings)."""
    folder = Path(place)
    if "://" in place or (folder / "manifest.json").is_file():
        storage = storage_at(place)
        manifest = read_manifest(storage)
        if split not in manifest.content:
            raise UserError(f"{place} has no split {split}: give shards that have one", code="no-data")
        reader = ShardReader(storage.inside(split), manifest.index.get(split))
        return [place, reader.sha256], _of_shards(reader)
    if not folder.is_dir():
        raise UserError(f"{place}: no such folder of audio or shards", code="not-found")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    files = [other for path in paths for other in (path, path.with_suffix(".tsv")) if other.is_file()]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files], _of_files(paths)


def _of_files(paths: Sequence[Path]) -> Iterator[tuple[npt.NDArray[np.int16], Sounds]]:
    for path in paths:
        try:
            audio_CS, rate = read_audio(path)
            yield to_mono(audio_CS, rate, str(path)), read_sounds(path.with_suffix(".tsv"))
        except UserError as why:
            if why.code == "bad-record":
                raise
            tqdm.write(f"left out: {why}")


def _of_shards(reader: ShardReader) -> Iterator[tuple[npt.NDArray[np.int16], Sounds]]:
    seen = set()
    for number, row in enumerate(reader.rows):
        if row.id in seen:  # A call of which both sides are trained has two rows.
            continue
        seen.add(row.id)
        try:
            audio_CS, rate = reader.audio(number)
        except BadSample as why:
            tqdm.write(f"left out: {why}")
            continue
        for audio_S in audio_CS:
            try:
                yield to_mono(audio_S[None], rate, row.id), []
            except UserError as why:
                tqdm.write(f"left out: {why}")


def to_mono(audio_CS: Audio, rate: int, where: str) -> npt.NDArray[np.int16]:
    """Audio as int16 mono at 24 kHz. Raises: UserError if it is too short or silent."""
    if audio_CS.shape[1] < SHORTEST_SECONDS * rate:
        seconds = audio_CS.shape[1] / rate
        raise UserError(f"{where}: lasts {seconds:.2f} s: give {SHORTEST_SECONDS} s or more", code="bad-audio")
    mono_S = soxr.resample(audio_CS.mean(axis=0), rate, SAMPLE_RATE)
    if not np.abs(mono_S).max() > 1e-4:
        raise UserError(f"{where}: silent: give speech", code="bad-audio")
    return (np.clip(mono_S, -1, 1) * 32767).astype(np.int16)


def read_sounds(path: Path) -> Sounds:
    """Sounds of one recording: lines of start, end (seconds) and symbol, separated by tabs; [] without the file.

    Raises: UserError naming the file and the line that is not one.
    """
    if not path.is_file():
        return []
    sounds = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as why:
        raise UserError(f"{path}: not readable as UTF-8 text: {why}", code="bad-record") from why
    for number, row in enumerate(rows, 1):
        try:
            start, end, symbol = float(row[0]), float(row[1]), row[2]
        except (ValueError, IndexError) as why:
            raise UserError(
                f"{path}:{number}: not a start, an end and a sound, separated by tabs", code="bad-record"
            ) from why
        if not 0 <= start <= end < 1e6:
            raise UserError(f"{path}:{number}: {start} to {end} s is no stretch of time", code="bad-record")
        sounds.append((start, end, symbol))
    return sounds
