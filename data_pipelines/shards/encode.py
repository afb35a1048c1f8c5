"""`ppx-data shard`: dialogue folders -> Mimi codes -> shards.

The first pass encodes every dialogue into SHARDS/.work, so that a killed run loses one dialogue. The second packs the
tars, whose cuts depend on sizes alone. A run that was killed and repeated gives the same bytes.
"""

# Shapes: B batch, C channels, Q codebooks, S samples, T frames

import argparse
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import digest, sha256_file, write_json
from data_pipelines.records.folder import find_dialogues, load_dialogue, rejections, signature
from data_pipelines.records.schema import SIDES, Dialogue
from data_pipelines.shards.codec import Codec, SharedCodec, one_thread
from data_pipelines.shards.manifest import CodecFacts, Manifest, make_manifest, read_manifest, summary
from data_pipelines.shards.members import AUDIO, CODES, clip_name, voice_name
from data_pipelines.shards.pack import Codes, DialogueSummary, pack_all, tar_hashes
from data_pipelines.shards.rows import NAME as INDEX
from data_pipelines.shards.scan import build_index
from data_pipelines.sound.audio import VOICE_SECONDS, check_flac, loudness_normalise, read_audio, require_stereo_24k
from data_pipelines.sound.levels import clipped_runs
from model.config import SAMPLE_RATE
from model.devices import check_device
from model.errors import UserError
from model.files import LOCK, lock, write_bytes
from model.weights.sources import codec_path

WORK = ".work"
"""Folder in SHARDS that holds the codes until they are packed."""
ONE = Executor()


@dataclass(kw_only=True, frozen=True)
class Encoded:
    """The result of encoding one dialogue: its summary, or the reason why it is left out."""

    id: str
    summary: DialogueSummary | None = None
    was_there: bool = False
    """Whether an earlier run had encoded it."""
    reason: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data shard`."""
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, metavar="DIR", help="folders of dialogues")
    parser.add_argument("--codec", required=True, help="Mimi: small (shipped), a folder, a file or a hub repository")
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder to make, or to resume")
    parser.add_argument("--shard-mb", type=int, default=512, help="largest size of a tar in MB")
    parser.add_argument("--device", default="cpu", help="where to encode: cpu (default), cuda, cuda:1, ...")
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data shard`. Raises UserError as build_shards does, or if the device or the codec cannot be used."""
    executor = executor_of(args)
    on_gpu = args.device != "cpu"
    if executor.kind == "local":
        check_device(args.device)
    elif on_gpu != bool(executor.gpus):
        missing = "--gpus, e.g. --gpus 1" if on_gpu else "--device cuda"
        raise UserError(
            f"--device {args.device} and --gpus {executor.gpus:g} do not fit together: add {missing}",
            code="bad-combination",
        )
    weights = codec_path(args.codec).absolute()
    executor = replace(executor, paths=(*executor.paths, weights))
    build_shards(args.dialogues, SharedCodec(weights, args.device), args.out, shard_mb=args.shard_mb, executor=executor)


def build_shards(
    folders: Sequence[Path], codec: Codec, out: Path, *, shard_mb: int = 512, executor: Executor = ONE
) -> Manifest:
    """Encodes all dialogues below `folders` and packs them; returns the manifest.

    Each worker gets a pickled copy of `codec`. Encoding is spread over workers; packing is bound by the disk and
    done by this process. A dialogue that cannot be used is left out and listed in OUT/report.json with the reason.
    Units: `shard_mb` is the largest size of a tar in MB.
    Raises: UserError if `out` holds anything but an unfinished run, if another process is writing it ("in-use"), if an
    id occurs twice, or if nothing is usable.
    """
    if shard_mb < 1:
        raise UserError(f"--shard-mb {shard_mb}: give 1 or more", code="bad-value")
    if codec.card > np.iinfo(np.int16).max:
        raise UserError(
            f"the codec has {codec.card} codes a codebook: int16 shards hold at most 32767", code="bad-value"
        )
    found = find_dialogues(folders)
    fingerprint = codec.fingerprint()
    inputs = digest(f"{fingerprint} {shard_mb}", *(f"{d.name} {signature(d)}" for d in found))
    if (out / "manifest.json").is_file() and not any((out / left).exists() for left in (WORK, LOCK)):
        return _complete(out, inputs)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: use another --out", code="exists")
    with lock(out):
        if (out / "manifest.json").is_file():  # Another process has finished it meanwhile, or was killed just after.
            return _complete(out, inputs)
        return _build(found, codec, fingerprint, inputs, out, shard_mb, executor)


def _build(
    found: list[Path], codec: Codec, fingerprint: str, inputs: str, out: Path, shard_mb: int, executor: Executor
) -> Manifest:
    """Makes what is missing in `out`. Raises UserError as build_shards."""
    if any(path.name != LOCK for path in out.iterdir()) and not (out / WORK).is_dir():
        raise UserError(
            f"{out} exists and is not an unfinished `ppx-data shard`: use another --out", code="other-settings"
        )
    (out / WORK).mkdir(exist_ok=True)
    done = _encode_all(found, codec, fingerprint, out / WORK, executor)
    dialogues = [one.summary for one in done if one.summary]
    rejected = [{"id": one.id, "reason": one.reason} for one in done if not one.summary]
    write_json(out / "report.json", {"done": len(dialogues), "rejected": rejected})
    if not dialogues:
        raise UserError(
            f"none of {len(found)} dialogues can be used, see {out / 'report.json'}; the first reason is "
            f"{rejected[0]['reason']!r}",
            code="no-data",
        )
    shards = pack_all(dialogues, out, out / WORK, shard_mb * 1_000_000)
    index = {}
    for split in sorted({dialogue.split for dialogue in dialogues}):
        if problems := build_index(out / split, tar_hashes(shards, split)):
            raise UserError(
                f"a file of {out / split} changed during the run ({problems[0]}): start again", code="bad-shards"
            )
        index[split] = sha256_file(out / split / INDEX)
    silence, sine = (tuple(int(code) for code in codes) for codes in codec.constants())
    facts = CodecFacts(
        fingerprint=fingerprint,
        card=codec.card,
        num_codebooks=codec.num_codebooks,
        silence_codes=silence,
        sine_codes=sine,
    )
    manifest = make_manifest(dialogues, facts, shards, inputs, index)
    write_json(out / "manifest.json", asdict(manifest))
    shutil.rmtree(out / WORK)
    print(summary(out, manifest, len(rejected)))
    return manifest


def dialogue_audio(folder: Path, dialogue: Dialogue) -> np.ndarray:
    """Reads ID/audio.flac and checks it against its record.

    Shapes: float32 [2, samples], left and right.
    Raises: UserError if it is not stereo at 24 kHz, not as long as its transcript, clipped, or silent under words.
    """
    wav_CS = require_stereo_24k(folder / "audio.flac")
    seconds = wav_CS.shape[1] / SAMPLE_RATE
    if abs(seconds - dialogue.seconds) > 0.1:
        raise UserError(
            f"{folder / 'audio.flac'}: {seconds:.2f} s, but its transcript is for {dialogue.seconds:.2f} s: "
            "the transcript does not match the audio",
            code="bad-transcript",
        )
    for wav_S, side in zip(wav_CS, SIDES, strict=True):
        peak = max(float(wav_S.max()), -float(wav_S.min()))
        if peak >= 0.999 and clipped_runs(wav_S):
            raise UserError(
                f"{folder / 'audio.flac'}: {side} channel is clipped: record or mix it at a lower level",
                code="bad-audio",
            )
        if dialogue.side(side).words and peak < 1e-3:
            raise UserError(
                f"{folder / 'audio.flac'}: {side} channel is silent but has words: channels swapped?", code="bad-audio"
            )
    for side in dialogue.agent_sides:
        if not dialogue.side(side).words:
            raise UserError(f"{folder}: the agent ({side}) says no word: nothing to learn from", code="bad-transcript")
    return wav_CS


def voice_prompt(wav_CS: np.ndarray, rate: int, where: str) -> np.ndarray:
    """Checks a voice prompt and scales it to -24 LUFS, as inference feeds it.

    Shapes: float32 [1, samples] -> the same.
    Raises: UserError that names `where` if it is not mono at 24 kHz, not 3 to 10 s long, or silent.
    """
    if len(wav_CS) != 1 or rate != SAMPLE_RATE:
        raise UserError(
            f"{where}: {len(wav_CS)} channels at {rate} Hz: a voice prompt is mono at {SAMPLE_RATE} Hz",
            code="bad-audio",
        )
    seconds, (low, high) = wav_CS.shape[1] / rate, VOICE_SECONDS
    if not low - 0.08 <= seconds <= high + 0.08:
        raise UserError(f"{where}: {seconds:.2f} s: a voice prompt lasts {low:g} to {high:g} s", code="bad-audio")
    try:
        return loudness_normalise(wav_CS, rate)
    except UserError as why:
        raise UserError(f"{where}: {why}", code=why.code) from why


@torch.inference_mode()
def encode_audio(codec: Codec, wav_CS: np.ndarray) -> np.ndarray:
    """Mimi codes of each channel, from a fresh state; the last frame is padded with zeros.

    A CPU encodes with one thread, and one channel after the other: two at once do not fit the cache and take 1.2 (Mimi)
    to 1.6 times (the small codec) as long.
    Shapes: float32 [C, S] -> int16 [C, 8, ceil(S / 1920)].
    """
    wav_B1S = torch.from_numpy(wav_CS).unsqueeze(1)
    batches = wav_B1S.split(1) if str(codec.device) == "cpu" else [wav_B1S]
    with one_thread():
        codes_BQT = torch.cat([codec.encode(batch) for batch in batches]).numpy()
    if codes_BQT.min() < 0 or codes_BQT.max() >= codec.card:
        raise RuntimeError(f"the codec gave codes outside 0..{codec.card - 1}")
    return codes_BQT.astype(np.int16)


def encode_dialogue(codec: Codec, folder: Path, dialogue: Dialogue) -> dict[str, Codes]:
    """All code members of one dialogue, by member name.

    Raises: UserError if a file is no FLAC, and as dialogue_audio and voice_prompt.
    """
    for name in (AUDIO, *map(clip_name, dialogue.agent_sides)):
        check_flac(folder / name)
    wav_CS = dialogue_audio(folder, dialogue)
    clips = {side: folder / clip_name(side) for side in dialogue.agent_sides}
    voices = {side: voice_prompt(*read_audio(path), str(path)) for side, path in clips.items()}
    left, right = encode_audio(codec, wav_CS)
    members = {CODES: np.concatenate([left, right])}
    for side, wav_1S in voices.items():
        members[voice_name(side)] = encode_audio(codec, wav_1S)[0]
    return members


def _complete(out: Path, inputs: str) -> Manifest:
    manifest = read_manifest(out)
    if manifest.inputs != inputs:
        raise UserError(
            f"{out} was made from other dialogues, codec or --shard-mb: use another --out", code="other-settings"
        )
    shutil.rmtree(out / WORK, ignore_errors=True)  # a run may have been killed between the manifest and this
    print(f"{out}: complete, made from the same dialogues: nothing to do")
    return manifest


def _encode_all(found: list[Path], codec: Codec, fingerprint: str, work: Path, executor: Executor) -> list[Encoded]:
    """The first pass: puts the codes of every dialogue into `work`; returns the results by id."""
    results = executor.run(
        partial(encode_folder, codec=codec, fingerprint=fingerprint, work=work),
        found,
        lost=lambda folder, reason: Encoded(id=folder.name, reason=f"{folder}: {reason}"),
    )
    bar = tqdm(results, total=len(found), desc="encode", unit="dialogue", disable=None)
    done = sorted(bar, key=lambda one: one.id)
    if before := sum(one.was_there for one in done):
        print(f"{before} of {len(found)} dialogues were encoded before")
    return done


def encode_folder(folder: Path, *, codec: Codec, fingerprint: str, work: Path) -> Encoded:
    """Puts the codes of one dialogue into WORK/ID.npz, unless they are there already."""
    try:
        dialogue = load_dialogue(folder)
        if reasons := rejections(folder):
            raise UserError(f"gate {'; '.join(reasons)}", code="bad-record")
        key = digest(fingerprint, signature(folder))
        store = work / f"{dialogue.id}.npz"
        was_there = store.is_file() and _cached(store, key)
        if not was_there:
            members = encode_dialogue(codec, folder, dialogue)
            content = io.BytesIO()
            np.savez(content, signature=np.array(key), **members)  # type: ignore[arg-type]
            write_bytes(store, content.getvalue())
        return Encoded(id=folder.name, summary=DialogueSummary.of(dialogue, folder, key), was_there=was_there)
    except UserError as why:
        if why.code == "no-device":  # the fault of this machine, not of the dialogue
            raise
        return Encoded(id=folder.name, reason=str(why))


def _cached(store: Path, signature: str) -> bool:
    try:
        with np.load(store, allow_pickle=False) as values:
            return str(values["signature"]) == signature
    except (ValueError, OSError, KeyError, BadZipFile):
        return False  # a file that is damaged on disk is encoded again
