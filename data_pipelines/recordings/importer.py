"""`ppx-data import`: recordings in other data sets' formats become dialogue folders.

OUT/import.json states the settings. OUT/.done/ID.json says that a recording is done and what it gave. meta.json of each
dialogue is written after its audio. OUT/report.json counts recordings and lists what was rejected, and why.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.files import claim_folder, digest
from data_pipelines.recordings import audio_folder, hub, moshi, tars
from data_pipelines.recordings.convert import ImportSettings, import_recording
from data_pipelines.recordings.cut import has_audio
from data_pipelines.recordings.drafts import ImportReport, Note, RecordingDraft, read_draft, read_drafts, write_draft
from data_pipelines.recordings.options import add_common_arguments, by_side, check_limit, settings_of
from data_pipelines.recordings.recording import Batch, Broken, recording_id
from data_pipelines.records.schema import SIDES
from model.errors import UserError

FORMATS = {
    "moshi": "the .jsonl of moshi-finetune, or its folder",
    "subtitles": "a folder of WAV or FLAC with SRT, JSON or text beside them",
    "webdataset": "a tar with audio and JSON, or a folder of tars",
    "hf": "a datasets repository ORG/NAME, or a folder that datasets can load",
}
DONE = ".done"
_FORMATS_OF = {
    "audio_pattern": ("subtitles",),
    "text_pattern": ("subtitles",),
    "meta_pattern": ("subtitles",),
    "sides": ("subtitles",),
    "audio_field": ("webdataset", "hf"),
    "text_field": ("webdataset", "hf"),
    "id_field": ("hf",),
    "hf_split": ("hf",),
    "hf_config": ("hf",),
    "hf_revision": ("hf",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data import`."""
    about = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("format", choices=FORMATS, metavar="FORMAT", help=about)
    parser.add_argument("path", metavar="PATH", help="where the recordings are")
    parser.add_argument("--labels", nargs=2, metavar=("LEFT", "RIGHT"), help="the speakers' names in the transcripts")
    sided = {"nargs": "+", "metavar": "X"}
    what = "member (webdataset) or column (hf)"
    parser.add_argument("--audio-field", **sided, help=f"{what} with stereo audio, or left=X right=Y")  # type: ignore[arg-type]
    parser.add_argument("--text-field", **sided, help=f"{what} with the transcript, or left=X right=Y")  # type: ignore[arg-type]
    parser.add_argument("--id-field", help="hf: column that names the recordings (default: they are counted)")
    parser.add_argument("--hf-split", help="hf: split to read (default: train)")
    parser.add_argument("--hf-config", help="hf: configuration to read")
    parser.add_argument("--hf-revision", help="hf: branch, tag or commit")
    parser.add_argument("--audio-pattern", help="subtitles: names of audio files, e.g. '{name}/speaker_{side}.wav'")
    parser.add_argument("--text-pattern", help="subtitles: names of transcripts, e.g. '{name}/speaker_{side}.srt'")
    parser.add_argument("--meta-pattern", help="subtitles: names of JSON files with facts, e.g. '{name}/metadata.json'")
    parser.add_argument("--sides", nargs=2, metavar=("LEFT", "RIGHT"), help="subtitles: what {side} is (left, right)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data import`. Raises UserError for options that make no sense, and as `import_batches`."""
    for option, formats in _FORMATS_OF.items():
        if getattr(args, option) is not None and args.format not in formats:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(
                f"{flag} has an effect with {' and '.join(formats)} only, not with {args.format}",
                code="bad-combination",
            )
    for option in ("labels", "sides"):
        if (names := getattr(args, option)) and names[0] == names[1]:
            raise UserError(f"--{option} {names[0]} {names[1]}: give two different names", code="bad-value")
    settings = settings_of(args)
    labels = tuple(args.labels) if args.labels else None
    batches = find_batches(args, labels)
    chosen = {name: getattr(args, name) for name in (*_FORMATS_OF, "labels")}
    extra = {"format": args.format, "path": args.path} | {name: value for name, value in chosen.items() if value}
    run_import(batches, settings, extra, args, "import")


def find_batches(args: argparse.Namespace, labels: tuple[str, str] | None) -> Sequence[Batch]:
    """Returns the recordings of the chosen format, in batches. Raises UserError if nothing is found."""
    path = Path(args.path)
    if args.format != "moshi":  # The lists of moshi-finetune say which files belong to them.
        check_outside(args.out, [path])
    audio, text = by_side("--audio-field", args.audio_field), by_side("--text-field", args.text_field)
    if args.format == "moshi":
        return moshi.find(path, labels)
    if args.format == "subtitles":
        names = {"audio": args.audio_pattern, "text": args.text_pattern, "meta": args.meta_pattern}
        given = {key: value for key, value in names.items() if value is not None}
        patterns = audio_folder.Patterns(**given, sides=tuple(args.sides or SIDES))
        return audio_folder.find(path, patterns, labels)
    if args.format == "webdataset":
        return tars.find(path, labels, audio, text)
    dataset = hub.HubDataset(
        path=args.path,
        split=args.hf_split or "train",
        config=args.hf_config,
        revision=args.hf_revision,
        audio=audio,
        text=text,
        id=args.id_field or "",
    )
    return hub.find(dataset, labels)


def check_outside(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError if `out` lies in a folder that is searched: the next run would read what this one writes."""
    for path in inputs:
        if path.is_dir() and Path(os.path.abspath(out)).is_relative_to(os.path.abspath(path)):
            raise UserError(
                f"--out {out} lies in {path}, where recordings are looked for: choose a folder outside of it",
                code="bad-combination",
            )


def run_import(
    batches: Sequence[Batch], settings: ImportSettings, extra: Mapping[str, Any], args: argparse.Namespace, verb: str
) -> None:
    """Imports all batches into args.out and prints what came of it. Raises UserError as `import_batches`."""
    check_limit(args.limit)
    report = import_batches(batches[: args.limit], settings, extra, args.out, executor_of(args), verb)
    print(report.summary(args.out))
    licences = Counter([one.licence for one in report.dialogues if one.licence])
    print(f"licence: {settings.licence!r}, by --licence, for {len(report.dialogues) - licences.total()} dialogues")
    for licence, count in sorted(licences.items()):
        print(f"{count} dialogues keep the licence that their records state, {licence!r}")
    if not report.num_heldout and settings.split_by in ("speaker", "recording"):
        print("nothing is held out: with few speakers use --split recording, or hold out another source")


def import_batches(
    batches: Sequence[Batch],
    settings: ImportSettings,
    extra: Mapping[str, Any],
    out: Path,
    executor: Executor,
    verb: str = "import",
) -> ImportReport:
    """Imports into `out` and returns the report, which is also written to OUT/report.json.

    Recordings that cannot be used are rejected with a reason and the others go on; the next run with the same settings
    tries rejected ones again. `extra` is kept beside the settings in OUT/VERB.json, where hashes stand for names.
    Raises: UserError for a foreign `out`, a missing package, or if no recording at all gives a dialogue.
    """
    claim_folder(out, f"{verb}.json", _without_names({**settings.record(), **extra}, settings.mask), verb)
    for name, draft in read_drafts(out / DONE, RecordingDraft).items():
        if draft.rejected:  # It is tried again; once repaired it may have another name, as in a tar that was cut off.
            (out / DONE / f"{name}.json").unlink()
    work = partial(import_batch, settings=settings, out=out)
    losses = executor.run(work, batches, lost=lambda batch, reason: Note(id=batch.label, reason=reason))
    lost = [note for note in tqdm(losses, total=len(batches), unit="batch", desc=verb, disable=None) if note]
    done = read_drafts(out / DONE, RecordingDraft).values()
    rejected = [Note(id=draft.name, reason=draft.rejected) for draft in done if draft.rejected]
    notes = [Note(id=draft.name, reason=reason) for draft in done for reason in draft.notes]
    unread = sorted(settings.speakers.keys() - {draft.name for draft in done})
    notes += [Note(id=name, reason="--speakers names it, but no recording that was read") for name in unread]
    report = ImportReport(
        recordings=len(done) - len(rejected),
        dialogues=[dialogue for draft in done for dialogue in draft.dialogues],
        rejected=[*rejected, *sorted(lost, key=lambda note: note.id)],
        notes=notes,
    )
    report.write(out, recordings=report.recordings)
    return report


def _without_names(settings: Mapping[str, Any], mask: bool) -> dict[str, Any]:
    """The settings as OUT keeps them: hashes, which tell other settings as well, stand for what names people.

    Those are the table of speakers and, of an import that masks, prompts and the speakers' names in transcripts.
    """
    hidden = {"speakers", *(("role_prompts", "labels") if mask else ())}
    hashes = {
        name: digest(json.dumps(value, sort_keys=True)) if value else ""
        for name, value in settings.items()
        if name in hidden
    }
    return {**settings, **hashes}


def import_batch(batch: Batch, settings: ImportSettings, out: Path) -> Note | None:
    """Imports what is not done yet of one batch, in a worker. None stands for a batch that did not kill its worker."""
    for recording in batch.recordings():
        path = out / DONE / f"{recording_id(settings.source, recording.name)}.json"
        if _is_done(path, out):
            continue
        if isinstance(recording, Broken):
            write_draft(path, RecordingDraft(name=recording.name, rejected=recording.reason))
        else:
            write_draft(path, import_recording(recording, settings, out))
    return None


def _is_done(path: Path, out: Path) -> bool:
    """True if a recording was imported and all files of its dialogues are there."""
    return path.is_file() and all(
        (out / dialogue.id / "meta.json").is_file() and has_audio(out / dialogue.id, dialogue.agents)
        for dialogue in read_draft(path, RecordingDraft).dialogues
    )
