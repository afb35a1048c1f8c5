"""Finds words and utterances in JSON of any shape by the names of its keys, because every data set has its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from data_pipelines.records.schema import SIDES, Word

_WORDS, _UTTERANCES = ("words",), ("utterances", "segments", "turns", "chunks", "transcript", "transcripts", "dialogue")
_TEXT = ("text", "word", "tts_text", "transcript", "content", "utterance", "sentence")
_START, _END = ("start", "start_time", "begin", "start_s", "xmin"), ("end", "end_time", "stop", "end_s", "xmax")
_SPEAKER = (
    "speaker", "speaker_id", "speaker_idx", "speaker_label", "spk_idx", "spk", "channel", "side", "label",
    "role")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TranscriptEntry:
    """A word or an utterance as found, before its speaker has a side; `start` and `end` are None if it has no time."""

    text: str
    start: float | None
    end: float | None
    label: str
    is_word: bool
    words: tuple[Word, ...] = ()
    is_other: bool = False
    """True for what the speaker who is not `label` says, such as the backchannels listed with an utterance."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for a text that is no string and for times that are no numbers."""
        if not isinstance(self.text, str):
            raise TypeError(f"the text {self.text!r:.60} is no string")
        for time in (self.start, self.end):
            if time is not None and not math.isfinite(time):
                raise ValueError(f"{self.text!r:.60} has a time that is no number: {time}")


def is_list(value: Any) -> bool:
    """True for a list of words or utterances, and for a mapping that has one under a known key."""
    return isinstance(value, list) or (isinstance(value, dict) and any(key in value for key in (*_WORDS, *_UTTERANCES)))


def entries_of(value: Any, label: str) -> Iterator[TranscriptEntry]:
    """Yields all words and utterances of a value; `label` is the speaker unless they name their own.

    Raises: TypeError, ValueError and the like for values of wrong types; `read_json` names the file.
    """
    if isinstance(value, str):
        yield TranscriptEntry(text=value, start=None, end=None, label=label, is_word=False)
    elif isinstance(value, list):
        is_word = all(set(part) & {"words", "backchannels"} == set() and _is_single(part.get("text")) for part in value)
        for part in value:
            yield from _entry(part, label, is_word=is_word)
    elif isinstance(value, dict) and "alignments" in value:
        for text, (start, end), speaker in value["alignments"]:
            yield TranscriptEntry(
                text=text, start=float(start), end=float(end), label=label or str(speaker), is_word=True
            )
    elif isinstance(value, dict) and any(isinstance(value.get(side), (dict, list, str)) for side in SIDES):
        yield from chain.from_iterable(entries_of(value[side], side) for side in SIDES if side in value)
    elif isinstance(value, dict):
        key = next((key for key in (*_UTTERANCES, *_WORDS) if isinstance(value.get(key), list)), None)
        if key is not None:
            for part in value[key]:
                yield from _entry(part, label, is_word=key in _WORDS)
        elif isinstance(value.get("text"), str) and label:
            yield TranscriptEntry(text=value["text"], start=None, end=None, label=label, is_word=False)


def _entry(part: dict[str, Any], label: str, *, is_word: bool = False) -> Iterator[TranscriptEntry]:
    """Yields one word or utterance, and the backchannels of the other side that are listed with it."""
    text = next((part[key] for key in _TEXT if isinstance(part.get(key), str)), None)
    start, end = (next((part[key] for key in keys if part.get(key) is not None), None) for keys in (_START, _END))
    speaker = next((str(part[key]) for key in _SPEAKER if isinstance(part.get(key), (str, int))), label)
    if text is None:
        raise ValueError(f"an entry without text: {str(part)[:60]}")
    exact = _exact_words(part.get("words"), label)
    if exact and start is None and end is None:
        start, end = exact[0].start, exact[-1].end
    if exact and (
        start is None or end is None or exact[0].start < float(start) - 0.5 or exact[-1].end > float(end) + 0.5
    ):
        exact = ()  # These times count from somewhere else, so the utterance will be aligned.
    own = label if label in SIDES else speaker
    yield TranscriptEntry(
        text=text,
        start=None if start is None else float(start),
        end=None if end is None else float(end),
        label=own,
        is_word=is_word or "word" in part,
        words=exact,
    )
    for backchannel in part.get("backchannels") or ():
        if isinstance(backchannel, dict):
            yield from (replace(entry, is_other=True) for entry in _entry(backchannel, own))


def _is_single(text: Any) -> bool:
    """True for one word: a list of single words is a list of words, whatever its keys are called."""
    return isinstance(text, str) and len(text.split()) == 1


def _exact_words(words: Any, label: str) -> tuple[Word, ...]:
    """Returns the words of an utterance if all of them have both times, else ()."""
    if not isinstance(words, list) or not all(isinstance(word, dict) for word in words):
        return ()
    found = [entry for word in words for entry in _entry(word, label, is_word=True)]
    return (
        tuple(
            Word(text=word.text.strip(), start=word.start, end=word.end)
            for word in found
            if word.start is not None and word.end is not None and word.text.strip()
        )
        if all(word.start is not None and word.end is not None for word in found)
        else ()
    )
