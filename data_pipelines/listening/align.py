"""Word times from audio and its text: forced alignment with pocketsphinx, utterance by utterance.

Against exact times of synthetic speech the word starts are off by 15 to 30 ms on average, telephone speech included;
one model frame is 80 ms. A pause at the start of a word is taken out of it.
Traps of the library that this file works around: silence and wrong text "align" too (hence the checks of level and
score), asking for the hypothesis after the second pass kills the process, words must be added before the first pass,
one decoder serves one thread.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import to_rate
from model.errors import UserError
from model.extras import require

ALIGNER_NAME = "pocketsphinx 5.1.1"
RATE_HZ = 16_000
FRAME_SECONDS = 0.01

MIN_SCORE = -48.0
"""Mean acoustic score a frame below which the text is not what is said.

Real telephone prompts score -13 to -34 with their own text, in heavy noise down to -43, synthetic voices down to -45.
With another prompt's text three of four are rejected, here or for want of a path: one utterance can pass with wrong
text, most of a call cannot.
"""
MIN_LEVEL_DBFS = -60.0
"""RMS inside the words below which there is nothing to align: the noise of a quiet telephone line."""
MAX_WORD_SECONDS = 2.5
"""A longer word has swallowed silence, a tone or somebody else's speech."""
MAX_PAUSE_SECONDS = 0.12
"""Silence this long at the start of a word is a pause before it: longer than the closure of any stop."""
WORST_PHONE = -150.0
"""No phone counts as worse: a path without room for a phone scores it with half a billion below zero."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Words with times in seconds from the start of the audio.

    `score` is the mean acoustic score a frame. `phone_score` is the mean over phones of each one's score a frame, in
    which a short phone counts as much as a long one: a wrong text squeezes most of its phones into three frames.
    """

    words: tuple[Word, ...]
    score: float
    phone_score: float


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One part of a word as the decoder found it: frames, the sum of its scores, and a mean score for each phone."""

    start: int
    duration: int
    score: float
    phones: list[float]


class Aligner:
    """A pocketsphinx decoder with its own English model and dictionary. Results do not depend on earlier calls."""

    def __init__(self) -> None:
        pocketsphinx = require("pocketsphinx", extra="align")
        # The default beams lose synthetic voices; cmn "batch" takes the mean of this utterance alone.
        self._decoder = pocketsphinx.Decoder(
            samprate=RATE_HZ,
            loglevel="FATAL",
            lm=None,
            bestpath=False,
            beam=1e-200,
            wbeam=1e-100,
            pbeam=1e-200,
            cmn="batch",
        )

    def align(
        self, audio: npt.NDArray[np.float32], rate: int, words: Sequence[str], *, min_score: float | None = MIN_SCORE
    ) -> Alignment | None:
        """Finds when each word of one utterance is said; None means that the text does not fit the audio.

        `words` are as spoken (numbers spelt out) and come back unchanged, punctuation and case included. Without
        `min_score` the caller judges the scores.
        Shapes: audio [samples], float32 in [-1, 1].
        Raises: UserError if a word holds nothing that can be said.
        """
        if not words:
            return None
        parts = [spoken_parts(word, self._knows) for word in words]
        for part in {part for group in parts for part in group}:
            if not self._knows(part):
                self._decoder.add_word(part, " ".join(pronounce(part, self._decoder.lookup_word)), True)
        found = self._two_passes(audio, rate, [part for group in parts for part in group])
        if found is None or len(found) != sum(map(len, parts)):
            return None
        frames = sum(entry.duration for entry in found)
        score = sum(entry.score for entry in found) / max(frames, 1)
        phone_score = float(np.mean([score for entry in found for score in entry.phones]))
        aligned, at = [], 0
        for word, group in zip(words, parts, strict=True):
            first, last = found[at], found[at + len(group) - 1]
            at += len(group)
            end = (last.start + last.duration) * FRAME_SECONDS
            aligned.append(Word(text=word, start=round(first.start * FRAME_SECONDS, 2), end=round(end, 2)))
        if max(word.end - word.start for word in aligned) > MAX_WORD_SECONDS:
            return None
        is_poor = min_score is not None and score < min_score
        if is_poor or level_dbfs(audio, rate, aligned) < MIN_LEVEL_DBFS:
            return None
        return Alignment(words=tuple(after_pauses(aligned, audio, rate)), score=score, phone_score=phone_score)

    def _two_passes(self, audio: npt.NDArray[np.float32], rate: int, parts: Sequence[str]) -> list[_Entry] | None:
        """Words first, then their phones: the second pass gives the times. None if the words find no path."""
        if not len(audio):
            return None  # The decoder would raise, and then fail on every later utterance.
        pcm = np.clip(np.round(to_rate(audio, rate, RATE_HZ) * 32767), -32768, 32767).astype("<i2")
        self._decoder.reinit_feat()  # Otherwise the front end remembers the last utterance, and times move by a frame.
        self._decoder.set_align_text(" ".join(parts))
        self._listen(pcm)
        if self._decoder.hyp() is None:
            return None
        self._decoder.set_alignment()
        self._listen(pcm)
        alignment = self._decoder.get_alignment()
        if alignment is None:
            return None
        return [
            _Entry(
                start=entry.start,
                duration=entry.duration,
                score=entry.score,
                phones=[max(phone.score / max(phone.duration, 1), WORST_PHONE) for phone in entry],
            )
            for entry in alignment
            if entry.name[0] not in "<[("  # Silences and noises are left out.
        ]

    def _listen(self, pcm: npt.NDArray[np.int16]) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()

    def _knows(self, part: str) -> bool:
        return self._decoder.lookup_word(part) is not None


@lru_cache(maxsize=1)
def shared_aligner() -> Aligner:
    """Returns the one aligner of this process; loading it takes a tenth of a second."""
    return Aligner()


def after_pauses(words: Sequence[Word], audio: npt.NDArray[np.float32], rate: int) -> list[Word]:
    """Moves starts of words that begin with a pause to 10 ms before the first sound.

    Silent is a frame of 10 ms whose peak is below 3 % of the loudest or twice the quietest ones, yet never above 10 %
    of the loudest, so that in noise nothing moves.
    """
    hop = rate // 100
    peaks = np.abs(audio[: len(audio) // hop * hop]).reshape(-1, hop).max(axis=1, initial=0.0)
    loudest, quietest = np.quantile(peaks, (0.95, 0.1))
    is_loud = peaks > min(max(2 * quietest, 0.03 * loudest), 0.1 * loudest)
    moved = []
    for word in words:
        first, last = round(word.start * 100), round(word.end * 100)
        before = int(np.argmax(is_loud[first:last])) if is_loud[first:last].any() else 0
        late = before / 100 >= MAX_PAUSE_SECONDS
        moved.append(replace(word, start=round(word.start + before / 100 - 0.01, 2)) if late else word)
    return moved


def level_dbfs(audio: npt.NDArray[np.float32], rate: int, words: Sequence[Word]) -> float:
    """Returns the RMS level inside the words, in dBFS."""
    pieces = [audio[int(word.start * rate) : int(word.end * rate)] for word in words]
    inside = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    power = float(np.mean(np.square(inside, dtype=np.float64))) if len(inside) else 0.0
    return 10 * float(np.log10(max(power, 1e-12)))


def spoken_parts(word: str, knows: Callable[[str], bool]) -> list[str]:
    """Splits one written word into words of the dictionary: "T.V.," -> t. v., "old-fashioned" -> old fashioned.

    Raises: UserError for a word with a digit or without a letter.
    """
    text = word.lower().replace("\u2019", "'").replace("_", "")
    if re.search(r"\d", text) or not re.search(r"[a-z]", text):
        raise UserError(f"the word {word!r} cannot be aligned: spell it out as it is said", code="bad-transcript")
    if re.fullmatch(r"[\"'(]*([a-z]\.)+('?s)?[,.?!\")]*", text):
        return [f"{letter}." for letter in re.findall(r"([a-z])\.", text)]
    text = re.sub(r"[^a-z'-]", "", text)
    if knows(text.strip("'-")):
        return [text.strip("'-")]
    if knows(text):  # The dictionary has 'cause and doin' with their apostrophes.
        return [text]
    return [part for part in (re.sub(r"^'+|'+$", "", piece) for piece in text.split("-")) if part]


# The dictionary lacks these sounds of a filled pause.
_HUMS = {"mmhmm": "M HH M", "hmm": "HH M", "mmm": "M", "hmhm": "HH M HH M", "uhuh": "AH AH", "shh": "SH"}

# Letters to ARPAbet, longest first, for names and fragments that no dictionary has. The result is crude, but the times
# of a word depend on its neighbours and its consonants, both of which are right.
_LETTERS = {
    "tion": "SH AH N", "igh": "AY", "tch": "CH", "sch": "SH", "ch": "CH", "sh": "SH", "th": "TH", "ph": "F",
    "gh": "G", "ck": "K", "ng": "NG", "qu": "K W", "wh": "W", "wr": "R", "kn": "N", "ee": "IY", "ea": "IY",
    "oo": "UW", "ou": "AW", "ow": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "au": "AO", "aw": "AO",
    "ei": "EY", "ey": "IY", "ie": "IY", "oa": "OW", "ue": "UW", "er": "ER", "ir": "ER", "ur": "ER",
    "ar": "AA R", "or": "AO R", "ce": "S", "ci": "S IH", "cy": "S IY", "ge": "JH", "a": "AE", "b": "B", "c": "K",
    "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M",
    "n": "N", "o": "OW", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W",
    "x": "K S", "y": "IY", "z": "Z", "'": "",
}  # fmt: skip
_LETTER_NAMES = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        "EY,B IY,S IY,D IY,IY,EH F,JH IY,EY CH,AY,JH EY,K EY,EH L,EH M,EH N,OW,P IY,K Y UW,AA R,EH S,T IY,Y UW,V IY,"
        "D AH B AH L Y UW,EH K S,W AY,Z IY".split(","),
        strict=True,
    )
)


def pronounce(part: str, lookup: Callable[[str], str | None]) -> list[str]:
    """ARPAbet for a word the dictionary lacks: a hum, a letter, a known stem with an ending, or by its spelling."""
    if re.fullmatch(r"[a-z]\.", part):
        return _LETTER_NAMES[part[0]].split()
    if part.replace("'", "") in _HUMS:
        return _HUMS[part.replace("'", "")].split()
    for ending, sound in (("'s", "Z"), ("s'", "Z"), ("in'", "IH N"), ("ing", "IH NG"), ("ed", "D"), ("s", "Z")):
        stem = lookup(part[: -len(ending)]) if part.endswith(ending) and len(part) > len(ending) + 1 else None
        if stem:
            vowel = ["IH"] if sound == "Z" and stem.split()[-1] in ("S", "Z", "SH", "ZH", "CH", "JH") else []
            vowel = ["IH"] if sound == "D" and stem.split()[-1] in ("T", "D") else vowel
            return [*stem.split(), *vowel, *sound.split()]
    return _by_spelling(part)


def _by_spelling(part: str) -> list[str]:
    text = re.sub(r"([bcdfghjklmnpqrstvwxyz])\1", r"\1", part)
    if len(text) > 3 and text.endswith("e"):
        text = text[:-1]
    phones: list[str] = []
    while text:
        size = next(size for size in (4, 3, 2, 1) if text[:size] in _LETTERS)
        phones += _LETTERS[text[:size]].split()
        text = text[size:]
    return phones or ["AH"]
