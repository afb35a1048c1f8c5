"""Masks personal numbers and names in recordings (`--mask`): in words, in the sound of both channels, in prompts.

What is personal is found by rules over words with times (data_pipelines.text.personal). Each find becomes one marker
word, and its sound becomes the quiet of the line: noise at the level of the channel's pauses, with soft edges. A beep
would be heard as speech and learned as such, digital silence would be learned as a sign that words follow; noise at the
level of the line is what a pause sounds like. Speech whose words are unknown cannot be searched, so it is quiet, too.
"""

# Shapes: C channels, S samples

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from data_pipelines.files import digest
from data_pipelines.recordings.utterances import Spoken, Utterance
from data_pipelines.records.schema import SIDES, Fact, Probe, Word
from data_pipelines.sound.audio import Audio, to_rate
from data_pipelines.text.personal import masked_text, personal_runs, replaced
from data_pipelines.text.personal_names import name_words
from data_pipelines.text.personal_words import PersonalRun, SaidWord
from data_pipelines.writer.tables import table

MARGIN_SECONDS = 0.08
"""Sound beside a find that is quiet as well: edges of words are known to about 0.06 s."""
FADE_SECONDS = 0.01
_FRAME_SECONDS = 0.02
_PAUSE_PERCENTILE = 10


@dataclass(frozen=True, kw_only=True)
class MaskedCall:
    """A recording without what was found. counts: finds by kind; names: the names that were found, in lower case."""

    audio_CS: Audio
    spoken: Spoken
    counts: dict[str, int]
    names: frozenset[str]


@cache
def common_names() -> frozenset[str]:
    """First and last names in lower case, from the tables of the script writer."""
    names = table("names")
    return frozenset(f"{names['first']} {names['last']}".lower().split())


def mask_prompt(text: str, known: Collection[str] = ()) -> str:
    """Returns a role prompt or another text with markers for what is personal. known: names to mask."""
    return masked_text(text, common_names(), known)


def mask_speaker(name: str) -> str:
    """Returns a key of a speaker that shows no name and is the same for the same name.

    It is a hash without salt: who has a list of names can find the one that it is of.
    """
    return digest(name)[:12]


def mask_facts(facts: Sequence[Fact], known: Collection[str]) -> tuple[Fact, ...]:
    """Returns the facts of a prompt, masked like the prompt."""
    return tuple(replace(fact, text=mask_prompt(fact.text, known)) for fact in facts)


def mask_probes(probes: Sequence[Probe], known: Collection[str]) -> tuple[Probe, ...]:
    """Returns the probes, masked like the prompt."""
    return tuple(
        replace(
            probe,
            question=None if probe.question is None else mask_prompt(probe.question, known),
            answer=None if probe.answer is None else mask_prompt(probe.answer, known),
        )
        for probe in probes
    )


def mask_call(
    audio_CS: Audio,
    rate: int,
    spoken: Spoken,
    *,
    source_rate: int,
    known: Collection[str] = (),
    prompts: Sequence[str] = (),
) -> MaskedCall:
    """Masks a whole recording.

    A find is quiet on both channels, because the other one may carry it as crosstalk; words of the other side within it
    go with it. source_rate: of the recording before it was resampled, which bounds the band of its noise. known: names
    of these people; names in `prompts` are masked in the call, too.
    Shapes: audio_CS float32 [2, samples] at `rate`, of "left" and "right".
    """
    shown = [*known, *(name for prompt in prompts for name in name_words(prompt, common_names()))]
    lists = [
        [(n, word) for n, utterance in enumerate(spoken[side]) for word in utterance.words] for side in SIDES
    ]  # fmt: skip
    said = [
        [SaidWord(text=word.text, start=word.start, end=word.end, side=side) for _, word in words]
        for side, words in zip(SIDES, lists, strict=True)
    ]
    found = personal_runs(said, common_names(), shown)
    parts = [_by_utterance(runs, [n for n, _ in words]) for runs, words in zip(found, lists, strict=True)]
    spans = [
        [(words[run.first].start, words[run.last].end) for run in runs] for words, runs in zip(said, parts, strict=True)
    ]
    quiet_CS = np.zeros(audio_CS.shape, np.bool_)
    counts = Counter(run.kind for runs in found for run in runs)
    masked: dict[str, list[Utterance]] = {}
    for channel, side in enumerate(SIDES):
        others = spans[1 - channel]
        words: dict[int, list[Word]] = {n: [] for n in range(len(spoken[side]))}
        lost: list[tuple[float, float]] = []
        for text, (first, last) in replaced(said[channel], parts[channel]):
            start, end = said[channel][first].start, said[channel][last].end
            if (first, last) != (first, first) or text != said[channel][first].text:
                words[lists[channel][first][0]].append(Word(text=text, start=start, end=end))
            elif any(start < stop + MARGIN_SECONDS and end > begin - MARGIN_SECONDS for begin, stop in others):
                lost.append((start, end))
            else:
                words[lists[channel][first][0]].append(Word(text=text, start=start, end=end))
        unheard = [u for u in spoken[side] if u.is_wordless]
        counts["speech"] += len(unheard)
        for utterance in unheard:
            quiet_CS[channel, _samples(utterance.start, utterance.end, rate)] = True
        for word in (word for own in words.values() for word in own):
            quiet_CS[channel, _samples(word.start, word.end, rate)] = False
        for start, end in [*spans[channel], *others]:
            quiet_CS[channel, _samples(start - MARGIN_SECONDS, end + MARGIN_SECONDS, rate)] = True
        for start, end in lost:
            quiet_CS[channel, _samples(start, end, rate)] = True
        masked[side] = [
            _with_words(utterance, words[n]) for n, utterance in enumerate(spoken[side])
        ]  # fmt: skip
    names = frozenset(
        name for runs, words in zip(found, said, strict=True) for run in runs if run.kind == "name"
        for word in words[run.first : run.last + 1] for name in name_words(word.text, (), whole=True)
    )  # fmt: skip
    return MaskedCall(
        audio_CS=hushed(audio_CS, rate, quiet_CS, source_rate),
        spoken=masked,
        counts={kind: count for kind, count in sorted(counts.items()) if count},
        names=names | {name for name in shown if name.isalpha() and name.islower()},
    )


def hushed(audio_CS: Audio, rate: int, quiet_CS: npt.NDArray[np.bool_], source_rate: int) -> Audio:
    """Returns the audio with the quiet of each channel's own pauses wherever `quiet_CS` is true.

    The noise depends on the audio's length and level alone, so that the same recording gives the same bytes.
    Shapes: [channels, samples] each.
    """
    out_CS = audio_CS.copy()
    fade = max(1, round(FADE_SECONDS * rate))
    for channel, (audio_S, quiet_S) in enumerate(zip(audio_CS, quiet_CS, strict=True)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet_S.astype(np.int8), [0]])))
        if not len(edges):
            continue
        band = min(source_rate, rate)
        rng = np.random.default_rng([channel, len(audio_S)])
        noise_S = to_rate(rng.standard_normal(-(-len(audio_S) * band // rate) + band).astype(np.float32), band, rate)
        noise_S = noise_S[: len(audio_S)] * np.float32(_pause_level(audio_S, rate))
        for first, last in edges.reshape(-1, 2):
            weight = np.ones(last - first, np.float32)
            size = min(fade, (last - first) // 2)
            ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 1) / (size + 1))).astype(np.float32)
            weight[:size], weight[len(weight) - size :] = ramp, ramp[::-1]
            part = slice(first, last)
            out_CS[channel, part] = (1 - weight) * audio_S[part] + weight * noise_S[part]
    return out_CS


def _pause_level(audio_S: Audio, rate: int) -> float:
    """The RMS of the channel's quiet frames, which is the noise of the line; 0 for a channel with digital silence."""
    hop = round(_FRAME_SECONDS * rate)
    frames = audio_S[: len(audio_S) // hop * hop].reshape(-1, hop).astype(np.float64)
    return float(np.percentile(np.sqrt(np.square(frames).mean(axis=1)), _PAUSE_PERCENTILE)) if len(frames) else 0.0


def _samples(start: float, end: float, rate: int) -> slice:
    return slice(max(0, int(start * rate)), max(0, int(np.ceil(end * rate))))


def _by_utterance(runs: Sequence[PersonalRun], utterance: Sequence[int]) -> list[PersonalRun]:
    """Cuts runs at the borders of utterances, so that what is said between them stays."""
    parts = []
    for run in runs:
        first = run.first
        for n in range(run.first, run.last + 1):
            if n == run.last or utterance[n + 1] != utterance[n]:
                parts.append(PersonalRun(kind=run.kind, first=first, last=n))
                first = n + 1
    return parts


def _with_words(utterance: Utterance, words: Sequence[Word]) -> Utterance:
    """The utterance with other words; one that has none left is quiet, and so are signs that stood on them."""
    if not words:
        events = () if utterance.words or utterance.is_wordless else utterance.events
        return replace(utterance, text="", words=(), is_silent=True, events=events)
    return replace(utterance, text="", words=tuple(words))


def split_known(names: Mapping[str, str]) -> list[str]:
    """The words of people's names that a table or record states."""
    return [part.lower() for name in names.values() for part in name_words(name, (), whole=True)]
