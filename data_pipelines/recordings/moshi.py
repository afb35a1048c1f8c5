"""Reads the format of kyutai-labs/moshi-finetune, which DailyTalkContiguous has, too.

A .jsonl lists {"path": "data_stereo/a.wav", "duration": 24.5}, with paths from its own folder. The files are stereo,
with the model on the left. Beside each lies a .json of {"alignments": [[word, [start, end], "SPEAKER_MAIN"], ...]}.
moshi-finetune skips other speakers' words, so they are often missing, and the right side is then unknown. A recording
has two channels, so of several other speakers the one with most words is kept, and the rest is skipped and noted. What
`ppx-data to-moshi` writes has a licence and a split of its own, which are kept, and says whether it was masked.
"""

# Shapes: C channels, S samples

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.recordings.kept import stated, stated_counts
from data_pipelines.recordings.recording import Broken, Recording, named_file, stereo
from data_pipelines.recordings.transcripts import MAIN, parse_json, read_json, read_text_file
from data_pipelines.recordings.utterances import Sides
from data_pipelines.records.provenance import MASKED
from data_pipelines.records.schema import SPLITS
from data_pipelines.sound.audio import Audio, read_audio
from model.errors import UserError
from model.files import inside


@dataclass(frozen=True, kw_only=True)
class MoshiLine:
    """One line of a list, a batch of its own."""

    root: Path
    text: str
    where: str
    labels: tuple[str, str] | None
    is_again: bool = False
    """True if an earlier line has the same text."""

    @property
    def label(self) -> str:
        """The list and the number of the line."""
        return self.where

    def recordings(self) -> Iterator[Recording | Broken]:
        """Yields the one recording."""
        if self.is_again:
            yield Broken(name=self.where, reason="the same line as before")
            return
        try:
            yield self._recording()
        except UserError as why:
            yield Broken(name=self.where, reason=str(why).removeprefix(f"{self.where}: "))

    def _recording(self) -> Recording:
        entry = parse_json(self.text, self.where)
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise UserError('not {"path": ..., "duration": ...}', code="bad-record")
        path = inside(self.root, entry["path"], "path")
        beside = path.with_suffix(".json")
        record: dict[str, Any] = {}
        if beside.is_file():
            found = parse_json(read_text_file(beside), str(beside))
            record = found if isinstance(found, dict) else {"alignments": found}
        words, notes = _of_two(record.get("alignments"), self.labels)
        record = record | ({"alignments": words} if "alignments" in record else {})
        metadata = {**entry, **{key: value for key, value in record.items() if key != "alignments"}}
        return Recording(
            name=str(path.relative_to(self.root)),
            audio=lambda: _audio(path, entry.get("duration")),
            sides=lambda: _sides(record, self.labels, beside),
            attachment=lambda name: named_file(self.root, metadata, name),
            metadata=metadata,
            licence=stated(metadata, "ppx.licence"),
            split=stated(metadata, "ppx.split", SPLITS),
            masked=stated_counts(metadata, f"ppx.{MASKED}"),
            notes=notes,
        )


def find(path: Path, labels: tuple[str, str] | None) -> list[MoshiLine]:
    """Returns the lines of a list, or of all lists below a folder.

    Raises: UserError if no list is found (code "not-found") or one is not text ("unreadable").
    """
    lists = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    if not lists:
        raise UserError(
            f"{path}: holds no .jsonl, give the list of moshi-finetune or the folder that holds it", code="not-found"
        )
    lines, seen = [], set()
    for file in lists:
        for number, text in enumerate(read_text_file(file).splitlines(), 1):
            if text.strip():
                again = (file.parent, text) in seen
                seen.add((file.parent, text))
                where = f"{file.name}:{number}"
                lines.append(MoshiLine(root=file.parent, text=text, where=where, labels=labels, is_again=again))
    return lines


def _of_two(words: Any, labels: tuple[str, str] | None) -> tuple[Any, tuple[str, ...]]:
    """Returns the words of two speakers, and notes on those of others; what has another shape is returned as it is."""
    if not isinstance(words, list) or not all(isinstance(word, (list, tuple)) and len(word) == 3 for word in words):
        return words, ()
    count = Counter(str(speaker) for *_, speaker in words)
    by_count = [name for name, _ in count.most_common()]
    if labels is None:
        main = [name for name in by_count if name.lower() == MAIN]
        labels = (main[0], next(name for name in by_count if name not in main)) if main and len(count) > 2 else ("", "")
    kept = {*labels}
    if len(count) <= 2 or not kept & count.keys():
        return words, ()
    others = ", ".join(f"{number} of {name!r}" for name, number in sorted(count.items()) if name not in kept)
    note = f"words of other speakers than {' and '.join(map(repr, sorted(kept)))} are skipped: {others}"
    return [word for word in words if str(word[2]) in kept], (note,)


def _audio(path: Path, duration: Any) -> tuple[Audio, int]:
    audio_CS, rate = read_audio(path)
    stereo(audio_CS, str(path))
    seconds = audio_CS.shape[1] / rate
    room = max(1.0, 0.02 * seconds)
    if isinstance(duration, (int, float)) and not seconds - room <= duration <= seconds + room:
        raise UserError(
            f"{path}: {seconds:.1f} s, its list says {str(duration)[:20]} s: copy it again", code="bad-audio"
        )
    return audio_CS, rate


def _sides(record: dict[str, Any], labels: tuple[str, str] | None, beside: Path) -> Sides:
    """Returns {} without a transcript; with one the left side is known, if only to be silent."""
    if "alignments" not in record:
        return {}
    return read_json({"alignments": record["alignments"]}, labels, str(beside))
