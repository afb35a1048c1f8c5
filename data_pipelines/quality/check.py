"""`ppx-data check`: are these shards whole, and does every sample hold what training relies on?"""

# Shapes: C channels, P prompt frames, Q codebooks, S samples, T frames

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.arguments import add_old_flag, refuse_old_flag
from data_pipelines.files import sha256_file
from data_pipelines.listening.asr import Recogniser, open_asr
from data_pipelines.quality.transcription import hear_split
from data_pipelines.records.schema import SIDES, SPLITS, Dialogue
from data_pipelines.shards.codec import Codec
from data_pipelines.shards.encode import encode_audio, voice_prompt
from data_pipelines.shards.index import BadSample, Sample, ShardReader
from data_pipelines.shards.manifest import Manifest, read_manifest
from data_pipelines.shards.rows import NAME, Index
from data_pipelines.shards.scan import scan_split
from data_pipelines.sound.audio import VOICE_SECONDS
from model.config import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from model.weights.sources import codec_path

AGAIN = 4
"""How many samples of each split are encoded anew."""
MAX_WER = 0.5
"""The highest word error rate that passes. Recognisers mishear 3 to 5 % of the words, at worst 20 % of a channel; other
words or swapped channels give 0.9 and more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data check`."""
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder made by `ppx-data shard`")
    parser.add_argument(
        "--codec", help="encode some samples again and compare: small (shipped), a folder, a file or a hub repository"
    )
    parser.add_argument(
        "--codec-samples", type=int, metavar="N", help=f"with --codec: samples of each split (default: {AGAIN})"
    )
    parser.add_argument(
        "--asr-samples", type=int, metavar="N", help="transcribe N dialogues of each split (default: none)"
    )
    parser.add_argument(
        "--asr", help="with --asr-samples: recogniser: tiny.en (default), a faster-whisper model, or parakeet:MODEL"
    )
    parser.add_argument("--device", help="with --asr-samples: where it runs: cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--max-wer",
        type=float,
        help=f"with --asr-samples: the highest word error rate that passes (default: {MAX_WER})",
    )
    add_old_flag(parser, "--again", "--codec-samples")
    add_old_flag(parser, "--asr-model", "--asr")


def run(args: argparse.Namespace) -> None:
    """Prints every problem and raises UserError if there is one; else one line for each split."""
    codec = recogniser = None
    if args.asr is not None and args.asr.isdigit():
        refuse_old_flag(f"--asr {args.asr}", f"--asr-samples {args.asr}")
    if args.codec_samples is not None and (args.codec is None or args.codec_samples < 1):
        raise UserError(
            f"--codec-samples {args.codec_samples}: give 1 or more, together with --codec",
            code="bad-combination" if args.codec is None else "bad-value",
        )
    if args.asr_samples is not None and args.asr_samples < 1:
        raise UserError(f"--asr-samples {args.asr_samples}: give 1 or more", code="bad-value")
    if args.max_wer is not None and (args.asr_samples is None or not args.max_wer > 0):
        raise UserError(
            f"--max-wer {args.max_wer:g}: give more than 0, together with --asr-samples",
            code="bad-combination" if args.asr_samples is None else "bad-value",
        )
    for option, value in (("--asr", args.asr), ("--device", args.device)):
        if value is not None and args.asr_samples is None:
            raise UserError(
                f"{option} {value} has an effect with --asr-samples only: add --asr-samples N", code="bad-combination"
            )
    if args.codec is not None:
        from model.mimi.files import load_mimi

        codec = load_mimi(codec_path(args.codec)).eval()
    if args.asr_samples is not None:
        recogniser = open_asr(args.asr or "tiny.en", args.device or "cpu")
    problems = check_shards(args.shards, codec, args.codec_samples or AGAIN)
    if recogniser is not None and not problems:  # samples that cannot be read cannot be heard
        problems = _check_words(args.shards, recogniser, args.asr_samples, args.max_wer or MAX_WER)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{args.shards} has {len(problems)} problems, listed above: make these shards again", code="bad-shards"
        )
    for split, by_source in read_manifest(args.shards).content.items():
        counts = ", ".join(f"{source} {group.samples}" for source, group in by_source.items())
        print(f"{args.shards / split}: good ({counts} samples)")
    for note in (*_missing_hashes(args.shards), *shared_speakers(args.shards)):
        print(f"note: {note}")


def check_shards(shards: Path, codec: Codec | None = None, again: int = AGAIN) -> list[str]:
    """The problems of a shard folder, one line each; [] if it is good.

    It checks hashes, index, codes, times and licences of every sample. With a codec it also encodes `again` samples of
    each split anew and compares.
    Raises: UserError if there is no manifest to check against.
    """
    manifest = read_manifest(shards)
    problems, hashes = _check_files(shards, manifest)
    if codec is not None and codec.fingerprint() != manifest.codec.fingerprint:
        problems.append("the codec is not the one that made these shards: give that one with --codec")
        codec = None
    ids: dict[str, str] = {}
    for split in SPLITS:
        if split not in manifest.content:
            continue
        try:
            own = {name.removeprefix(f"{split}/"): found for name, found in hashes.items() if name.startswith(split)}
            problems += _check_index(shards / split, own, manifest.index.get(split))
            reader = ShardReader(shards / split)
        except UserError as why:
            problems.append(str(why))
            continue
        problems += _check_counts(reader, manifest, split)
        problems += _check_samples(reader, manifest, split)
        for key in sorted({row.id for row in reader.rows}):
            if ids.setdefault(key, split) != split:
                problems.append(f"dialogue {key} is in {ids[key]} and in {split}")
        if codec is not None:
            problems += _check_codes(reader, codec, again)
    return problems


def shared_speakers(shards: Path) -> list[str]:
    """A note if agent voices occur in both splits, since held-out losses then say nothing about new voices."""
    voices = {}
    for split in SPLITS:
        if (shards / split).is_dir():
            reader = ShardReader(shards / split)
            voices[split] = {reader.dialogue(i).side(row.side).speaker for i, row in enumerate(reader.rows)}
    both = sorted(voices.get("train", set()) & voices.get("heldout", set()))
    return [f"{len(both)} agent voices are in both splits: {', '.join(both[:5])}"] if both else []


def _missing_hashes(shards: Path) -> list[str]:
    """A note if an early version made the shards, since indexes that are changed later are then not noticed."""
    manifest = read_manifest(shards)
    bare = ", ".join(split for split in SPLITS if split in manifest.content and split not in manifest.index)
    return [f"the manifest has no hash of {NAME} ({bare}): `ppx-data index {shards}` adds it"] if bare else []


def _check_files(shards: Path, manifest: Manifest) -> tuple[list[str], dict[str, str]]:
    """The problems of the tars, and the SHA-256 of those that have the size of the manifest."""
    problems, hashes = [], {}
    for name, expected in tqdm(manifest.shards.items(), desc="hash", unit="shard", disable=None):
        path = shards / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != expected.bytes:
            problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {expected.bytes}")
        else:
            hashes[name] = sha256_file(path)
            if hashes[name] != expected.sha256:
                problems.append(f"{name}: its sha256 is not the manifest's: the content has changed")
    found = [str(path.relative_to(shards)) for path in sorted(shards.glob("*/*.tar"))]
    return [*problems, *(f"{name}: not in the manifest" for name in found if name not in manifest.shards)], hashes


def _check_index(folder: Path, hashes: Mapping[str, str], stated: str | None) -> list[str]:
    """The differences between the stored index, one that is made now, and the hash that the manifest states."""
    fresh, problems = scan_split(folder, hashes)
    old = Index.load(folder)
    if stated not in (None, old.sha256):
        problems.append(f"{folder / NAME}: its sha256 is not the manifest's: the content has changed")
    same = old.shard_names == fresh.shard_names and old.source_names == fresh.source_names
    same = same and old.shard_hashes in ([], fresh.shard_hashes)
    if not same or not all(np.array_equal(column, old.columns[name]) for name, column in fresh.columns.items()):
        problems.append(f"{folder / NAME}: not the index of these tars: make it again with `ppx-data index {folder}`")
    return problems


def _check_counts(reader: ShardReader, manifest: Manifest, split: str) -> Iterator[str]:
    held = {source: len(rows) for source, rows in reader.sources().items()}
    stated = {source: counts.samples for source, counts in manifest.content[split].items()}
    for source in sorted(held.keys() | stated.keys()):
        if held.get(source, 0) != stated.get(source, 0):
            yield f"{split}: {source}: {held.get(source, 0)} samples, the manifest says {stated.get(source, 0)}"


def _check_samples(reader: ShardReader, manifest: Manifest, split: str) -> list[str]:
    problems = []
    for i, row in enumerate(tqdm(reader.rows, desc=f"check {split}", unit="sample", disable=None)):
        try:
            faults = _faults(reader.read(i), reader.dialogue(i), manifest, split)
            wav_CS, rate = reader.audio(i)
        except BadSample as why:
            problems.append(f"{split}: {why}")
            continue
        if rate != SAMPLE_RATE or len(wav_CS) != 2 or -(-wav_CS.shape[1] // FRAME_SAMPLES) != row.num_frames:
            faults.append(f"audio of {wav_CS.shape} at {rate} Hz does not fit {row.num_frames} frames")
        problems += [f"{split}: {row.id}/{row.side}: {fault}" for fault in faults]
    return problems


def _faults(sample: Sample, dialogue: Dialogue, manifest: Manifest, split: str) -> list[str]:
    """The faults of one sample that could be read."""
    faults, card, agent = [], manifest.codec.card, dialogue.side(sample.side)
    for name, codes in (("codes", sample.codes_QT), ("voice codes", sample.voice_codes_QP)):
        if int(codes.max()) >= card:
            faults.append(f"{name} up to {int(codes.max())}, the codec has 0 to {card - 1}")
    seconds, voice_seconds = sample.codes_QT.shape[1] / FRAME_RATE, sample.voice_codes_QP.shape[1] / FRAME_RATE
    faults += [
        f"{side} words end after the audio of {seconds:.2f} s"
        for side in SIDES
        if any(word.end > seconds + 0.05 for word in dialogue.side(side).words)
    ]
    stored = [(word.text, word.start) for word in agent.words]
    if sample.words != stored or sample.role_prompt != agent.role_prompt:
        faults.append("words or role prompt for training are not those of its record")
    if not agent.words:
        faults.append("the agent says no word")
    if not VOICE_SECONDS[0] - 0.1 <= voice_seconds <= VOICE_SECONDS[1] + 0.1:
        faults.append(f"a voice prompt of {voice_seconds:.2f} s")
    if dialogue.split != split:
        faults.append(f"its split is {dialogue.split}")
    if dialogue.licence not in manifest.licences:
        faults.append(f"licence {dialogue.licence!r} is not in the manifest")
    return faults


def _check_words(shards: Path, recogniser: Recogniser, num: int, max_wer: float) -> list[str]:
    """Prints the word error rates of `num` dialogues of each split; returns a problem for each above `max_wer`."""
    print(f"heard by {recogniser.identity()}")
    problems = []
    for split in (split for split in SPLITS if (shards / split).is_dir()):
        lines, found = hear_split(ShardReader(shards / split), recogniser, num, max_wer)
        print(*lines, sep="\n")
        problems += found
    return problems


def _check_codes(reader: ShardReader, codec: Codec, again: int) -> list[str]:
    """Encodes evenly spaced samples anew and compares.

    Codes are equal on the machine that made them. Elsewhere the last bit of a float may change a code, so 1 % of the
    codes may differ.
    """
    problems = []
    for i in sorted({int(n) for n in np.linspace(0, len(reader) - 1, again)}):
        row = reader.rows[i]
        try:
            sample, (wav_CS, _) = reader.read(i), reader.audio(i)
            voice_QP = encode_audio(codec, voice_prompt(*reader.voice_clip(i), "voice.flac"))[0]
        except UserError as why:
            problems.append(f"{reader.name}: {row.id}/{row.side}: {why}")
            continue
        codes_QT = np.concatenate(encode_audio(codec, wav_CS if row.side == "left" else wav_CS[::-1].copy()))
        for name, ours, stored in (
            ("codes", codes_QT, sample.codes_QT.numpy()),
            ("voice codes", voice_QP, sample.voice_codes_QP.numpy()),
        ):
            share = float((ours != stored).mean()) if ours.shape == stored.shape else 1.0
            if share > 0.01:
                problems.append(f"{reader.name}: {row.id}/{row.side}: {share:.1%} of its {name} change on encoding")
    return problems
