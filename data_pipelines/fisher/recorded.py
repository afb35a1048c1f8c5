"""A small corpus in Fisher's layout out of real human speech that Debian packages carry.

One side of every call is the woman of Asterisk's English prompts, the other one of two readers of the pocketsphinx
test data. They do not talk to each other: turns, gaps, overlaps and listening sounds are laid out by chance. What
it is for: trying the import of telephone calls, and tests. Material of the readers is short (25 s and 10 s), so the
calls of one reader have the same sentences in another order.
"""

import gzip
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.audio import Audio, read_audio, to_rate
from data_pipelines.fisher.release import Person, Row, write_call, write_notices, write_tables
from data_pipelines.speech.engines import cache_root, verified
from model.errors import UserError

RATE_HZ = 8000
# Debian package: version, sha256 of its .deb (architecture all)
PACKAGES = {
    "asterisk-core-sounds-en": ("1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
    "asterisk-core-sounds-en-wav": ("1.6.1-1", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"),
    "pocketsphinx-testdata": (
        "0.8+5prealpha+1-15",
        "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
    ),
}
LICENCE = "CC BY-SA 3.0 (Asterisk core sounds, Allison Smith) and BSD-2-Clause (pocketsphinx test data)"
LEVEL_DBFS = -24.0  # of each utterance
_DIGITS = "zero one two three four five six seven eight nine".split()
_BACKCHANNELS = ("digits/oh", "vm-no", "auth-thankyou", "hello", "queue-thankyou")
TITLES = {"ENG01": "Telephone Menus.", "ENG02": "Leaving a Message.", "ENG03": "Conference Calls in the US."}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recorded utterance: 8 kHz mono without silence at its ends, and its words as Fisher writes them."""

    name: str
    audio: Audio
    text: str

    @property
    def seconds(self) -> float:
        return len(self.audio) / RATE_HZ


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An utterance with its start in the call. Who is not `is_main` is the reader."""

    clip: Clip
    start: float
    is_main: bool
    is_uncertain: bool = False


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A speaker of the corpus, with what there is of him."""

    person: Person
    clips: tuple[Clip, ...]


def make_recorded(
    corpus: Path, num_calls: int, seconds: float, seed: int, sounds: Path, noise_dbfs: float
) -> tuple[float, list[str]]:
    """Writes a corpus of recorded calls; answers seconds of audio and lines to print.

    Raises: UserError if the sounds are not there.
    """
    main, listens = read_prompts(sounds)
    readers = read_readers(sounds)
    total = 0.0
    deal = _Deal(main.clips, random.Random(f"{seed}/prompts"))
    rows = []
    for number in tqdm(range(1, num_calls + 1), unit="call", desc="standin"):
        reader = readers[1] if number % 6 == 0 else readers[0]
        rng = random.Random(f"{seed}/{number:05d}")
        turns = place_turns(deal, listens, reader.clips, seconds, rng)
        sides = (main.person, reader.person) if number % 2 else (reader.person, main.person)
        topic = sorted(TITLES)[number % len(TITLES)]
        row = Row(call=f"{number:05d}", disc="fe_03_p1_sph1", topic=topic, sides=sides)
        audio_SC = mix(turns, sides[0] is main.person, noise_dbfs, rng)
        write_call(corpus, row, audio_SC, transcript(turns, sides[0] is main.person))
        total += len(audio_SC) / RATE_HZ
        rows.append(row)
    write_tables(corpus, rows, [who.person for who in (main, *readers)], TITLES)
    write_notices(corpus, LICENCE, notices())
    lines = [f"licence: {LICENCE}"]
    lines.append(
        f"the readers' sentences recur in their calls ({readers[0].person.pin}: {_total(readers[0]):.0f} s, "
        f"{readers[1].person.pin}: {_total(readers[1]):.0f} s in all)"
    )
    if deal.num_reused:
        lines.append(f"{deal.num_reused} prompts were used twice: there are {len(main.clips)} of them")
    return total, lines


class _Deal:
    """Hands out utterances in shuffled order, each once, then starts again."""

    def __init__(self, clips: Sequence[Clip], rng: random.Random) -> None:
        self._clips, self._rng, self._left, self._count = list(clips), rng, list[Clip](), 0

    def next(self) -> Clip:
        if not self._left:
            self._left = self._rng.sample(self._clips, len(self._clips))
        self._count += 1
        return self._left.pop()

    @property
    def num_reused(self) -> int:
        return max(0, self._count - len(self._clips))


def place_turns(
    deal: _Deal, listens: Sequence[Clip], reading: Sequence[Clip], seconds: float, rng: random.Random
) -> list[Placed]:
    """Lays out one call: turns of both sides with gaps of -0.4 to 1.2 s, and short words into the reader's turns.

    The reader says every sentence once, so that a voice clip cut outside a window is never heard inside it; the
    longest sentence comes last, where a window that ends before it leaves most.
    """
    readings = rng.sample(list(reading), len(reading))
    longest = max(readings, key=lambda clip: clip.seconds)
    readings = [*(clip for clip in readings if clip is not longest), longest]
    spare = seconds - 1.0 - sum(clip.seconds + 0.5 for clip in readings)  # what is left for the main speaker
    groups: list[list[Clip]] = [[] for _ in range(len(readings) + 1)]
    slot = 0
    while spare > 1.0:
        clip = deal.next()
        groups[slot % len(groups)].append(clip)
        spare -= clip.seconds + 0.5
        slot += 1
    order = [(clip, True) for clip in groups[0]]
    for clip, group in zip(readings, groups[1:], strict=True):
        order += [(clip, False), *((said, True) for said in group)]
    placed: list[Placed] = []
    at = 0.6
    before: bool | None = None
    for clip, is_main in order:
        if before is not None:
            gap = min(1.2, max(-0.4, rng.gauss(0.3, 0.35)))
            at += max(gap, 0.3) if before == is_main else gap
        placed.append(Placed(clip=clip, start=round(at, 2), is_main=is_main))
        if not is_main and clip.seconds > 2.5 and rng.random() < 0.5:
            word = rng.choice(listens)
            start = round(at + rng.uniform(0.8, clip.seconds - word.seconds - 0.6), 2)
            placed.append(Placed(clip=word, start=start, is_main=True, is_uncertain=rng.random() < 0.2))
        at += clip.seconds
        before = is_main
    return placed


def mix(turns: Sequence[Placed], main_is_a: bool, noise_dbfs: float, rng: random.Random) -> np.ndarray:
    """Both channels of one call over the hiss of the line: float [samples, 2]."""
    length = int((max(turn.start + turn.clip.seconds for turn in turns) + 0.6) * RATE_HZ)
    hiss = np.random.default_rng(rng.getrandbits(64)).normal(0, 10 ** (noise_dbfs / 20), (length, 2))
    for turn in sorted(turns, key=lambda turn: turn.start):
        first = int(turn.start * RATE_HZ)
        hiss[first : first + len(turn.clip.audio), int(turn.is_main != main_is_a)] += turn.clip.audio
    return hiss


def transcript(turns: Sequence[Placed], main_is_a: bool) -> list[str]:
    """The timed lines of one call."""
    lines = []
    for turn in sorted(turns, key=lambda turn: turn.start):
        text = f"(( {turn.clip.text} ))" if turn.is_uncertain else turn.clip.text
        letter = "A" if turn.is_main == main_is_a else "B"
        lines.append(f"{turn.start:.2f} {turn.start + turn.clip.seconds:.2f} {letter}: {text}")
    return lines


def notices() -> str:
    """Where the recordings come from, and under which terms."""
    packages = "\n".join(f"  {name} {version}" for name, (version, _) in PACKAGES.items())
    return (
        "Telephone calls in the layout of Fisher English, put together from recordings of real people who never spoke\n"
        "to each other. Not Fisher data.\n\n"
        f"Recordings, from Debian packages:\n{packages}\n\n"
        "Asterisk core sounds: (c) 2003-2010 Allison Smith, CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)\n"
        "pocketsphinx test data: (c) 1995-2014 Carnegie Mellon University, 2014-2015 Alpha Cephei, BSD-2-Clause\n"
        "The calls are a derived work: share them under CC BY-SA 3.0 with both notices. Changes made: cut, levelled,\n"
        "resampled to 8 kHz mu-law, mixed with line noise and arranged in two channels.\n"
    )


def read_prompts(sounds: Path) -> tuple[Reader, list[Clip]]:
    """The woman of the Asterisk prompts with all prompts of 1.5 to 12 s, and her short words for listening."""
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
        raise UserError(f"{folder}: only {len(clips)} prompts with text: unpack asterisk-core-sounds-en-wav there")
    woman = Person(pin="90001", sex="f", dialect="o", language="English")
    return Reader(person=woman, clips=tuple(clips)), [clip for clip in listens if clip.seconds < 1.2]


def read_readers(sounds: Path) -> tuple[Reader, Reader]:
    """The reader of a novel and the reader of playing cards."""
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
            raise UserError(f"{folder / listing}: no line `<s> text </s> (name)`: unpack pocketsphinx-testdata there")
        people.append(Reader(person=Person(pin=pin), clips=tuple(clips)))
    return people[0], people[1]


def fisher_text(text: str) -> str | None:
    """A prompt's text as Fisher writes: lower case, digits as words, no punctuation; None if it is not only that."""
    text = re.sub(r"(?<![\w.])(\d)(?![\w.]*\d)", lambda found: _DIGITS[int(found[1])], text.replace("\u2019", "'"))
    if re.search(r"[^A-Za-z' .,?!;:\"-]", text) or re.search(r"\b[A-Z]( [A-Z]\b)+|[A-Z]{2,}", text):
        return None  # sounds in brackets, longer numbers, spelled letters
    words = re.sub(r"[^a-z' -]", " ", text.lower()).split()
    return " ".join(words) or None


def _read_clip(path: Path, name: str, text: str) -> Clip:
    """Reads a recording as 8 kHz mono, cuts silence off its ends and sets its level."""
    audio_CS, rate = read_audio(path)
    audio = to_rate(audio_CS[0], rate, RATE_HZ)
    hop = RATE_HZ // 100
    num = len(audio) // hop
    peaks = np.abs(audio[: num * hop]).reshape(num, hop).max(axis=1)
    loud = np.flatnonzero(peaks > 0.03 * peaks.max())
    audio = audio[max(0, loud[0] - 5) * hop : (loud[-1] + 9) * hop]  # soft beginnings and ends stay
    audio = audio * (10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(np.square(audio))))
    return Clip(name=name, audio=audio.astype(np.float32), text=text)


def _total(reader: Reader) -> float:
    return sum(clip.seconds for clip in reader.clips)


def _find(sounds: Path, inner: str) -> Path:
    """A path of the packages below the folder they were unpacked into, or below its usr."""
    for path in (sounds / "usr" / inner, sounds / inner):
        if path.exists():
            return path
    names = ", ".join(PACKAGES)
    raise UserError(f"{sounds}: has no usr/{inner}: unpack the Debian packages {names} there with `dpkg-deb -x`")


def fetch_sounds() -> Path:
    """Downloads and unpacks the packages into the cache, once; answers the folder.

    Raises: UserError if apt-get or dpkg-deb is missing, apt knows no packages yet, or a checksum is wrong.
    """
    folder = cache_root() / "standin-sounds"
    if folder.is_dir():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            names = ", ".join(PACKAGES)
            raise UserError(f"{tool} is missing: unpack the Debian packages {names} elsewhere and give --sounds DIR")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temp:
        target = Path(temp, "sounds")
        target.mkdir()
        for name in PACKAGES:
            package = _download(name, Path(temp))
            done = subprocess.run(["dpkg-deb", "-x", str(package), str(target)], capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{package.name}: dpkg-deb cannot unpack it ({done.stderr.strip()}): try again")
        os.replace(target, folder)
    return folder


def _download(name: str, folder: Path) -> Path:
    """Downloads one package. apt checks its signature; the pinned version is checked against our sum, too."""
    try:
        done = subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as late:
        raise UserError(f"apt-get download {name} took more than 10 minutes: check the network and try again") from late
    found = sorted(folder.glob(f"{name}_*.deb"))
    if done.returncode or not found:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"apt-get download {name} failed ({why}): run `apt-get update` first, or give --sounds DIR")
    version, sha256 = PACKAGES[name]
    if f"_{version}_" in found[0].name.replace("%3a", ":"):
        verified(found[0].read_bytes(), sha256, found[0].name)
    else:
        print(f"{found[0].name}: not the version {version} that was tried; checked by apt's signature only")
    return found[0]
