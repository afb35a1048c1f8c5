"""Makes a small corpus in Fisher's layout out of real human speech that Debian packages carry.

One side of every call is the woman of Asterisk's English prompts, the other one of two readers of the pocketsphinx
test data. They do not talk to each other: turns, gaps, overlaps and listening sounds are laid out by chance. The corpus
serves to try the import of telephone calls, and tests. Material of the readers is short (25 s and 10 s), so the calls
of one reader have the same sentences in another order.
"""

# Shapes: C channels, S samples

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.standin.release import CalldataRow, write_call, write_notices, write_tables
from data_pipelines.standin.sounds import PACKAGES, RATE_HZ, RecordedUtterance, read_prompts, read_readers

LICENCE = "CC BY-SA 3.0 (Asterisk core sounds, Allison Smith) and BSD-2-Clause (pocketsphinx test data)"
TITLES = {"ENG01": "Telephone Menus.", "ENG02": "Leaving a Message.", "ENG03": "Conference Calls in the US."}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An utterance with its start in the call, in seconds; `is_main` is False for the reader."""

    clip: RecordedUtterance
    start: float
    is_main: bool
    is_uncertain: bool = False


def make_recorded(
    corpus: Path, num_calls: int, seconds: float, seed: int, sounds: Path, noise_dbfs: float, first_call: int
) -> tuple[float, list[str]]:
    """Writes a corpus of recorded calls, numbered from `first_call`; returns seconds of audio and lines to print.

    Raises: UserError if the sounds are not there (code "not-found").
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
        call = f"{first_call + number - 1:05d}"
        row = CalldataRow(call=call, disc="fe_03_p1_sph1", topic=topic, sides=sides)
        audio_SC = mix(turns, sides[0] is main.person, noise_dbfs, rng)
        write_call(corpus, row, audio_SC, transcript(turns, sides[0] is main.person))
        total += len(audio_SC) / RATE_HZ
        rows.append(row)
    write_tables(corpus, rows, [who.person for who in (main, *readers)], TITLES)
    write_notices(corpus, LICENCE, notices())
    lines = [f"licence: {LICENCE}"]
    lines.append(
        f"the readers' sentences recur in their calls ({readers[0].person.pin}: {readers[0].seconds:.0f} s, "
        f"{readers[1].person.pin}: {readers[1].seconds:.0f} s in all)"
    )
    if deal.num_reused:
        lines.append(f"{deal.num_reused} prompts were used twice: there are {len(main.clips)} of them")
    return total, lines


class _Deal:
    """Hands out utterances in shuffled order, each once, and then starts again."""

    def __init__(self, clips: Sequence[RecordedUtterance], rng: random.Random) -> None:
        self._clips, self._rng, self._left, self._count = list(clips), rng, list[RecordedUtterance](), 0

    def next(self) -> RecordedUtterance:
        if not self._left:
            self._left = self._rng.sample(self._clips, len(self._clips))
        self._count += 1
        return self._left.pop()

    @property
    def num_reused(self) -> int:
        return max(0, self._count - len(self._clips))


def place_turns(
    deal: _Deal,
    listens: Sequence[RecordedUtterance],
    reading: Sequence[RecordedUtterance],
    seconds: float,
    rng: random.Random,
) -> list[Placed]:
    """Lays out one call: turns of both sides with gaps of -0.4 to 1.2 s, and short words within the reader's turns.

    The reader says every sentence once, so that a voice clip cut outside a window is never heard inside it; the
    longest sentence comes last, where a window that ends before it leaves most.
    """
    readings = rng.sample(list(reading), len(reading))
    longest = max(readings, key=lambda clip: clip.seconds)
    readings = [*(clip for clip in readings if clip is not longest), longest]
    spare = seconds - 1.0 - sum(clip.seconds + 0.5 for clip in readings)  # This is left for the main speaker.
    groups: list[list[RecordedUtterance]] = [[] for _ in range(len(readings) + 1)]
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
    """Returns both channels of one call over the hiss of the line: float [samples, 2] at 8 kHz."""
    length = int((max(turn.start + turn.clip.seconds for turn in turns) + 0.6) * RATE_HZ)
    hiss = np.random.default_rng(rng.getrandbits(64)).normal(0, 10 ** (noise_dbfs / 20), (length, 2))
    for turn in sorted(turns, key=lambda turn: turn.start):
        first = int(turn.start * RATE_HZ)
        hiss[first : first + len(turn.clip.audio), int(turn.is_main != main_is_a)] += turn.clip.audio
    return hiss


def transcript(turns: Sequence[Placed], main_is_a: bool) -> list[str]:
    """Returns the timed lines of one call."""
    lines = []
    for turn in sorted(turns, key=lambda turn: turn.start):
        text = f"(( {turn.clip.text} ))" if turn.is_uncertain else turn.clip.text
        letter = "A" if turn.is_main == main_is_a else "B"
        lines.append(f"{turn.start:.2f} {turn.start + turn.clip.seconds:.2f} {letter}: {text}")
    return lines


def notices() -> str:
    """Returns where the recordings come from, and under which terms."""
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
