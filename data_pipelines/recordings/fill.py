"""Fills in what a transcript lacks: what was said, by a recogniser, and when each word was, by forced alignment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from data_pipelines.listening.align import ALIGNER_NAME, shared_aligner
from data_pipelines.listening.asr import Recogniser, open_asr
from data_pipelines.listening.vad import VAD_NAME, speech_spans
from data_pipelines.recordings.recording import Unready
from data_pipelines.recordings.utterances import SideText, Utterance
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio
from data_pipelines.text.spoken import SpokenWord, expand
from data_pipelines.text.words import normal_words
from model.errors import UserError
from model.extras import require

Value = TypeVar("Value")

MIN_MATCH = 0.5
"""Share of a text's words that the recogniser must hear, else the text is not of this audio."""
PAD_SECONDS = 0.2
"""Audio that is heard before and after an utterance, whose times are only that good."""
GIVEN = "given"


@dataclass(frozen=True, kw_only=True)
class Listener:
    """How gaps are filled: the recogniser's name ("" forbids to listen) and its device."""

    asr: str
    device: str = "cpu"

    def recogniser(self) -> Recogniser:
        """Returns the one recogniser of this process.

        Raises: Unready if it cannot be opened, UserError if the name is "".
        """
        return _recogniser(self.asr, self.device)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """One side with word times; utterances without words are speech whose words could not be placed."""

    utterances: tuple[Utterance, ...]
    text_by: str
    """Where the text is from: "given" or "asr"."""
    times_by: str
    """Where the times are from: "given", the aligner's name, or both."""
    tried: int
    placed: int
    """How many utterances lacked word times, and how many of these could be aligned."""
    asr: dict[str, Any] = field(default_factory=dict)
    """The identity of the recogniser and of the detector of speech; empty if nobody listened."""

    def note(self) -> dict[str, Any]:
        """Returns what the provenance says of this side."""
        return {"text_by": self.text_by, "times_by": self.times_by, "tried": self.tried, "placed": self.placed}

    @property
    def share(self) -> float:
        """The share of the utterances that could be aligned; 1 if all had their times."""
        return self.placed / self.tried if self.tried else 1.0


def fill_side(audio: Audio, rate: int, text: SideText | None, listener: Listener) -> Filled:
    """Gives every word of a side its times; what was said is recognised if `text` is None.

    Shapes: audio [samples], the channel of this side.
    Raises: UserError if the text is not what is said (code "bad-transcript"); Unready if a package is missing.
    """
    identity: dict[str, Any] = {}
    if text is not None and not text.text:
        todo = list(text.utterances)
    else:
        spans = _ready(lambda: speech_spans(audio, rate))
        asr = listener.recogniser()
        heard = asr.transcribe_all([audio[round(start * rate) : round(end * rate)] for start, end in spans], rate)
        if text is not None:
            heard = share_out(text.text, heard)
        todo = [Utterance(start=a, end=b, text=said) for (a, b), said in zip(spans, heard, strict=True) if said]
        identity = {**asr.identity(), "vad": VAD_NAME}
    by = "asr" if text is None else GIVEN
    if all(utterance.words for utterance in todo):
        return Filled(utterances=tuple(todo), text_by=by, times_by=GIVEN, tried=0, placed=0, asr=identity)
    _ready(lambda: require("num2words", extra="align"))
    _ready(shared_aligner)
    filled: list[Utterance] = []
    last_end = 0.0
    for utterance in todo:
        if not utterance.words:
            utterance = _align(audio, rate, utterance, last_end)
        filled.append(utterance)
        last_end = max(last_end, utterance.words[-1].end if utterance.words else utterance.start)
    tried = sum(not utterance.words for utterance in todo)
    placed = sum(bool(utterance.words) for utterance in filled) - (len(todo) - tried)
    times = ALIGNER_NAME if tried == len(todo) else f"{GIVEN}, {ALIGNER_NAME}"
    return Filled(utterances=tuple(filled), text_by=by, times_by=times, tried=tried, placed=placed, asr=identity)


def word_times(said: Sequence[str], audio: Audio, rate: int, start: float) -> list[tuple[float, float]] | None:
    """Returns when each word is said in a piece of audio that begins at `start`; None if the words do not fit it.

    Shapes: audio [samples]. Units: seconds from the start of the recording, rounded to a millisecond.
    """
    try:
        found = shared_aligner().align(audio, rate, said)
    except UserError:  # A word does not tell how it is said, for instance a number or another script.
        return None
    return [(round(word.start + start, 3), round(word.end + start, 3)) for word in found.words] if found else None


def share_out(text: str, heard: Sequence[str]) -> list[str]:
    """Cuts a text into the stretches in which it was heard, by the words that the text and a stretch share.

    Raises: UserError if fewer than half of its words were heard at all (code "bad-transcript").
    """
    written = text.split()
    parts = [(n, part) for n, word in enumerate(written) for part in normal_words(word)]
    there = [(n, part) for n, said in enumerate(heard) for part in normal_words(said)]
    matcher = SequenceMatcher(None, [part for _, part in parts], [part for _, part in there], autojunk=False)
    stretch: list[int | None] = [None] * len(written)
    matched = 0
    for block in matcher.get_matching_blocks():
        matched += block.size
        for n in range(block.size):
            stretch[parts[block.a + n][0]] = there[block.b + n][0]
    if matched < MIN_MATCH * max(1, len(parts)):
        raise UserError(
            f"only {matched} of {len(parts)} words of its text were heard: the text is of other audio",
            code="bad-transcript",
        )
    before = 0
    for n, own in enumerate(stretch):  # A word that was misheard belongs to the stretch of the word before it.
        before = before if own is None else max(before, own)
        stretch[n] = before
    return [" ".join(word for word, own in zip(written, stretch, strict=True) if own == n) for n in range(len(heard))]


def said_by(word: SpokenWord) -> list[str]:
    """Returns the words to align; a single capital names a letter, which the aligner knows by its full stop."""
    return [f"{part}." if len(part) == 1 and part.isupper() else part for part in word.spoken]


def _align(audio: Audio, rate: int, utterance: Utterance, last_end: float) -> Utterance:
    """Returns the utterance with words, or without if they do not fit what is heard between its times.

    Words stay as written and get the times of what is said for them; "$8" is "eight dollars".
    """
    start = max(utterance.start - PAD_SECONDS, min(last_end, utterance.start), 0.0)
    end = min(utterance.end + PAD_SECONDS, len(audio) / rate)
    written = expand(utterance.text)
    said = [part for word in written for part in said_by(word)]
    times = word_times(said, audio[round(start * rate) : round(end * rate)], rate, start)
    if times is None:
        return utterance
    words, upcoming = [], iter(times)
    for word in written:
        own = list(islice(upcoming, len(word.spoken)))
        words.append(Word(text=word.written, start=own[0][0], end=min(own[-1][1], round(end, 3))))
    return replace(utterance, words=tuple(words))


def _ready(step: Callable[[], Value]) -> Value:
    """Returns step(), whose UserError means that a package is missing."""
    try:
        return step()
    except UserError as why:
        raise Unready(str(why), code=why.code) from why


@lru_cache(maxsize=1)
def _recogniser(name: str, device: str) -> Recogniser:
    if not name:
        raise UserError("nothing is written of what is said, and --fill forbids to listen", code="bad-transcript")
    return _ready(lambda: open_asr(name, device))


def aligned_share(filled: Mapping[str, Filled]) -> dict[str, float]:
    """Returns the gate value of this name, the share of the utterances that could be aligned; {} if all had times."""
    tried = sum(side.tried for side in filled.values())
    return {"aligned_share": round(sum(side.placed for side in filled.values()) / tried, 4)} if tried else {}


def provenance_of(filled: Mapping[str, Filled]) -> dict[str, Any]:
    """Returns what a record says of the words: of each side, and which engines had a part in them."""
    times = sorted({part for side in filled.values() for part in side.times_by.split(", ")})
    listened = next((side.asr for side in filled.values() if side.asr), None)
    facts: dict[str, Any] = {"sides": {name: side.note() for name, side in filled.items()}}
    return facts | ({"word_times": ", ".join(times)} if times else {}) | ({"asr": listened} if listened else {})
