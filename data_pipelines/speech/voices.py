"""The voices that cloning engines may imitate: a manifest of clips, and `ppx-data voices`, which checks clips.

    voices:
    - path: anna/1.wav          # relative to the manifest
      speaker: anna
      sex: female
      accent: us
      licence: CC-BY-4.0
      consent: release of 2026-03-01     # what permits imitation; a clip without it is refused
      held_out: false
      sha256: 1c2f...

A speaker is held out by a hash of the name, decided once and stored: such voices never speak in training.
"""

# Shapes: C channels, S samples

import argparse
import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from tqdm import tqdm

from data_pipelines.arguments import add_old_flag
from data_pipelines.files import digest, save_once
from data_pipelines.records.schema import ID_PATTERN
from data_pipelines.records.split import bucket
from data_pipelines.sound.audio import CLIP_SUFFIXES, VOICE_SECONDS, Audio, read_audio
from data_pipelines.sound.levels import clipped_runs
from data_pipelines.speech.protocols import Voice
from model.errors import UserError
from model.text_safety import plain

VOICED_SECONDS = 3.0
HELD_OUT_SHARE = 0.1
SEXES = ("female", "male")
FIELDS = ("speaker", "sex", "accent", "licence", "consent")
MANIFEST = "voices.yaml"


@dataclass(kw_only=True, frozen=True)
class ConsentedClip:
    """One recording of one speaker, and the right to use it."""

    path: str
    speaker: str
    sex: Literal["female", "male"]
    accent: str
    licence: str
    consent: str
    held_out: bool
    sha256: str

    @property
    def key(self) -> str:
        """SPEAKER/CLIP."""
        return f"{self.speaker}/{Path(self.path).stem}"


@dataclass(frozen=True)
class Pool:
    """The clips of one manifest."""

    folder: Path
    clips: tuple[ConsentedClip, ...]

    @cached_property
    def sha256(self) -> str:
        """Identity of all clips and of what is said about them, wherever they lie."""
        return digest(*sorted(str(sorted((asdict(clip) | {"path": clip.key}).items())) for clip in self.clips))

    @cached_property
    def _by_key(self) -> dict[str, ConsentedClip]:
        return {clip.key: clip for clip in self.clips}

    def voices(self, engine: str) -> tuple[Voice, ...]:
        """One voice for each clip, as an engine that imitates it."""
        return tuple(
            Voice(
                key=f"{engine}/{clip.key}",
                sex=clip.sex,
                accent=clip.accent,
                held_out=clip.held_out,
                speaker=clip.speaker,
                licence=clip.licence,
                consent=clip.consent,
            )
            for clip in self.clips
        )

    def audio(self, key: str) -> tuple[Audio, int]:
        """A clip [samples] and its rate. Raises UserError for an unknown key or a clip that has changed."""
        if key not in self._by_key:
            raise UserError(f"{key}: no such voice in {self.folder / MANIFEST}", code="unknown-name")
        clip = self._by_key[key]
        path = self.folder / clip.path
        if not path.is_file() or _sha256(path) != clip.sha256:
            raise UserError(
                f"{path}: is missing or not the clip that was checked: run `ppx-data voices` again", code="checksum"
            )
        samples_CS, rate = read_audio(path)
        return samples_CS[0], rate


def load_pool(place: Path) -> Pool:
    """Reads a manifest, or voices.yaml in a folder. Clips without a checksum are checked now.

    Raises: UserError naming the entry that lacks something, is listed twice, or fails its checks.
    """
    path = place / MANIFEST if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"{path}: no such manifest of voices: make one with `ppx-data voices`", code="not-found")
    try:
        entries = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["voices"]
        clips = tuple(_clip(path.parent, dict(entry)) for entry in entries)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as why:
        if isinstance(why, UserError):
            raise UserError(f"{path}: {why}", code=why.code) from why
        raise UserError(
            f"{path}: not a manifest of voices ({' '.join(str(why).split())[:100]})",
            code="unreadable" if isinstance(why, (yaml.YAMLError, UnicodeDecodeError)) else "bad-record",
        ) from why
    twice = [key for key, count in Counter(clip.key for clip in clips).items() if count > 1]
    if twice or not clips:
        raise UserError(
            f"{path}: " + (f"voice {twice[0]} is there twice: rename a clip" if twice else "lists no voice"),
            code="bad-record",
        )
    both = {clip.speaker for clip in clips if clip.held_out} & {clip.speaker for clip in clips if not clip.held_out}
    if both:
        raise UserError(
            f"{path}: speaker {min(both)} is held out and not: a speaker must be one of them", code="bad-record"
        )
    return Pool(path.parent, clips)


def _clip(folder: Path, entry: dict[str, Any]) -> ConsentedClip:
    """One entry, completed and checked. Raises UserError naming the clip and the reason."""
    name = plain(str(entry.get("path", "an entry without path")))
    known = (*ConsentedClip.__dataclass_fields__,)
    if unknown := sorted(map(str, set(entry) - set(known))):
        raise UserError(f"{name}: unknown key {unknown[0]!r}: use {', '.join(known)}", code="bad-record")
    if reason := reason_against(entry):
        is_right_missing = reason.startswith(("no licence", "no consent"))
        raise UserError(f"{name}: {reason}", code="licence" if is_right_missing else "bad-record")
    if not isinstance(entry.setdefault("held_out", is_held_out(entry["speaker"])), bool):
        raise UserError(f"{name}: held_out {entry['held_out']!r}: give true or false", code="bad-record")
    if "sha256" not in entry:
        if reason := reason_against_sound(folder / entry["path"]):
            is_there = (folder / entry["path"]).is_file()
            raise UserError(f"{name}: {reason}", code="bad-audio" if is_there else "not-found")
        entry["sha256"] = _sha256(folder / entry["path"])
    return ConsentedClip(**entry)


def is_held_out(speaker: str, share: float = HELD_OUT_SHARE) -> bool:
    """By a hash of the speaker's name alone, so that more clips of a speaker never change sides."""
    return bucket(f"voice/{speaker}") < share


def reason_against(entry: dict[str, Any]) -> str:
    """Why an entry cannot be used, by what it states; "" if it can."""
    for field in ("path", *FIELDS):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            what = "whose voice may be imitated only with consent" if field == "consent" else "a text is needed"
            return f"no {field}: {what}"
    if not ID_PATTERN.fullmatch(entry["speaker"]) or not ID_PATTERN.fullmatch(Path(entry["path"]).stem):
        return "speaker and file name may hold letters, digits, '-' and '_' only"
    if entry["sex"] not in SEXES:
        return f"sex {entry['sex']!r}: give one of {', '.join(SEXES)}"
    return ""


def reason_against_sound(path: Path) -> str:
    """Why a recording cannot be a voice; "" if it can."""
    try:
        samples_CS, rate = read_audio(path)
    except UserError as why:
        return str(why).removeprefix(f"{path}: ")
    (low, high), seconds = VOICE_SECONDS, samples_CS.shape[1] / rate
    if samples_CS.shape[0] != 1:
        return f"{samples_CS.shape[0]} channels: one speaker on one channel is needed"
    if rate < 16_000:
        return f"{rate} Hz: at least 16000 are needed"
    if not low <= seconds <= high:
        return f"{seconds:.1f} s: {low:.0f} to {high:.0f} are needed"
    if clipped_runs(samples_CS):
        return f"clipped at {clipped_runs(samples_CS)} places"
    voiced = voiced_seconds(samples_CS[0], rate)
    if voiced < VOICED_SECONDS:
        return f"{voiced:.1f} s of voice: {VOICED_SECONDS:.0f} are needed"
    return ""


def voiced_seconds(audio: Audio, rate: int) -> float:
    """Returns how long there is sound, in seconds.

    Frames of 20 ms sound if they are within 35 dB of the loud ones (95th percentile) and above -55 dBFS.

    Pauses of less than 0.2 s count, as they belong to speech.
    """
    hop = rate // 50
    power = np.square(audio[: len(audio) // hop * hop].astype(np.float64)).reshape(-1, hop).mean(axis=1)
    level = 10 * np.log10(power + 1e-12)
    loud = np.flatnonzero(level > max(-55.0, float(np.percentile(level, 95)) - 35)) if len(level) else np.zeros(0)
    steps = np.diff(loud)
    return float(len(loud) + (steps[steps <= 10] - 1).sum()) / 50


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_voice(voices: Sequence[Voice], rng: Any) -> Voice:
    """Draws a voice: both sexes alike, then an accent, then speakers alike, then clips.

    An accent is drawn by the square root of its number of speakers, so that rare ones are heard more than their share,
    and yet their few speakers not all the time.
    """
    sex = rng.choice(sorted({voice.sex for voice in voices}))
    accents: dict[str, dict[str, list[Voice]]] = {}
    for voice in (voice for voice in voices if voice.sex == sex):
        accents.setdefault(voice.accent, {}).setdefault(voice.speaker or voice.key, []).append(voice)
    names = sorted(accents)
    accent = rng.choices(names, [len(accents[name]) ** 0.5 for name in names])[0]
    speaker = rng.choice(sorted(accents[accent]))
    return rng.choice(sorted(accents[accent][speaker], key=lambda voice: voice.key))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ppx-data voices`."""
    parser.add_argument("folder", type=Path, help="clips, in folders named by their speakers")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write; clips are named relative to it")
    parser.add_argument(
        "--speaker-table",
        type=Path,
        metavar="CSV",
        help=f"table with the columns {', '.join(FIELDS)} (default: FOLDER/speakers.csv)",
    )
    add_old_flag(parser, "--speakers", "--speaker-table")
    parser.add_argument("--heldout", type=float, default=HELD_OUT_SHARE, help="share of speakers kept from training")


def run(args: argparse.Namespace) -> None:
    """`ppx-data voices DIR --out voices.yaml`."""
    if not args.folder.is_dir():
        raise UserError(
            f"{args.folder}: no such folder: put clips into folders named by their speakers", code="not-found"
        )
    if not 0 <= args.heldout < 1:
        raise UserError(f"--heldout {args.heldout}: must be 0 to below 1", code="bad-value")
    speakers = _read_speakers(args.speaker_table or args.folder / "speakers.csv")
    files = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in CLIP_SUFFIXES)
    clips: list[ConsentedClip] = []
    rejected, taken = {}, set()
    for path in tqdm(files, unit="clip", desc="voices"):
        name = path.parent.name
        entry = {"path": _relative(path, args.out.parent), **speakers.get(name, {"speaker": name})}
        reason = "" if name in speakers else f"speaker {name!r} is not in the table of speakers"
        reason = reason or reason_against(entry) or reason_against_sound(path)
        if not reason and (name, path.stem) in taken:
            reason = f"voice {name}/{path.stem} is there already: rename the file"
        if reason:
            rejected[str(path.relative_to(args.folder))] = reason
        else:
            held_out = is_held_out(entry["speaker"], args.heldout)
            taken.add((name, path.stem))
            clips.append(ConsentedClip(**entry, held_out=held_out, sha256=_sha256(path)))  # type: ignore[arg-type]
    for name, reason in rejected.items():
        print(f"rejected {name}: {reason}")
    if not clips:
        raise UserError(f"{args.folder}: none of {len(files)} clips can be used; the reasons are above", code="no-data")
    listed = {"voices": [asdict(clip) for clip in clips], "rejected": rejected}
    save_once(args.out, yaml.safe_dump(listed, sort_keys=False, allow_unicode=True).encode())
    load_pool(args.out)
    held = {clip.speaker for clip in clips if clip.held_out}
    people = {clip.speaker: clip.sex for clip in clips}
    sexes = ", ".join(f"{count} {sex}" for sex, count in sorted(Counter(people.values()).items()))
    print(f"{len(clips)} clips of {len(people)} speakers ({sexes}; {len(held)} held out): {args.out}")
    print(f"{len(rejected)} clips were rejected")


def _relative(path: Path, folder: Path) -> str:
    """The clip as seen from the manifest, or its full path where that is not below it."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _read_speakers(path: Path) -> dict[str, dict[str, str]]:
    """Returns the rows of a table of speakers, by name. Raises UserError if it is missing or lacks a column."""
    if not path.is_file():
        raise UserError(
            f"{path}: no table of speakers: write one with the columns {', '.join(FIELDS)}", code="not-found"
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as why:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({why})", code="unreadable") from why
    missing = [field for field in FIELDS if rows and field not in rows[0]]
    if missing or not rows:
        raise UserError(
            f"{path}: " + (f"no column {missing[0]!r}" if missing else "no rows") + f": give {', '.join(FIELDS)}",
            code="bad-record",
        )
    plain = [{field: (row[field] or "").strip() for field in FIELDS} for row in rows]
    twice = [name for name, count in Counter(row["speaker"] for row in plain).items() if count > 1]
    if twice:
        raise UserError(f"{path}: speaker {twice[0]!r} has several lines: keep one", code="bad-record")
    return {row["speaker"]: row for row in plain}
