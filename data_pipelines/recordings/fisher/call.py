"""Imports one Fisher call in a worker: reads it, aligns its words, and cuts it into dialogue folders."""

# Shapes: C channels, S samples

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.listening.align import ALIGNER_NAME
from data_pipelines.recordings.budget import dialogue_seconds, row_frames, token_counter
from data_pipelines.recordings.clips import candidate_clips, draw_clip
from data_pipelines.recordings.cut import (
    MIN_PLACED_SHARE,
    MIN_SWAP_RATIO,
    HeardRecording,
    channel_ratio,
    write_window,
)
from data_pipelines.recordings.drafts import Note
from data_pipelines.recordings.fisher.heard import align_lines
from data_pipelines.recordings.fisher.job import CallDraft, CallFiles, FisherSettings
from data_pipelines.recordings.fisher.read_call import ReadCall, read_call, to_24k
from data_pipelines.recordings.fisher.timed_lines import SIDE_OF, TimedLine
from data_pipelines.recordings.mask import mask_call
from data_pipelines.recordings.recording import Unready
from data_pipelines.recordings.utterances import Utterance
from data_pipelines.recordings.windows import MIN_WINDOW_SECONDS, Window, WindowLimits, plan_windows
from data_pipelines.records.provenance import MASKED, RECOGNISED, RECORDED
from data_pipelines.records.schema import SIDES, Dialogue, Side
from data_pipelines.roles.topics import longest_prompt, role_prompts
from model.errors import UserError


def import_call(files: CallFiles, settings: FisherSettings, out: Path) -> CallDraft:
    """Writes the audio of all dialogues of one call below `out` and returns its draft.

    The dialogues of the draft have no final split yet; every side that can be the agent is one. Faults of the call
    become the reason of its rejection.
    Raises: Unready if the recogniser cannot be opened.
    """
    try:
        return _import_call(files, settings, out)
    except Unready:
        raise
    except UserError as why:
        for folder in out.glob(f"fe_03_{files.call}-*"):  # This run began them, or an earlier one made them.
            shutil.rmtree(folder)
        return CallDraft(call=files.call, rejected=" ".join(str(why).split()))


def _import_call(files: CallFiles, settings: FisherSettings, out: Path) -> CallDraft:
    read = read_call(files, settings.filters)
    spoken, share = align_lines(_inside(read, files), read.audio_CS, read.rate, settings.listener)
    if share < MIN_PLACED_SHARE:
        raise UserError(
            f"{files.transcript.name}: only {100 * share:.0f} % of its lines fit the audio of the call",
            code="bad-transcript",
        )
    counts: dict[str, int] = {}
    if settings.mask:
        masked = mask_call(read.audio_CS, read.rate, spoken, source_rate=read.rate)
        read, spoken, counts = replace(read, audio_CS=masked.audio_CS), masked.spoken, masked.counts
    ratios = {side: channel_ratio(spoken[side], read.audio_CS[n], read.rate) for n, side in enumerate(SIDES)}
    barred = _barred(ratios, files, settings)
    clips = {side: [] if barred[side] else candidate_clips(spoken[side], settings.voice_seconds) for side in SIDES}
    windows = plan_windows(spoken, clips, read.seconds, _limits(files, settings))
    if not windows:
        why = "are too short for a dialogue" if read.seconds < 2 * MIN_WINDOW_SECONDS else "have no pause to cut at"
        raise UserError(f"{files.audio.name}: {read.seconds:.0f} s {why}", code="bad-audio")
    gates = {f"swap_ratio_{side}": round(ratio, 3) for side, ratio in ratios.items()}
    gates["aligned_share"] = round(share, 4)
    heard = HeardRecording(audio_CS=to_24k(read.audio_CS, read.rate, settings), spoken=spoken, gates=gates)
    notes = [Note(id=f"fe_03_{files.call}", reason=note) for note in read.notes]
    dialogues = []
    for number, window in enumerate(windows, 1):
        name = f"fe_03_{files.call}-{number}"
        for letter, side in SIDE_OF.items():
            if side in window.refusals:
                why = barred[side] or window.refusals[side]
                notes.append(Note(id=name, reason=f"side {letter} is no agent: {why}"))
        if window.clips:
            cut = _cut(out / name, window, heard, read, files, settings)
            dialogues.append(replace(cut, provenance=cut.provenance | {MASKED: counts}) if settings.mask else cut)
    if not dialogues:
        raise UserError("; ".join(note.reason for note in notes), code="no-data")
    return CallDraft(call=files.call, dialogues=tuple(dialogues), notes=tuple(notes))


def _inside(read: ReadCall, files: CallFiles) -> Sequence[TimedLine]:
    """Returns the lines that lie in the audio. Raises UserError if more than one in twenty does not."""
    lines, seconds = read.transcript.lines, read.seconds
    inside = [line for line in lines if line.end <= seconds + 1.0 and line.start < seconds]
    beyond = len(lines) - len(inside)
    if beyond > 0.05 * len(lines):
        raise UserError(
            f"{files.transcript.name}: {beyond} of {len(lines)} lines lie beyond the audio of {seconds:.0f} s: "
            "the transcript does not match the audio",
            code="bad-transcript",
        )
    return inside


def _barred(ratios: Mapping[str, float], files: CallFiles, settings: FisherSettings) -> dict[str, str]:
    """Returns why a side can be the agent in no window of the call, or "".

    Raises: UserError if no side is louder in its own words than outside.
    """
    if max(ratios.values()) < MIN_SWAP_RATIO:
        both = " and ".join(f"{ratios[side]:.1f}" for side in SIDES)
        raise UserError(
            f"{files.transcript.name}: both channels are as loud outside their words as inside (ratios "
            f"{both}, wanted {MIN_SWAP_RATIO:.0f}): the transcript does not match",
            code="bad-transcript",
        )
    barred = {}
    for side in SIDES:
        echo = f"its channel is as loud outside its words as inside (ratio {ratios[side]:.1f})"
        barred[side] = settings.filters.refuse_side(files.facts, side) or (
            echo if ratios[side] < MIN_SWAP_RATIO else ""
        )
    return barred


def _limits(files: CallFiles, settings: FisherSettings) -> WindowLimits:
    """Returns the limits of the settings, shortened where the call's longest prompt takes more than is kept free."""
    needed = token_counter(settings.tokenizer)(longest_prompt(files.title))
    most = dialogue_seconds(settings.voice_seconds, max(needed, settings.prompt_tokens))
    return replace(settings.limits, max_seconds=min(settings.limits.max_seconds, most))


def _cut(
    folder: Path, window: Window, heard: HeardRecording, read: ReadCall, files: CallFiles, settings: FisherSettings
) -> Dialogue:
    """Writes the audio of one window and returns its record, whose split is still open."""
    rng = random.Random(f"{settings.seed}/{folder.name}")
    prompts = dict(zip(SIDES, role_prompts(files.title, rng), strict=True))
    clips = {side: draw_clip(window.clips[side], rng) for side in SIDES if side in window.clips}
    sides = {
        side: Side(speaker=speaker, is_agent=True, role_prompt=prompts[side][0], prompt_level=prompts[side][1])
        if side in clips
        else Side(speaker=speaker)
        for side, speaker in zip(SIDES, files.facts.speakers, strict=True)
    }
    voices = {side: heard.voice(side, clip) for side, clip in clips.items()}
    dialogue = Dialogue(
        id=folder.name,
        source="fisher",
        split="train",
        scenario=files.facts.topic or "unknown",
        seconds=window.end - window.start,
        left=sides["left"],
        right=sides["right"],
        licence=settings.licence,
        provenance=_provenance(read, files, settings),
    )
    cut = write_window(folder, window, heard, dialogue, voices)
    count = token_counter(settings.tokenizer)
    rows = {side: row_frames(cut.seconds, clip.seconds, count(prompts[side][0])) for side, clip in clips.items()}
    heard_by: dict[str, Any] = {}
    if settings.listener:
        recognised = {side: _recognised(heard.spoken[side], window) for side in SIDES}
        heard_by = {"asr": settings.listener.recogniser().identity(), RECOGNISED: recognised}
    return replace(cut, provenance=cut.provenance | {"row_frames": rows} | heard_by)


def _recognised(utterances: Sequence[Utterance], window: Window) -> list[list[float]]:
    """Returns the spans whose words nobody wrote, in seconds of the window."""
    spans = [(u.words[0].start, u.words[-1].end) for u in utterances if u.is_recognised and u.words]
    return [
        [round(start - window.start, 3), round(end - window.start, 3)]
        for start, end in spans
        if start >= window.start and end <= window.end
    ]


def _provenance(read: ReadCall, files: CallFiles, settings: FisherSettings) -> dict[str, Any]:
    extension = settings.bandwidth_extension
    return {
        RECORDED: True,
        "call": f"fe_03_{files.call}",
        "topic": files.title,
        "sexes": list(files.facts.sexes),
        "transcriber": read.transcript.transcriber,
        "cased_share": round(read.cased_share, 3),
        "decoder": read.decoder,
        "word_times": ALIGNER_NAME,
        "resampler": "" if extension else settings.resampler,
        "bandwidth_extension": extension,
        "prompts": "topic title",
        "prompt_tokens": "exact" if settings.tokenizer else "estimated",
        "seed": settings.seed,
    }
