"""One Fisher call: read, align, cut into dialogue folders. What a worker process does."""

# Shapes: C channels, S samples

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_pipelines.recordings.budget import dialogue_seconds, token_counter
from data_pipelines.recordings.fisher.cut_call import Heard, cut
from data_pipelines.recordings.fisher.heard import SIDE, align_all
from data_pipelines.recordings.fisher.job import Job, Settings
from data_pipelines.recordings.fisher.source import read_call, to_24k
from data_pipelines.recordings.fisher.transcript import Utterance
from data_pipelines.recordings.windows import (
    MIN_WINDOW_SECONDS,
    Clip,
    Letter,
    Limits,
    Spoken,
    candidate_clips,
    is_wordless,
    plan_windows,
)
from data_pipelines.records.schema import Word
from data_pipelines.roles.topics import longest_prompt
from data_pipelines.sound.audio import Audio
from data_pipelines.sound.levels import swap_ratio
from model.errors import UserError

MIN_ALIGNED_SHARE = 0.5
MIN_SWAP_RATIO = 2.0
"""RMS of a channel inside its own words over outside: lower if the text is of another call or side, or at echo."""


def import_call(job: Job, settings: Settings, out: Path) -> dict[str, Any]:
    """Writes the audio of all dialogues of one call and answers its draft as JSON values.

    The draft has `dialogues` (records without a final split; every side that can be the agent is one) and `notes`
    (sides that cannot, and why), or `rejected`, the reason why the call gives nothing.
    """
    try:
        return _import_call(job, settings, out)
    except UserError as why:
        for folder in out.glob(f"fe_03_{job.call}-*"):  # begun, or of an earlier run
            shutil.rmtree(folder)
        return {"call": job.call, "rejected": " ".join(str(why).split()), "dialogues": [], "notes": []}


def _import_call(job: Job, settings: Settings, out: Path) -> dict[str, Any]:
    source = read_call(job, settings.filters)
    audio_CS, rate = source.audio_CS, source.rate
    inside = _inside(source.transcript.utterances, source.seconds, job)
    spoken, share = align_all(inside, audio_CS, rate)
    if share < MIN_ALIGNED_SHARE:
        raise UserError(f"{job.transcript.name}: only {100 * share:.0f} % of its lines fit the audio of the call")
    ratios = _check_channels(spoken, audio_CS, rate, job)
    barred = _barred(ratios, job, settings)
    clips: dict[Letter, list[Clip]] = {
        letter: [] if barred[letter] else candidate_clips(spoken, letter, settings.voice_seconds) for letter in SIDE
    }
    windows = plan_windows(spoken, clips, source.seconds, _limits(job, settings))
    if not windows:
        why = "are too short for a dialogue" if source.seconds < 2 * MIN_WINDOW_SECONDS else "have no pause to cut at"
        raise UserError(f"{job.audio.name}: {source.seconds:.0f} s {why}")
    notes = [{"id": f"fe_03_{job.call}", "reason": note} for note in source.notes]
    dialogues = []
    gates = {f"swap_ratio_{SIDE[letter]}": round(ratio, 3) for letter, ratio in ratios.items()}
    gates["aligned_share"] = round(share, 4)
    heard = Heard(source=source, spoken=spoken, audio_CS=to_24k(audio_CS, rate, settings), gates=gates)
    for number, window in enumerate(windows, 1):
        name = f"fe_03_{job.call}-{number}"
        for letter, why in window.refusals.items():
            notes.append({"id": name, "reason": f"side {letter} is no agent: {barred[letter] or why}"})
        if window.clips:
            dialogues.append(asdict(cut(name, window, heard, job, settings, out / name)))
    if not dialogues:
        raise UserError("; ".join(note["reason"] for note in notes))
    return {"call": job.call, "dialogues": dialogues, "notes": notes}


def _limits(job: Job, settings: Settings) -> Limits:
    """The limits of the settings, shortened where the longest prompt of this call takes more than is kept free."""
    needed = token_counter(settings.tokenizer)(longest_prompt(job.title))
    most = dialogue_seconds(settings.voice_seconds, max(needed, settings.prompt_tokens))
    return replace(settings.limits, max_seconds=min(settings.limits.max_seconds, most))


def _barred(ratios: dict[Letter, float], job: Job, settings: Settings) -> dict[Letter, str]:
    """Why a side can be the agent in no window of the call, or ""."""
    barred: dict[Letter, str] = {}
    for side, letter in enumerate(SIDE):
        echo = f"its channel is as loud outside its words as inside (ratio {ratios[letter]:.1f})"
        barred[letter] = settings.filters.refuse_side(job.row, side) or (
            echo if ratios[letter] < MIN_SWAP_RATIO else ""
        )
    return barred


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
