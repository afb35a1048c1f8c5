"""What may happen to the user's voice on its way: a room, noise, a codec, a level. Off unless asked for.

Settings are a YAML file (or the name of one in configs/augment) with any of these sections; `share` is the
probability of each, ranges are drawn from uniformly:

    room:  {share: 0.5, rt60: [0.2, 0.6], drr_db: [0, 12]}
    noise: {share: 0.5, kinds: [white, pink, babble, folder], folder: DIR, snr_db: [10, 30]}
    codec: {share: 0.5, kinds: [mulaw, gsm, opus, mp3]}
    level: {share: 0.5, db: [-6, 6]}

They are applied in this order, to the user's channel alone, and the words keep their times.
"""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from data_pipelines.files import digest
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import RATE_HZ, Audio, read_audio, to_mono_24k, to_rate
from model.errors import UserError

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "augment"
NOISE_KINDS = ("white", "pink", "babble", "folder")
CODECS = {"mulaw": 8000, "gsm": 8000, "opus": 24_000, "mp3": 24_000}
"""The rate in Hz at which each codec works."""
RANGES = {
    "room": {"rt60": (0.05, 3.0), "drr_db": (-10.0, 40.0)},
    "noise": {"snr_db": (-5.0, 60.0)},
    "codec": {},
    "level": {"db": (-20.0, 20.0)},
}
SILENT_USER_RMS = 10 ** (-30 / 20)
"""The level that noise is mixed to where the user never speaks."""
BABBLE_VOICES = 5
PEAK = 0.85
"""The highest peak of every channel (see data_pipelines.speech.stitch): 1.4 dB below full scale."""


@dataclass(kw_only=True, frozen=True)
class Augmentation:
    """Checked settings. `sections` as in the file; `sha256` covers them and the noises of the folder."""

    name: str
    sections: dict[str, dict[str, Any]]
    noises: tuple[Path, ...]
    sha256: str

    @property
    def needs_babble(self) -> bool:
        """Whether utterances of other people may be mixed in."""
        return "babble" in self.sections.get("noise", {}).get("kinds", ())


def load_augmentation(name: str | Path) -> Augmentation:
    """Reads a file, or a preset by its name. Raises UserError naming the key that is unknown or out of range."""
    path = PRESETS / f"{name}.yaml" if Path(name).suffix == "" else Path(name)
    if not path.is_file():
        presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"--augment {name}: no such file: give a YAML file or one of {presets}", code="not-found")
    try:
        sections = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        raise UserError(f"{path}: not YAML ({' '.join(str(why).split())[:100]})", code="unreadable") from why
    if not isinstance(sections, dict) or not sections:
        raise UserError(f"{path}: name at least one of {', '.join(RANGES)}", code="bad-record")
    for section, given in sections.items():
        if section not in RANGES:
            raise UserError(f"{path}: unknown section {section!r}: use {', '.join(RANGES)}", code="bad-record")
        _check_section(f"{path}: {section}", section, given)
    folder = sections.get("noise", {}).get("folder")
    noises = _noises(path.parent / folder) if folder else ()
    listed = (f"{noise.name} {noise.stat().st_size}" for noise in noises)
    plain = {section: {k: v for k, v in given.items() if k != "folder"} for section, given in sections.items()}
    return Augmentation(name=path.stem, sections=sections, noises=noises, sha256=digest(repr(plain), *listed))


def _check_section(where: str, section: str, given: Any) -> None:
    kinds = {"noise": NOISE_KINDS, "codec": tuple(CODECS)}.get(section)
    known = {"share", *RANGES[section], *(["kinds"] if kinds else []), *(["folder"] if section == "noise" else [])}
    if not isinstance(given, dict) or set(given) - known or known - {"folder"} - set(given):
        found = ", ".join(map(str, given)) if isinstance(given, dict) else repr(given)
        raise UserError(
            f"{where} has {found}: it needs {', '.join(sorted(known - {'folder'}))} and nothing unknown",
            code="bad-record",
        )
    if not _is_number(given["share"]) or not 0 <= given["share"] <= 1:
        raise UserError(f"{where}.share {given['share']!r}: must be 0 to 1", code="bad-record")
    for key, (low, high) in RANGES[section].items():
        span = given[key]
        is_span = isinstance(span, list) and len(span) == 2 and all(map(_is_number, span))
        if not (is_span and low <= span[0] <= span[1] <= high):
            raise UserError(
                f"{where}.{key} {span!r}: must be [LOW, HIGH] within {low:g} to {high:g}", code="bad-record"
            )
    is_list = kinds and isinstance(given["kinds"], list) and given["kinds"]
    if kinds and not (is_list and all(kind in kinds for kind in given["kinds"])):
        raise UserError(f"{where}.kinds {given['kinds']!r}: choose from {', '.join(kinds)}", code="bad-record")
    if section == "noise" and isinstance(given.get("folder"), str) != ("folder" in given["kinds"]):
        raise UserError(f"{where}: give `folder: DIR` if, and only if, kinds lists folder", code="bad-record")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _noises(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".wav", ".flac", ".ogg")))
    if not found:
        raise UserError(f"{folder}: no noise there: put WAV or FLAC files into it", code="no-data")
    return found


Babble = Callable[[], Sequence[Audio]]


def augment(
    user: Audio, words: Sequence[Word], settings: Augmentation, key: str, babble: Babble
) -> tuple[Audio, dict[str, Any]]:
    """Returns the user's channel [samples] at 24 kHz, changed, and a record of the changes.

    The result depends on the arguments alone. `babble` returns utterances of other people; it is called only if they
    are needed.
    """
    record: dict[str, Any] = {"settings": settings.name, "sha256": settings.sha256}
    for section, given in _in_order(settings.sections):
        rng = random.Random(
            f"{key}/augment/{section}"
        )  # Each section has random numbers of its own, so that it changes nothing for the others.
        if rng.random() >= given["share"]:
            continue
        if section == "room":
            rt60, drr_db = (round(rng.uniform(*given[name]), 3) for name in ("rt60", "drr_db"))
            user = reverberate(user, room_response(rt60, drr_db, _noise_seed(rng)))
            record["room"] = {"rt60": rt60, "drr_db": drr_db}
        elif section == "noise":
            kind, snr_db = rng.choice(sorted(given["kinds"])), round(rng.uniform(*given["snr_db"]), 2)
            noise, name = _noise(kind, len(user), rng, settings, babble)
            user = user + noise * np.float32(speech_rms(user, words) / 10 ** (snr_db / 20) / _rms(noise))
            record["noise"] = {"kind": kind, "snr_db": snr_db} | ({"file": name} if name else {})
        elif section == "codec":
            kind = rng.choice(sorted(given["kinds"]))
            user = through_codec(user, kind)
            record["codec"] = {"kind": kind}
        else:
            db = round(rng.uniform(*given["db"]), 2)
            user = user * np.float32(10 ** (db / 20))
            record["level"] = {"db": db}
    peak = float(np.abs(user).max(initial=0.0))
    if peak > PEAK:
        user = user * np.float32(PEAK / peak)
        record["turned_down_db"] = round(20 * float(np.log10(PEAK / peak)), 2)
    return user.astype(np.float32), record


def _in_order(sections: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, sections[name]) for name in RANGES if name in sections]


def _noise_seed(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(64))


def _rms(x: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0


def speech_rms(channel: Audio, words: Sequence[Word]) -> float:
    """RMS within the words, to which noise is measured."""
    pieces = [channel[round(word.start * RATE_HZ) : round(word.end * RATE_HZ)] for word in words]
    return _rms(np.concatenate(pieces)) if pieces else SILENT_USER_RMS


def room_response(rt60: float, drr_db: float, rng: np.random.Generator) -> Audio:
    """Returns the impulse response of a diffuse room.

    The direct sound is at sample 0, then comes noise that falls by 60 dB in `rt60` seconds. `drr_db` is the energy of
    the direct sound over that of the rest.

    Source: Polack's statistical model of reverberation (1988).
    """
    num = round(1.2 * rt60 * RATE_HZ)
    t = np.arange(num) / RATE_HZ
    tail = rng.standard_normal(num) * 10 ** (-3 * t / rt60)
    tail[: round(0.002 * RATE_HZ)] = 0  # The first reflection comes later than the direct sound.
    tail *= 10 ** (-drr_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(channel: Audio, response: Audio) -> Audio:
    """Convolution of the same length; the direct sound keeps its time."""
    size = 1 << (len(channel) + len(response) - 2).bit_length()
    product = np.fft.rfft(channel, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(channel)].astype(np.float32)


def pink(num: int, rng: np.random.Generator) -> Audio:
    """Noise whose power falls with frequency, 3 dB an octave, from 20 Hz on."""
    spectrum = np.fft.rfft(rng.standard_normal(num))
    hz = np.fft.rfftfreq(num, 1 / RATE_HZ)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(hz, 20.0)), num).astype(np.float32)


def _noise(kind: str, num: int, rng: random.Random, settings: Augmentation, babble: Babble) -> tuple[Audio, str]:
    """Noise of `num` samples, of any level, and the name of the file it is from."""
    if kind == "white":
        return _noise_seed(rng).standard_normal(num).astype(np.float32), ""
    if kind == "pink":
        return pink(num, _noise_seed(rng)), ""
    if kind == "babble":
        mixed = np.zeros(num, np.float32)
        others = list(babble())
        for speech in rng.sample(others, min(BABBLE_VOICES, len(others))):
            mixed += looped(speech / np.float32(_rms(speech)), num, rng)
        return mixed, ""
    path = rng.choice(settings.noises)
    noise = looped(to_mono_24k(*read_audio(path)), num, rng)
    if _rms(noise) < 1e-5:
        raise UserError(f"{path}: this noise is silent: take it out of the folder", code="bad-audio")
    return noise, path.name


def looped(x: Audio, num: int, rng: random.Random) -> Audio:
    """`num` samples of `x`, from a place drawn at random and over again."""
    start = rng.randrange(len(x))
    return np.resize(np.roll(x, -start), num)


def through_codec(channel: Audio, kind: str) -> Audio:
    """Encodes and decodes [samples] at 24 kHz; the delay of the codec is taken out.

    mulaw: 8 kHz telephone (G.711); gsm: 8 kHz mobile (06.10); opus and mp3 as libsndfile makes them.
    """
    container = {
        "mulaw": {"format": "WAV", "subtype": "ULAW"},
        "gsm": {"format": "WAV", "subtype": "GSM610"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
        "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    }[kind]
    rate = CODECS[kind]
    before = np.clip(to_rate(channel, RATE_HZ, rate), -1, 1)
    file = io.BytesIO()
    soundfile.write(file, before, rate, **container)
    file.seek(0)
    after, _ = soundfile.read(file, dtype="float32")
    return _fitted(to_rate(shifted(before, after, rate), rate, RATE_HZ), len(channel))


def shifted(before: Audio, after: Audio, rate: int, most: float = 0.1) -> Audio:
    """`after` moved by the lag, of at most `most` seconds either way, at which it fits `before` best."""
    size = 1 << (len(before) + len(after)).bit_length()
    fit = np.fft.irfft(np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size)), size)
    reach = round(most * rate)
    lag = int(np.argmax(np.concatenate([fit[-reach:], fit[: reach + 1]]))) - reach
    return after[lag:] if lag >= 0 else np.concatenate([np.zeros(-lag, np.float32), after])


def _fitted(x: Audio, num: int) -> Audio:
    """Cut or filled up with silence to `num` samples."""
    return np.pad(x[:num], (0, max(0, num - len(x)))).astype(np.float32)
