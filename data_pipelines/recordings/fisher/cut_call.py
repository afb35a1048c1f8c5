"""One window of a call as a dialogue folder: audio of both sides, a voice clip for each agent, and the record."""

# Shapes: C channels, S samples

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.listening.align import ALIGNER_NAME
from data_pipelines.recordings.budget import row_frames, token_counter
from data_pipelines.recordings.clips import draw_clip, play_clip
from data_pipelines.recordings.fisher.heard import SIDE
from data_pipelines.recordings.fisher.job import Job, Settings
from data_pipelines.recordings.fisher.source import Source
from data_pipelines.recordings.windows import Letter, Spoken, Window
from data_pipelines.records.schema import Dialogue, Side, Word
from data_pipelines.roles.topics import role_prompts
from data_pipelines.sound.audio import RATE_HZ, Audio, write_flac


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A call as its windows are cut from it: all utterances, the audio at 24 kHz, and what was measured."""

    source: Source
    spoken: Sequence[Spoken]
    audio_CS: Audio
    gates: dict[str, float]


def cut(name: str, window: Window, heard: Heard, job: Job, settings: Settings, folder: Path) -> Dialogue:
    """Writes the audio files of one window and answers its record, whose split is still open."""
    rng = random.Random(f"{settings.seed}/{name}")
    prompts = dict(zip(SIDE, role_prompts(job.title, rng), strict=True))
    audio_CS = heard.audio_CS[:, round(window.start * RATE_HZ) : round(window.end * RATE_HZ)]
    seconds = audio_CS.shape[1] / RATE_HZ
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    write_flac(folder / "audio.flac", audio_CS, RATE_HZ)
    sides, spans, rows = {}, {}, {}
    for number, letter in enumerate(SIDE):
        side, text, level = SIDE[letter], "", ""
        if letter in window.clips:
            clip = draw_clip(window.clips[letter], rng)
            write_flac(folder / f"{side}.voice.flac", play_clip(clip, heard.audio_CS[number]), RATE_HZ)
            text, level = prompts[letter]
            spans[side] = [round(time, 3) for time in clip.span]
            rows[side] = row_frames(seconds, clip.seconds, token_counter(settings.tokenizer)(text))
        sides[side] = Side(
            speaker=job.row.speakers[number],
            words=_words(heard.spoken, letter, window),
            is_agent=letter in window.clips,
            role_prompt=text,
            prompt_level=level,
        )
    dialogue = Dialogue(
        id=name,
        source="fisher",
        split="train",
        scenario=job.row.topic or "unknown",
        seconds=seconds,
        left=sides["left"],
        right=sides["right"],
        licence=settings.licence,
        events=_events(heard.spoken, window),
        provenance=_provenance(window, heard.source, job, settings) | {"voice_spans": spans, "row_frames": rows},
        gates=heard.gates,
    )
    dialogue.check(name)
    return dialogue


def _provenance(window: Window, source: Source, job: Job, settings: Settings) -> dict[str, Any]:
    extension = settings.bandwidth_extension
    return {
        "call": f"fe_03_{job.call}",
        "window": [round(window.start, 3), round(window.end, 3)],
        "topic": job.title,
        "sexes": list(job.row.sexes),
        "transcriber": source.transcript.transcriber,
        "cased_share": round(source.cased_share, 3),
        "decoder": source.decoder,
        "word_times": ALIGNER_NAME,
        "resampler": "" if extension else settings.resampler,
        "bandwidth_extension": extension,
        "prompts": "topic title",
        "prompt_tokens": "exact" if settings.tokenizer else "estimated",
        "seed": settings.seed,
    }


def _words(spoken: Sequence[Spoken], letter: Letter, window: Window) -> tuple[Word, ...]:
    """The words of one side in the window, timed from its start."""
    words = [word for turn in spoken if turn.letter == letter for word in turn.words]
    return tuple(
        Word(text=word.text, start=round(word.start - window.start, 3), end=round(word.end - window.start, 3))
        for word in sorted(words, key=lambda word: (word.start, word.end))
        if word.start >= window.start and word.end <= window.end
    )


def _events(spoken: Sequence[Spoken], window: Window) -> tuple[dict[str, Any], ...]:
    events = [
        event | {"start": round(event["start"] - window.start, 3), "end": round(event["end"] - window.start, 3)}
        for turn in spoken
        for event in turn.events
        if event["start"] >= window.start and event["end"] <= window.end
    ]
    return tuple(sorted(events, key=lambda event: (event["start"], event["side"])))
