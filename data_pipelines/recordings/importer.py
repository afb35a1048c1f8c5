"""`ppx-data import`: recordings in other data sets' formats to dialogue folders.

OUT/import.json states the settings; OUT/.done/ID.json says that a recording is done and what it gave; meta.json of each
dialogue is written after its audio. OUT/report.json counts recordings and lists what was rejected, and why.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.files import claim_folder, digest, write_json
from data_pipelines.recordings import audio_folder as files
from data_pipelines.recordings import hub, moshi, tars
from data_pipelines.recordings.cut import Settings, import_item
from data_pipelines.recordings.item import Batch, Broken, item_id
from data_pipelines.recordings.options import add_common_arguments, by_side, check_limit, settings_of
from data_pipelines.records.schema import SIDES
from model.errors import UserError

FORMATS = {
    "moshi": "the .jsonl of moshi-finetune, or its folder",
    "subtitles": "a folder of WAV or FLAC with SRT, JSON or text beside them",
    "webdataset": "a tar with audio and JSON, or a folder of tars",
    "hf": "a datasets repository ORG/NAME, or a folder that datasets can load",
}
DONE = ".done"
_ONLY = {
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
    """Arguments of `ppx-data import`."""
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
    """`ppx-data import`."""
    for option, formats in _ONLY.items():
        if getattr(args, option) is not None and args.format not in formats:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(f"{flag} has an effect with {' and '.join(formats)} only, not with {args.format}")
    for option in ("labels", "sides"):
        if (names := getattr(args, option)) and names[0] == names[1]:
            raise UserError(f"--{option} {names[0]} {names[1]}: give two different names")
    settings = settings_of(args)
    labels = tuple(args.labels) if args.labels else None
    batches = find_batches(args, labels)
    chosen = {name: getattr(args, name) for name in (*_ONLY, "labels")}
    extra = {"format": args.format, "path": args.path} | {name: value for name, value in chosen.items() if value}
    run_import(batches, settings, extra, args, "import")


def find_batches(args: argparse.Namespace, labels: tuple[str, str] | None) -> Sequence[Batch]:
    """The recordings of the chosen format. Raises UserError if there is none."""
    path = Path(args.path)
    if args.format != "moshi":  # whose lists say what belongs to it
        check_outside(args.out, [path])
    audio, text = by_side("--audio-field", args.audio_field), by_side("--text-field", args.text_field)
    if args.format == "moshi":
        return moshi.find(path, labels)
    if args.format == "subtitles":
        names = {"audio": args.audio_pattern, "text": args.text_pattern, "meta": args.meta_pattern}
        given = {key: value for key, value in names.items() if value is not None}
        patterns = files.Patterns(**given, sides=tuple(args.sides or SIDES))
        return files.find(path, patterns, labels)
    if args.format == "webdataset":
        return tars.find(path, labels, audio, text)
    source = hub.Source(
        path=args.path,
        split=args.hf_split or "train",
        config=args.hf_config,
        revision=args.hf_revision,
        audio=audio,
        text=text,
        id=args.id_field or "",
    )
    return hub.find(source, labels)


def check_outside(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError if `out` lies in a folder that is searched: what is written there would be read next time."""
    for path in inputs:
        if path.is_dir() and Path(os.path.abspath(out)).is_relative_to(os.path.abspath(path)):
            raise UserError(
                f"--out {out} lies in {path}, where recordings are looked for: choose a folder outside of it"
            )


def run_import(
    batches: Sequence[Batch], settings: Settings, extra: Mapping[str, Any], args: argparse.Namespace, verb: str
) -> None:
    """Imports all batches into args.out and prints what came of it. Raises UserError as `import_batches`."""
    check_limit(args.limit)
    report = import_batches(batches[: args.limit], settings, extra, args.out, executor_of(args), verb)
    print(
        f"{report['dialogues']} dialogues ({report['hours']:.2f} h; {report['heldout']} held out) from "
        f"{report['recordings']} recordings, {len(report['rejected'])} rejected, {len(report['notes'])} notes: "
        f"{args.out / 'report.json'}"
    )
    if not report["heldout"] and settings.split_by in ("speaker", "recording"):
        print("nothing is held out: with few speakers use --split recording, or hold out another source")


def import_batches(
    batches: Sequence[Batch],
    settings: Settings,
    extra: Mapping[str, Any],
    out: Path,
    executor: Executor,
    verb: str = "import",
) -> dict[str, Any]:
    """Imports into `out` and answers the report, also written to OUT/report.json.

    Recordings that cannot be used are rejected with a reason and the others go on; rejected ones are tried again when
    the same import is asked for again. Raises: UserError for a foreign `out`, a missing package, or if nothing at all
    gives a dialogue.
    """
    record = {**asdict(settings), **extra}
    record["speakers"] = digest(json.dumps(record["speakers"], sort_keys=True)) if settings.speakers else ""
    claim_folder(out, f"{verb}.json", record, verb)
    (out / DONE).mkdir(exist_ok=True)
    _forget_rejected(out)
    work = partial(import_batch, settings=settings, out=out)
    answers = executor.run(work, batches, lost=lambda batch, reason: {"id": batch.label, "reason": reason})
    lost = [answer for answer in tqdm(answers, total=len(batches), unit="batch", desc=verb, disable=None) if answer]
    done = [json.loads(path.read_text("utf-8")) for path in sorted((out / DONE).glob("*.json"))]
    dialogues = [dialogue for entry in done for dialogue in entry["dialogues"]]
    rejected = [{"id": entry["name"], "reason": entry["rejected"]} for entry in done if "rejected" in entry]
    rejected += sorted(lost, key=lambda entry: entry["id"])
    notes = [{"id": entry["name"], "reason": note} for entry in done for note in entry["notes"]]
    strange = sorted(settings.speakers.keys() - {entry["name"] for entry in done})
    notes += [{"id": name, "reason": "--speakers names it, but no recording that was read"} for name in strange]
    report = {
        "recordings": sum("rejected" not in entry for entry in done),
        "dialogues": len(dialogues),
        "heldout": sum(dialogue["split"] == "heldout" for dialogue in dialogues),
        "hours": round(sum(dialogue["seconds"] for dialogue in dialogues) / 3600, 4),
        "rejected": rejected,
        "notes": notes,
    }
    write_json(out / "report.json", report)
    if not dialogues:
        reason = f"; the first reason: {rejected[0]['id']}: {rejected[0]['reason']}" if rejected else ""
        raise UserError(f"no recording gave a dialogue, see {out / 'report.json'}{reason}")
    return report


def import_batch(batch: Batch, settings: Settings, out: Path) -> dict[str, str]:
    """What a worker does: imports what is not done yet of one batch. {} stands for a batch that cost no worker."""
    for item in batch.items():
        path = out / DONE / f"{item_id(settings.source, item.name)}.json"
        if _is_done(path, out):
            continue
        if isinstance(item, Broken):
            entry: dict[str, Any] = {"name": item.name, "rejected": item.reason, "dialogues": [], "notes": []}
        else:
            entry = import_item(item, settings, out)
        write_json(path, entry)
    return {}


def _forget_rejected(out: Path) -> None:
    """They are tried again, and what was mended may come under another name, as in a tar that was cut off."""
    for path in (out / DONE).glob("*.json"):
        if "rejected" in json.loads(path.read_text("utf-8")):
            path.unlink()


def _is_done(path: Path, out: Path) -> bool:
    """True if a recording was imported and all files of its dialogues are there."""
    if not path.is_file():
        return False
    entry = json.loads(path.read_text("utf-8"))
    wanted = [
        out / dialogue["id"] / name
        for dialogue in entry["dialogues"]
        for name in ("meta.json", "audio.flac", *(f"{side}.voice.flac" for side in dialogue["agents"]))
    ]
    return all(file.is_file() for file in wanted)
