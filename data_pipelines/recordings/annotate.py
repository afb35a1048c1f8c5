"""`ppx-data annotate`: finds words and their times, by listening, for audio that has none.

Audio files become dialogues as in `ppx-data import`. Dialogue folders are copied to new ones in which the sides
without words have them; nothing else in the record changes.
"""

# Shapes: C channels, S samples

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_pipelines.execution.executor import executor_of
from data_pipelines.files import claim_folder, write_json, write_line
from data_pipelines.recordings.audio_folder import FolderRecording, Patterns, find
from data_pipelines.recordings.cut import MIN_PLACED_SHARE, voice_file
from data_pipelines.recordings.drafts import Note
from data_pipelines.recordings.fill import Filled, Listener, aligned_share, fill_side, provenance_of
from data_pipelines.recordings.importer import check_outside, run_import
from data_pipelines.recordings.mask_dialogue import mask_dialogue
from data_pipelines.recordings.options import add_common_arguments, check_limit, listener_of, settings_of
from data_pipelines.recordings.recording import AUDIO_SUFFIXES, Unready
from data_pipelines.records.folder import ROLES, find_dialogues, load_dialogue
from data_pipelines.records.schema import SIDES, Dialogue, Side
from data_pipelines.sound.audio import RATE_HZ, read_audio, require_stereo_24k, write_flac
from model.errors import UserError
from model.files import write_bytes

FROM_RECORD = (
    "source", "licence", "agent", "role_prompt", "role_field", "speaker_field", "speakers", "voice", "voice_field",
    "max_seconds", "voice_seconds", "split", "heldout", "seed",
)  # fmt: skip
"""Options that dialogue folders do not take, because their records say it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data annotate`."""
    parser.add_argument("audio", type=Path, nargs="*", metavar="AUDIO", help="stereo files, or folders of them")
    parser.add_argument("--dialogues", type=Path, nargs="+", metavar="DIR", help="folders of dialogues, instead")
    parser.add_argument("--again", action="store_true", help="with --dialogues: hear the sides that have words, too")
    add_common_arguments(parser, has_records=True)
    parser.set_defaults(untouched={option: parser.get_default(option) for option in FROM_RECORD})


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data annotate`. Raises UserError for options that make no sense, and if nothing can be annotated."""
    if bool(args.audio) == bool(args.dialogues):
        raise UserError("give either audio files or --dialogues DIR", code="bad-combination")
    if args.fill == "none":
        raise UserError("--fill none leaves nothing to do: give both or agent", code="bad-value")
    check_limit(args.limit)
    if args.dialogues:
        for option, default in args.untouched.items():
            if getattr(args, option) != default:
                flag = f"--{option.replace('_', '-')}"
                raise UserError(f"{flag} is for audio files: a dialogue's own record says it", code="bad-combination")
        annotate_dialogues(args)
        return
    if args.again:
        raise UserError("--again has an effect with --dialogues only", code="bad-combination")
    for option in ("source", "licence"):
        if getattr(args, option) is None:
            raise UserError(f"--{option} is missing: audio files need it", code="missing-option")
    check_outside(args.out, args.audio)
    run_import(find_audio(args.audio), settings_of(args), {"audio": [str(p) for p in args.audio]}, args, "annotate")


def find_audio(paths: Sequence[Path]) -> list[FolderRecording]:
    """Returns the recordings in files and folders.

    Raises: UserError if a path holds no audio (code "not-found") or two recordings have the same name.
    """
    found: dict[str, FolderRecording] = {}
    for path in paths:
        if path.is_dir():
            own = find(path, Patterns(), None, has_text=False)
        elif path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES:
            own = [
                FolderRecording(
                    root=path.parent, name=path.stem, audio=(path,), patterns=Patterns(), labels=None, has_text=False
                )
            ]
        else:
            raise UserError(f"{path}: no such audio file or folder ({', '.join(AUDIO_SUFFIXES)})", code="not-found")
        for recording in own:
            if found.setdefault(recording.name, recording) is not recording:
                other = found[recording.name].root
                raise UserError(
                    f"{recording.name} is in {other} and in {recording.root}: annotate them one at a time",
                    code="bad-combination",
                )
    return list(found.values())


def annotate_dialogues(args: argparse.Namespace) -> None:
    """Writes a copy with words of every dialogue below args.dialogues, and OUT/report.json.

    Raises: UserError for a foreign folder, a missing package, or if no dialogue could be annotated (code "no-data").
    """
    listener = listener_of(args)
    settings = {**asdict(listener), "fill": args.fill, "again": args.again} | ({"mask": True} if args.mask else {})
    if args.mask and args.fill != "both":
        raise UserError(
            f"--mask and --fill {args.fill}: what nobody hears cannot be masked, leave out --fill",
            code="bad-combination",
        )
    found = find_dialogues(args.dialogues)[: args.limit]
    claim_folder(args.out, "annotate.json", settings, "annotate")
    work = partial(annotate_one, listener=listener, fill=args.fill, again=args.again, out=args.out, mask=args.mask)
    todo = [folder for folder in found if not (args.out / folder.name / "meta.json").is_file()]
    notes = executor_of(args).run(work, todo, lost=lambda folder, reason: Note(id=folder.name, reason=reason))
    bar = tqdm(notes, total=len(todo), unit="dialogue", desc="annotate", disable=None)
    rejected = sorted((note for note in bar if note), key=lambda note: note.id)
    num_done, report = len(found) - len(rejected), args.out / "report.json"
    write_json(report, {"dialogues": num_done, "rejected": [asdict(note) for note in rejected]})
    if not num_done:
        raise UserError(f"no dialogue was annotated, see {report}: {rejected[0].reason}", code="no-data")
    print(f"{num_done} dialogues with words, {len(rejected)} rejected: {report}")


def annotate_one(
    folder: Path, listener: Listener, fill: str, again: bool, out: Path, mask: bool = False
) -> Note | None:
    """Writes OUT/ID with words, masked if asked to; returns why it cannot be used, or None. Raises Unready."""
    try:
        dialogue = load_dialogue(folder, sidecars=(ROLES,))  # What gates measured of other words is left behind.
        audio_CS = require_stereo_24k(folder / "audio.flac")
        wanted = [side for side in SIDES if fill == "both" or dialogue.side(side).is_agent]
        filled = {
            side: fill_side(audio_CS[SIDES.index(side)], RATE_HZ, None, listener)
            for side in wanted
            if again or not dialogue.side(side).words
        }
        for side, found in filled.items():
            if dialogue.side(side).is_agent and (found.share < MIN_PLACED_SHARE or not found.placed):
                heard = f"{found.placed} of {found.tried} utterances can be aligned"
                raise UserError(f"{side} side: {heard if found.tried else 'nothing is heard'}", code="bad-transcript")
        clips = {side: read_audio(folder / voice_file(side)) for side in dialogue.agent_sides} if mask else {}
        masked = mask_dialogue(_with_words(dialogue, filled), audio_CS, filled, clips, listener) if mask else None
    except Unready:
        raise
    except UserError as why:
        return Note(id=folder.name, reason=" ".join(str(why).split()))
    target = out / folder.name
    target.mkdir(parents=True, exist_ok=True)
    for part in target.glob(".*.part"):  # A run that was killed while writing left these.
        part.unlink()
    if masked:
        for file, sound in masked.sounds.items():
            write_flac(target / file, sound, RATE_HZ)
        write_line(target / "meta.json", masked.dialogue.to_json())
        return None
    for file in ("audio.flac", *map(voice_file, dialogue.agent_sides)):
        write_bytes(target / file, (folder / file).read_bytes())
    write_line(target / "meta.json", _with_words(dialogue, filled).to_json())
    return None


def _with_words(dialogue: Dialogue, filled: dict[str, Filled]) -> Dialogue:
    """Replaces the words of the sides that were heard, and what the record says of them."""
    sides: dict[str, Side] = {}
    for name in SIDES:
        side = dialogue.side(name)
        if name in filled:
            words = [word for utterance in filled[name].utterances for word in utterance.words]
            ordered = sorted(words, key=lambda word: (word.start, word.end))
            side = replace(side, words=tuple(replace(w, end=min(w.end, dialogue.seconds)) for w in ordered))
        sides[name] = side
    provenance = dialogue.provenance | (provenance_of(filled) if filled else {})
    gates = dialogue.gates | aligned_share(filled)
    return replace(dialogue, left=sides["left"], right=sides["right"], provenance=provenance, gates=gates)
