"""One Fisher call: read, align, cut into dialogue folders. What a worker process does."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipelines.audio import RATE_HZ, Audio, fade_in, fade_out, to_rate, write_flac
from data_pipelines.fisher.prompts import role_prompts
from data_pipelines.fisher.sphere import read_sphere
from data_pipelines.fisher.tables import Call
from data_pipelines.fisher.transcript import Letter, Transcript, Utterance, read_transcript
from data_pipelines.fisher.windows import Clip, Spoken, Window, candidate_clips, is_wordless, plan_windows
from data_pipelines.listening.align import ALIGNER_NAME, shared_aligner
from data_pipelines.quality.gates import swap_ratio
from data_pipelines.schema import Dialogue, Side, Word
from model.errors import UserError

SIDE: dict[Letter, Literal["left", "right"]] = {"A": "left", "B": "right"}
BAD_AUDIO = frozenset({"00446", "01243", "06716"})
"""Calls that public recipes leave out because of their audio."""
MIN_ALIGNED_SHARE = 0.5
MIN_SWAP_RATIO = 2.0
"""RMS of a channel inside its own words over outside: lower if the text is of another call or side, or at echo."""
_PAD = 0.2  # heard around an utterance, whose times are only that good, seconds
_FADE_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What shapes the output; a rerun into the same folder must have the same."""

    seed: int
    max_seconds: float
    voice_seconds: float
    licence: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call to import."""

    call: str
    audio: Path
    transcript: Path
    row: Call
    title: str


def import_call(job: Job, settings: Settings, out: Path) -> dict[str, Any]:
    """Writes the audio of all dialogues of one call and answers its draft as JSON values.

    The draft has `dialogues` (records without a final split; every side that can be the agent is one) and `notes`
    (sides that cannot, and why), or `rejected`, the reason why the call gives nothing.
    """
    try:
        return _import_call(job, settings, out)
    except UserError as why:
        return {"call": job.call, "rejected": " ".join(str(why).split()), "dialogues": [], "notes": []}


def _import_call(job: Job, settings: Settings, out: Path) -> dict[str, Any]:
    if job.call in BAD_AUDIO:
        raise UserError(f"{job.audio.name}: known for its bad audio")
    transcript = read_transcript(job.transcript, job.call)
    samples, rate = read_sphere(job.audio)
    if samples.shape[1] != 2:
        raise UserError(f"{job.audio}: has {samples.shape[1]} channel(s), a call has 2: copy it again from the disc")
    audio_CS = np.ascontiguousarray(samples.T)
    seconds = len(samples) / rate
    inside = _inside(transcript.utterances, seconds, job)
    spoken, share = _align_all(inside, audio_CS, rate)
    if share < MIN_ALIGNED_SHARE:
        raise UserError(f"{job.transcript.name}: only {100 * share:.0f} % of its lines fit the audio of the call")
    ratios = _check_channels(spoken, audio_CS, rate, job)
    clips: dict[Letter, list[Clip]] = {
        letter: candidate_clips(spoken, letter, settings.voice_seconds) if ratios[letter] >= MIN_SWAP_RATIO else []
        for letter in SIDE
    }
    windows = plan_windows(spoken, clips, seconds, settings.max_seconds)
    if not windows:
        raise UserError(f"{job.audio.name}: {seconds:.0f} s are too short for a dialogue")
    notes, dialogues = [], []
    audio24_CS = np.clip(to_rate(audio_CS, rate, RATE_HZ), -1, 1)
    for number, window in enumerate(windows, 1):
        name = f"fe_03_{job.call}-{number}"
        refusals = {
            letter: f"its channel is as loud outside its words as inside (ratio {ratios[letter]:.1f})"
            if ratios[letter] < MIN_SWAP_RATIO
            else reason
            for letter, reason in window.refusals.items()
        }
        notes += [{"id": name, "reason": f"side {letter} is no agent: {why}"} for letter, why in refusals.items()]
        if window.clips:
            gates = {f"swap_ratio_{SIDE[letter]}": round(ratio, 3) for letter, ratio in ratios.items()}
            gates["aligned_share"] = round(share, 4)
            dialogue = _cut(name, window, spoken, audio24_CS, job, settings, transcript, gates, out / name)
            dialogues.append(asdict(dialogue))
    if not dialogues:
        raise UserError("; ".join(note["reason"] for note in notes))
    return {"call": job.call, "dialogues": dialogues, "notes": notes}


def _inside(utterances: Sequence[Utterance], seconds: float, job: Job) -> list[Utterance]:
    """The utterances that lie in the audio. Raises UserError if more than one in twenty does not."""
    inside = [utterance for utterance in utterances if utterance.end <= seconds + 1.0 and utterance.start < seconds]
    beyond = len(utterances) - len(inside)
    if beyond > 0.05 * len(utterances):
        raise UserError(
            f"{job.transcript.name}: {beyond} of {len(utterances)} lines lie beyond the audio of {seconds:.0f} s: "
            "the transcript does not match the audio"
        )
    return inside


def _align_all(utterances: Sequence[Utterance], audio_CS: Audio, rate: int) -> tuple[list[Spoken], float]:
    """Gives every utterance its word times; also the share of lines with words that fit the audio."""
    last_end = {"A": 0.0, "B": 0.0}
    tried = fitted = 0
    spoken = []
    for utterance in utterances:
        letter = utterance.letter
        audio_S = audio_CS[0 if letter == "A" else 1]
        start = max(utterance.start - _PAD, min(last_end[letter], utterance.start), 0.0)
        end = min(utterance.end + _PAD, audio_CS.shape[1] / rate)
        last_end[letter] = utterance.end
        turn = _align(utterance, audio_S[int(start * rate) : int(end * rate)], rate, start)
        if any(token.kind == "word" for token in utterance.tokens):
            tried += 1
            fitted += bool(turn.words)
        spoken.append(turn)
    return _with_backchannels(spoken, utterances), fitted / tried if tried else 0.0


def _align(utterance: Utterance, audio_S: Audio, rate: int, start: float) -> Spoken:
    """Aligns one utterance heard from `start` on; broken-off words are aligned, too, but not kept."""
    bounds: dict[str, Any] = {"start": utterance.start, "end": utterance.end, "letter": utterance.letter}
    said = [token for token in utterance.tokens if token.kind != "laugh"]
    laughs = [n for n, token in enumerate(utterance.tokens) if token.kind == "laugh"]
    if not said:
        laughter = _event("laughter", utterance.letter, utterance.start, utterance.end)
        return Spoken(**bounds, words=(), events=(laughter,) if laughs else (), is_silent=utterance.is_certain)
    try:
        found = shared_aligner().align(audio_S, rate, [token.text for token in said])
    except UserError as why:
        if "cannot be aligned" not in str(why):
            raise
        found = None  # a digit in the transcript: audible, but there is no telling how it was said
    if found is None:
        return Spoken(**bounds, words=())
    times = [(round(word.start + start, 3), round(word.end + start, 3)) for word in found.words]
    words = [
        Word(text=token.text, start=first, end=last)
        for token, (first, last) in zip(said, times, strict=True)
        if token.kind == "word"
    ]
    events = []
    for n in laughs:  # only its place among the words is known
        before = sum(token.kind != "laugh" for token in utterance.tokens[:n])
        since = times[before - 1][1] if before else utterance.start
        until = times[before][0] if before < len(times) else utterance.end
        if until > since:
            events.append(_event("laughter", utterance.letter, since, until))
    return Spoken(**bounds, words=tuple(words), events=tuple(events), is_silent=not words)


def _with_backchannels(spoken: Sequence[Spoken], utterances: Sequence[Utterance]) -> list[Spoken]:
    """Marks one to three words of listening, said while the other side goes on talking."""
    marked = []
    for turn, utterance in zip(spoken, utterances, strict=True):
        if turn.words and utterance.is_backchannel:
            start, end = turn.words[0].start, turn.words[-1].end
            if any(other.letter != turn.letter and other.start < start and end < other.end for other in spoken):
                event = _event("backchannel", turn.letter, start, end)
                turn = Spoken(**{**vars(turn), "events": (*turn.events, event)})
        marked.append(turn)
    return marked


def _check_channels(spoken: Sequence[Spoken], audio_CS: Audio, rate: int, job: Job) -> dict[Letter, float]:
    """The swap ratio of each side. Raises UserError if no side is louder in its own words than outside."""
    ratios: dict[Letter, float] = {}
    for side, letter in enumerate(SIDE):
        turns = [turn for turn in spoken if turn.letter == letter]
        words = [word for turn in turns for word in turn.words]
        # Utterances without words sound, too: they are left out of the outside.
        words += [Word(text="", start=turn.start, end=turn.end) for turn in turns if is_wordless(turn) or turn.events]
        ratios[letter] = swap_ratio(audio_CS[side], rate, words) if words else 0.0
    if max(ratios.values()) < MIN_SWAP_RATIO:
        raise UserError(
            f"{job.transcript.name}: both channels are as loud outside their words as inside (ratios "
            f"{ratios['A']:.1f} and {ratios['B']:.1f}, wanted {MIN_SWAP_RATIO:.0f}): the transcript does not match"
        )
    return ratios


def _cut(
    name: str,
    window: Window,
    spoken: Sequence[Spoken],
    audio_CS: Audio,
    job: Job,
    settings: Settings,
    transcript: Transcript,
    gates: dict[str, float],
    folder: Path,
) -> Dialogue:
    """Writes the audio files of one window and answers its record, whose split is still open."""
    rng = random.Random(f"{settings.seed}/{name}")
    prompts = dict(zip(SIDE, role_prompts(job.title, rng), strict=True))
    first, last = round(window.start * RATE_HZ), round(window.end * RATE_HZ)
    cut_CS = audio_CS[:, first:last]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    write_flac(folder / "audio.flac", cut_CS, RATE_HZ)
    sides, spans = {}, {}
    for number, letter in enumerate(SIDE):
        words = [word for turn in spoken if turn.letter == letter for word in turn.words]
        kept = tuple(
            Word(text=word.text, start=round(word.start - window.start, 3), end=round(word.end - window.start, 3))
            for word in sorted(words, key=lambda word: (word.start, word.end))
            if word.start >= window.start and word.end <= window.end
        )
        is_agent = letter in window.clips
        if is_agent:
            longest = max(clip.seconds for clip in window.clips[letter])
            clip = rng.choice([clip for clip in window.clips[letter] if clip.seconds >= 0.9 * longest])
            spans[SIDE[letter]] = [round(time, 3) for time in clip.span]
            write_flac(folder / f"{SIDE[letter]}.voice.flac", _play(clip, audio_CS[number]), RATE_HZ)
        text, level = prompts[letter] if is_agent else ("", "")
        sides[SIDE[letter]] = Side(
            speaker=job.row.speakers[number], words=kept, is_agent=is_agent, role_prompt=text, prompt_level=level
        )
    events = [
        event | {"start": round(event["start"] - window.start, 3), "end": round(event["end"] - window.start, 3)}
        for turn in spoken
        for event in turn.events
        if event["start"] >= window.start and event["end"] <= window.end
    ]
    dialogue = Dialogue(
        id=name,
        source="fisher",
        split="train",
        scenario=job.row.topic or "unknown",
        seconds=cut_CS.shape[1] / RATE_HZ,
        left=sides["left"],
        right=sides["right"],
        licence=settings.licence,
        events=tuple(sorted(events, key=lambda event: (event["start"], event["side"]))),
        provenance={
            "call": f"fe_03_{job.call}",
            "window": [round(window.start, 3), round(window.end, 3)],
            "voice_spans": spans,
            "topic": job.title,
            "sexes": list(job.row.sexes),
            "transcriber": transcript.transcriber,
            "word_times": ALIGNER_NAME,
            "resampler": "soxr HQ",
            "prompts": "topic title",
            "seed": settings.seed,
        },
        gates=gates,
    )
    dialogue.check(name)
    return dialogue


def _play(clip: Clip, audio_S: Audio) -> Audio:
    """The pieces of a clip one after the other, with soft edges. Longer pauses between them are gone."""
    fade = int(_FADE_SECONDS * RATE_HZ)
    pieces = [audio_S[round(start * RATE_HZ) : round(end * RATE_HZ)] for start, end in clip.pieces]
    return np.concatenate([fade_out(fade_in(piece, fade), fade) for piece in pieces])


def _event(kind: str, letter: Letter, start: float, end: float) -> dict[str, Any]:
    return {"kind": kind, "side": SIDE[letter], "start": round(start, 3), "end": round(end, 3)}
