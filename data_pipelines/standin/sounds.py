"""Reads the utterances of the recorded corpus: three speakers out of Debian packages, which are fetched once."""

# Shapes: C channels, S samples

import gzip
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.files import cache_root, verified
from data_pipelines.sound.audio import Audio, read_audio, to_rate
from data_pipelines.standin.release import Person
from model.errors import UserError
from model.files import whole_folder

RATE_HZ = 8000
PACKAGES = {
    "asterisk-core-sounds-en": ("1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
    "asterisk-core-sounds-en-wav": ("1.6.1-1", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"),
    "pocketsphinx-testdata": (
        "0.8+5prealpha+1-15",
        "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
    ),
}
"""The version of each Debian package and the sha256 of its .deb (architecture all)."""
LEVEL_DBFS = -24.0
"""RMS level of each utterance."""
_DIGITS = "zero one two three four five six seven eight nine".split()
_BACKCHANNELS = ("digits/oh", "vm-no", "auth-thankyou", "hello", "queue-thankyou")


@dataclass(frozen=True, kw_only=True)
class RecordedUtterance:
    """One recorded utterance: 8 kHz mono without silence at its ends, and its words as Fisher writes them."""

    name: str
    audio: Audio
    text: str

    @property
    def seconds(self) -> float:
        """The length of the audio."""
        return len(self.audio) / RATE_HZ


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A speaker of the corpus and all recordings of that speaker."""

    person: Person
    clips: tuple[RecordedUtterance, ...]

    @property
    def seconds(self) -> float:
        """The length of all recordings."""
        return sum(clip.seconds for clip in self.clips)


def read_prompts(sounds: Path) -> tuple[Reader, list[RecordedUtterance]]:
    """Reads the woman of the Asterisk prompts with all prompts of 1.5 to 12 s, and her short words for listening.

    Raises: UserError if the folder lacks the prompts (code "not-found").
    """
    folder = _find(sounds, "share/asterisk/sounds/en_US_f_Allison")
    listing = _find(sounds, "share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
    with gzip.open(listing, "rt", encoding="utf-8", errors="replace") as lines:
        pairs = [line.split(":", 1) for line in lines if ":" in line and not line.startswith(";")]
    clips, listens = [], []
    for name, text in sorted((name.strip(), text.strip()) for name, text in pairs):
        said = fisher_text(text)
        if said is None or not (folder / f"{name}.wav").is_file():
            continue
        if name in _BACKCHANNELS:
            listens.append(_read_clip(folder / f"{name}.wav", name, said))
        elif 1.5 <= (clip := _read_clip(folder / f"{name}.wav", name, said)).seconds <= 12:
            clips.append(clip)
    if len(clips) < 20 or not listens:
        raise UserError(
            f"{folder}: only {len(clips)} prompts with text, unpack asterisk-core-sounds-en-wav there", code="not-found"
        )
    woman = Person(pin="90001", sex="f", dialect="o", language="English")
    return Reader(person=woman, clips=tuple(clips)), [clip for clip in listens if clip.seconds < 1.2]


def read_readers(sounds: Path) -> tuple[Reader, Reader]:
    """Reads the reader of a novel and the reader of playing cards.

    Raises: UserError if the folder lacks their recordings (code "not-found").
    """
    people = []
    for pin, folder_name, listing in (
        ("90002", "librivox", "transcription"),
        ("90003", "cards", "cards.transcription"),
    ):
        folder = _find(sounds, f"share/pocketsphinx/test/data/{folder_name}")
        text = (folder / listing).read_text("utf-8")
        found = re.findall(r"<s>\s*(.*?)\s*</s>\s*\((.*?)\)", text)
        clips = [_read_clip(folder / f"{name}.wav", name, said) for said, name in found]
        if not clips:
            raise UserError(
                f"{folder / listing}: no line `<s> text </s> (name)`, unpack pocketsphinx-testdata there",
                code="not-found",
            )
        people.append(Reader(person=Person(pin=pin), clips=tuple(clips)))
    return people[0], people[1]


def fisher_text(text: str) -> str | None:
    """Returns a prompt's text as Fisher writes (lower case, digits as words, no punctuation); None if it holds more."""
    text = re.sub(r"(?<![\w.])(\d)(?![\w.]*\d)", lambda found: _DIGITS[int(found[1])], text.replace("\u2019", "'"))
    if re.search(r"[^A-Za-z' .,?!;:\"-]", text) or re.search(r"\b[A-Z]( [A-Z]\b)+|[A-Z]{2,}", text):
        return None  # The text holds sounds in brackets, longer numbers or spelled letters.
    words = re.sub(r"[^a-z' -]", " ", text.lower()).split()
    return " ".join(words) or None


def _read_clip(path: Path, name: str, text: str) -> RecordedUtterance:
    """Reads a recording as 8 kHz mono, cuts silence off its ends and sets its level."""
    audio_CS, rate = read_audio(path)
    audio = to_rate(audio_CS[0], rate, RATE_HZ)
    hop = RATE_HZ // 100
    num = len(audio) // hop
    peaks = np.abs(audio[: num * hop]).reshape(num, hop).max(axis=1)
    loud = np.flatnonzero(peaks > 0.03 * peaks.max())
    audio = audio[max(0, loud[0] - 5) * hop : (loud[-1] + 9) * hop]  # Soft beginnings and ends stay.
    audio = audio * (10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(np.square(audio))))
    return RecordedUtterance(name=name, audio=audio.astype(np.float32), text=text)


def _find(sounds: Path, inner: str) -> Path:
    """Returns a path of the packages below the folder that they were unpacked into, or below its usr."""
    for path in (sounds / "usr" / inner, sounds / inner):
        if path.exists():
            return path
    names = ", ".join(PACKAGES)
    raise UserError(
        f"{sounds}: has no usr/{inner}, unpack the Debian packages {names} there with `dpkg-deb -x`", code="not-found"
    )


def fetch_sounds() -> Path:
    """Downloads and unpacks the packages into the cache, once; returns the folder.

    Raises: UserError if apt-get or dpkg-deb is missing (code "missing-package"), apt knows no packages yet
    ("program-failed"), or a checksum is wrong ("checksum").
    """
    folder = cache_root() / "standin-sounds"
    if folder.is_dir():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            names = ", ".join(PACKAGES)
            raise UserError(
                f"{tool} is missing: unpack the Debian packages {names} elsewhere and give --sounds DIR",
                code="missing-package",
            )
    with tempfile.TemporaryDirectory() as temp, whole_folder(folder) as target:
        for name in PACKAGES:
            package = _download(name, Path(temp))
            done = subprocess.run(
                ["dpkg-deb", "-x", str(package), str(target)], capture_output=True, encoding="utf-8", errors="replace"
            )
            if done.returncode:
                raise UserError(
                    f"{package.name}: dpkg-deb cannot unpack it, try again ({done.stderr.strip()})",
                    code="program-failed",
                )
    return folder


def _download(name: str, folder: Path) -> Path:
    """Downloads one package; apt checks its signature, and the pinned version is checked against our sum, too."""
    try:
        done = subprocess.run(
            ["apt-get", "download", name],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=600,
        )
    except subprocess.TimeoutExpired as late:
        raise UserError(
            f"apt-get download {name} took more than 10 minutes: check the network and try again", code="unreachable"
        ) from late
    found = sorted(folder.glob(f"{name}_*.deb"))
    if done.returncode or not found:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"apt-get download {name} failed ({why}): run `apt-get update` first, or give --sounds DIR",
            code="program-failed",
        )
    version, sha256 = PACKAGES[name]
    if f"_{version}_" in found[0].name.replace("%3a", ":"):
        verified(found[0].read_bytes(), sha256, found[0].name)
    else:
        print(f"{found[0].name}: not the version {version} that was tried; checked by apt's signature only")
    return found[0]
