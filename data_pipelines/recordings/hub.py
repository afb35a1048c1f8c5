"""Reads a Hugging Face `datasets` repository, or a folder that the library can load, as a stream.

Audio is taken as the bytes that are stored and decoded here, so that no decoder of the library is needed.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.recordings.kept import kept_terms
from data_pipelines.recordings.recording import Broken, Recording, Unready, from_two
from data_pipelines.recordings.transcripts import parse_json, read_json
from data_pipelines.recordings.utterances import Sides
from data_pipelines.sound.audio import Audio, read_audio
from model.errors import UserError
from model.extras import require
from model.files import inside
from model.weights.sources import hub_errors


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Which rows are read, and from which columns."""

    path: str
    split: str
    config: str | None
    revision: str | None
    audio: Mapping[str, str]
    """The column of stereo recordings as {"": column}, or a column for each side."""
    text: Mapping[str, str]
    id: str = ""
    """The column that names the recordings; "" to count them."""

    def open(self) -> Any:
        """Returns the rows as a `datasets.IterableDataset`.

        Raises: UserError with what is wrong with the name, the files or the columns (code "not-found").
        """
        datasets = require("datasets", extra="datasets")
        try:
            with hub_errors(self.path, self.revision):
                return self._undecoded(datasets, self._load(datasets))
        except UserError:
            raise
        except Exception as why:  # The library wraps what its readers raise in errors of its own.
            raise self._not_loaded(why, "--hf-config and --hf-split") from why

    def _load(self, datasets: Any) -> Any:
        try:
            if _is_saved(Path(self.path)):
                saved = datasets.load_from_disk(self.path)
                chosen = saved[self.split] if isinstance(saved, dict) else saved
                return chosen.to_iterable_dataset(num_shards=min(16, max(1, len(chosen))))
            options = {"name": self.config, "split": self.split, "revision": self.revision, "streaming": True}
            return datasets.load_dataset(self.path, **options)
        except FileNotFoundError as why:  # The folder or repository does not exist, or it is gated.
            raise self._not_loaded(why, "and log in with `hf auth login` if it is gated or private") from why

    def _not_loaded(self, why: Exception, fix: str) -> UserError:
        reason = str(why).strip().splitlines()[0].rstrip(".") if str(why).strip() else type(why).__name__
        return UserError(
            f"{self.path}, split {self.split}: cannot be loaded ({reason}), check the path, {fix}", code="not-found"
        )

    def _undecoded(self, datasets: Any, stream: Any) -> Any:
        """Returns the rows with every audio column as stored bytes."""
        if stream.features is None:  # Some formats do not state their columns.
            stream = stream._resolve_features()
        for name, kind in stream.features.items():
            if isinstance(kind, datasets.Audio):
                stream = stream.cast_column(name, datasets.Audio(decode=False))
        wanted = {*self.audio.values(), *self.text.values(), *([self.id] if self.id else [])}
        if lost := sorted(wanted - set(stream.features)):
            names = ", ".join(stream.features)
            raise UserError(
                f"{self.path}: has no column {lost[0]!r}, only {names} (see --audio-field, --text-field, --id-field)",
                code="bad-record",
            )
        return stream


@dataclass(frozen=True, kw_only=True)
class DatasetPart:
    """One of the files that a data set consists of."""

    dataset: HubDataset
    labels: tuple[str, str] | None
    number: int
    count: int

    @property
    def label(self) -> str:
        """The data set and the number of the file."""
        return f"{self.dataset.path}, file {self.number}"

    def recordings(self) -> Iterator[Recording | Broken]:
        """Yields a recording for each row, and one that is broken where rows cannot be read."""
        try:
            stream = self.dataset.open()
        except UserError as why:
            raise Unready(str(why), code=why.code) from why
        if self.count > 1:
            stream = stream.shard(num_shards=self.count, index=self.number)
        rows, n, seen = iter(stream), 0, set()
        part = f"{self.dataset.split}-{self.number:05d}"
        while True:
            name = f"{part}-{n:06d}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except ImportError as why:  # The library encodes the audio of some layouts anew, whatever one asks for.
                reason = str(why).rstrip(".")
                raise Unready(
                    f"{self.dataset.path}: {reason}; or fetch its tars and use `ppx-data import webdataset`",
                    code="missing-package",
                ) from why
            except (OSError, ValueError, RuntimeError) as why:
                reason = str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
                yield Broken(name=name, reason=f"rows cannot be read from here on ({reason})")
                return
            if self.dataset.id:
                name = f"{part}-{row[self.dataset.id]}"
            if name in seen:
                yield Broken(name=f"{name} (row {n})", reason=f"another row has the same {self.dataset.id}")
            else:
                try:
                    yield self._recording(name, row)
                except UserError as why:
                    yield Broken(name=name, reason=str(why))
            seen.add(name)
            n += 1

    def _recording(self, name: str, row: dict[str, Any]) -> Recording:
        metadata = {key: value for key, value in row.items() if not _holds_audio(value)}
        terms = kept_terms(row.get("record"))
        return Recording(
            name=name,
            audio=partial(self._audio, name, row),
            sides=partial(self._sides, row),
            attachment=lambda column: _bytes(row.get(column), column, self.dataset.path),
            metadata=metadata,
            licence=terms.licence,
            split=terms.split,
            masked=terms.masked,
        )

    def _audio(self, name: str, row: dict[str, Any]) -> tuple[Audio, int]:
        found = {
            side: read_audio(_bytes(row[column], column, self.dataset.path), column)
            for side, column in self.dataset.audio.items()
        }
        return found[""] if "" in found else from_two(found["left"], found["right"], name)

    def _sides(self, row: dict[str, Any]) -> Sides:
        sides: Sides = {}
        for side, column in self.dataset.text.items():
            value = row[column]
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                value = parse_json(value, column)
            if value is not None:
                sides |= read_json(value, self.labels, column, side)
        return sides


def find(dataset: HubDataset, labels: tuple[str, str] | None) -> list[DatasetPart]:
    """Returns the files of a data set. Raises UserError if it cannot be loaded or lacks a column."""
    if not dataset.audio:
        raise UserError(
            "--audio-field is missing: name the column of the stereo recordings, or one for each side",
            code="missing-option",
        )
    count = max(1, int(dataset.open().num_shards))
    return [DatasetPart(dataset=dataset, labels=labels, number=n, count=count) for n in range(count)]


def _is_saved(path: Path) -> bool:
    """True for a folder that `save_to_disk` made."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _holds_audio(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _bytes(value: Any, column: str, root: str) -> bytes:
    """Returns the stored bytes of an audio value, which are in the row or in a file of the data set."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return bytes(value["bytes"])
    if isinstance(value, bytes):
        return value
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        raise UserError(f"its {column} holds no audio", code="bad-record")
    if "://" in path:
        # A chain ("zip://...::hf://...") may begin with any file of this machine, so it has to be one address.
        own = re.fullmatch(rf"hf://datasets/{re.escape(root)}(@[^/:]+)?/([^:]+)", path)
        if own is None or ".." in own[2].split("/"):
            raise UserError(
                f"its {column}: {path!r:.200} leads out of the data set: only its own files are read", code="unsafe"
            )
        import fsspec

        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    local = inside(Path(os.path.abspath(root)), path, f"its {column}")
    if not local.is_file():
        raise UserError(f"its {column}: {path}: no such file", code="not-found")
    return local.read_bytes()
