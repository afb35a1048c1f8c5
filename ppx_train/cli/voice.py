"""`ppx-voice`: the voices that a model can be prompted with, in a folder of files with their terms of use."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.arguments import Parser, add_version
from data_pipelines.sound.clip_faults import CHECKS
from model.errors import UserError
from model.text_safety import plain
from ppx_train import __version__
from ppx_train.cli.run import run

if TYPE_CHECKING:
    from model.mimi.codec import Mimi


def main() -> None:
    """The entry point of the command."""
    run(command)


def parser() -> Parser:
    """The parser of the command's words."""
    parser = Parser(prog="ppx-voice", description="Works on the voices that a model can be prompted with.")
    add_version(parser, __version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    add = verbs.add_parser("add", help="check a clip of a speaker and make a voice of it", description=ADD)
    _add_arguments(add)
    listed = verbs.add_parser("list", help="list voices and their terms", description="Lists voices and their terms.")
    _where(listed, has_codec=False)
    play = verbs.add_parser("play", help="play a voice as the codec gives it back", description=PLAY)
    play.add_argument("name", metavar="NAME", help="the voice's id")
    play.add_argument("--out", type=Path, metavar="WAV", help="write it instead of playing it (default: the speaker)")
    play.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    _where(play)
    remove = verbs.add_parser("remove", help="delete a voice", description="Deletes a voice's file, after a question.")
    remove.add_argument("name", metavar="NAME", help="the voice's id")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    _where(remove, has_codec=False)
    check = verbs.add_parser("check", help="verify all voices of a folder", description=CHECK)
    _where(check)
    convert = verbs.add_parser("convert", help="convert pickled voices of PersonaPlex", description=CONVERT)
    _add_conversion(convert)
    work = {add: _add, listed: _list, play: _play, remove: _remove, check: _check, convert: _convert}
    for verb, do in work.items():
        verb.set_defaults(do=do)
    return parser


ADD = (
    "Checks a clip for length, level, clipping, noise, share of speech and number of speakers, and makes a voice of "
    "it. Nobody's voice is added without consent."
)
PLAY = "Decodes a voice, to hear what the model is given of it."
CHECK = "Compares each voice's checksum and codec, and looks for consent, licence and files that are no voices yet."
CONVERT = "Converts pickled voices of PersonaPlex to voice files that any model with the same codec takes."


def _where(parser: argparse.ArgumentParser, *, has_codec: bool = True) -> None:
    """The options that say which folder of voices is meant, and which codec."""
    codec = ", whose codec is used" if has_codec else ""
    parser.add_argument(
        "--model", metavar="DIR", help=f"the model{codec}; its voices are those in its folder voices (no default)"
    )
    parser.add_argument(
        "--voice-prompt-dir", type=Path, metavar="DIR", help="another folder of voices (default: the model's)"
    )
    if has_codec:
        parser.add_argument(
            "--codec", metavar="NAME",
            help="instead of --model: small, a codec's folder or file, or a hub repository (default: the model's)",
        )  # fmt: skip


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clip", type=Path, metavar="CLIP", help="audio of one speaker, 3 to 10 s; 1 to 30 s are accepted")
    add("--consent", required=True, metavar="TEXT", help="why the speaker may be imitated, such as a release of a date")
    add("--name", metavar="ID", help="id of letters, digits, - and _ (default: the name of the file)")
    add("--label", metavar="TEXT", help="the speaker's name for people (default: the id)")
    add("--licence", metavar="TEXT", help="licence of the voice; without one it cannot leave with a model (no default)")
    add(
        "--skip", action="append", choices=CHECKS, default=[], metavar="CHECK",
        help=f"leave a check out: {', '.join(CHECKS)}; may be repeated (default: none)",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace another voice of this id")
    _where(parser)


def _add_conversion(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("voice", type=Path, metavar="VOICE.pt", help="pickled voice of a PersonaPlex model, or a folder of them")
    add(
        "--model", required=True, metavar="DIR",
        help="the model that the voice was made with: a folder or a hub repository, e.g. nvidia/personaplex-7b-v1",
    )  # fmt: skip
    add("--revision", metavar="REV", help="revision of the hub repository (default: its main branch)")
    add("--out", type=Path, required=True, metavar="FILE", help="voice file to write, or a folder for a folder")
    add("--licence", metavar="TEXT", help="licence of the voice (default: that of its model)")
    add("--consent", metavar="TEXT", help="why the speaker may be imitated (default: not stated)")
    add("--overwrite", action="store_true", help="replace files that are there")


def command(words: Sequence[str]) -> None:
    """Does what the verb says."""
    args = parser().parse_args(words)
    args.do(args)


def _add(args: argparse.Namespace) -> None:
    from ppx_train.voices.clip import Speaker, advice, voice_of_clip
    from ppx_train.voices.folder import save_voice

    folder = _folder(args)
    codec, lufs = _codec(args)
    speaker = Speaker(consent=args.consent, name=args.name, label=args.label, licence=args.licence)
    voice, facts = voice_of_clip(args.clip, speaker, codec, lufs=lufs, skip=args.skip)
    path = save_voice(folder, voice, overwrite=args.overwrite)
    skipped = f"; not checked: {', '.join(args.skip)}" if args.skip else ""
    print(f"{path}: voice {voice.id} of {facts.seconds:.1f} s, {facts.lufs:.0f} LUFS{skipped}")
    for line in advice(facts, args.skip):
        print(f"note: {line}")


def _list(args: argparse.Namespace) -> None:
    from ppx_train.voices.folder import unready, voice_paths
    from ppx_train.voices.voice_file import read_texts

    folder = _folder(args)
    head = ("id", "seconds", "label", "licence", "consent")
    rows: list[tuple[str, ...]] = [head]
    damaged = []
    for name, path in voice_paths(folder).items():
        try:
            texts, seconds = read_texts(path)
        except UserError as why:
            damaged.append(str(why))
            continue
        rows.append((name, f"{seconds:.1f}", *(texts.get(key, "not stated") for key in head[2:])))
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]))
    print(*damaged, sep="\n", end="\n" * bool(damaged))
    for path in unready(folder):
        print(f"no voice yet: {path.name}")


def _play(args: argparse.Namespace) -> None:
    from model.extras import require
    from ppx_train.voices.clip import decode_voice, write_wav
    from ppx_train.voices.folder import find_voice_file
    from ppx_train.voices.voice_file import check_codec, read_voice

    path = find_voice_file(_folder(args), args.name)
    if args.out is not None and args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists: choose another file, or give --overwrite", code="exists")
    codec, _ = _codec(args)
    voice = read_voice(path, codec)
    check_codec(voice, codec.fingerprint(), path)
    audio = decode_voice(voice, codec)
    if args.out is not None:
        write_wav(args.out, audio)
        print(f"{args.out}: {voice.seconds:.1f} s of voice {args.name}")
        return
    fix = "give --out FILE.wav and play that"
    try:
        sounddevice = require("sounddevice", extra="mic")
    except OSError as why:  # The package is there, and its library PortAudio is not.
        raise UserError(f"no sound device can be used ({why}): {fix}", code="no-device") from why
    try:
        sounddevice.play(audio, codec.config.sample_rate, blocking=True)
    except sounddevice.PortAudioError as why:
        raise UserError(f"no sound device can be used ({why}): {fix}", code="no-device") from why


def _remove(args: argparse.Namespace) -> None:
    from ppx_train.voices.folder import find_voice_file

    path = find_voice_file(_folder(args), args.name)
    if not args.yes:
        if not sys.stdin.isatty():
            raise UserError(f"{path}: nobody is there to be asked, give --yes to delete it", code="missing-option")
        if input(f"delete {plain(str(path))}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("kept")
            return
    path.unlink()
    print(f"{path}: deleted")


def _check(args: argparse.Namespace) -> None:
    from ppx_train.voices.folder import check_voices

    folder = _folder(args)
    codec, _ = _codec(args)
    bad = total = 0
    for path, faults in check_voices(folder, codec, codec.fingerprint()):
        total, bad = total + 1, bad + bool(faults)
        for fault in faults:
            print(fault)
        if not faults:
            print(f"{path}: good")
    if bad or not total:
        what = f"{bad} of {total} voices have faults, see above" if total else "holds no voice"
        raise UserError(f"{folder}: {what}", code="bad-record" if total else "no-data")


def _convert(args: argparse.Namespace) -> None:
    from ppx_train.export.convert_voice import convert

    voices = convert(
        args.voice, args.model, args.out, args.revision, args.licence, args.consent, overwrite=args.overwrite
    )
    for voice in voices:
        how = "bit by bit" if voice.exact else "up to rounding"
        print(f"{voice.path}: {voice.frames} frames, which give the embeddings of {voice.source.name} {how}")


def _folder(args: argparse.Namespace) -> Path:
    """The folder of voices that is meant. Raises UserError if none is, or the model is no folder here."""
    from ppx_train.voices.folder import VOICES

    if args.voice_prompt_dir is not None:
        return Path(args.voice_prompt_dir)
    if args.model is None:
        raise UserError("no folder of voices: give --model DIR, or --voice-prompt-dir", code="missing-option")
    if not Path(args.model).is_dir():
        raise UserError(
            f"--model {args.model}: no such folder; for the codec of a hub repository give --voice-prompt-dir, too",
            code="not-found",
        )
    return Path(args.model) / VOICES


def _codec(args: argparse.Namespace) -> "tuple[Mimi, float]":
    """The codec that is meant, and the LUFS of its model's voices. Raises UserError if none or two are."""
    from data_pipelines.sound.audio import VOICE_LUFS
    from model.mimi.files import load_mimi
    from model.weights.sources import codec_path
    from ppx_train.inference.loading import load_codec

    if args.codec is not None and args.model is not None:
        raise UserError(f"--codec {args.codec} has no effect beside --model: give one of them", code="bad-combination")
    if args.codec is not None:
        return load_mimi(codec_path(args.codec)), VOICE_LUFS
    if args.model is None:
        raise UserError("no codec: give --model, or --codec", code="missing-option")
    return load_codec(args.model)
