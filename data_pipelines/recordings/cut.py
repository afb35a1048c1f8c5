"""One recording of any origin: fill in what its transcript lacks, cut it, write dialogue folders."""

# Shapes: C channels, S samples

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import write_line
from data_pipelines.recordings.clips import draw_clip, play_clip
from data_pipelines.recordings.fill import Filled, Listener, aligned_share, fill_side, provenance_of
from data_pipelines.recordings.item import Item, Unready, at_24k, decode_audio, field_of, item_id, stereo
from data_pipelines.recordings.sides import Sides
from data_pipelines.recordings.times import drop_bad_times, mute_overlapping
from data_pipelines.recordings.windows import (
    MAX_CLIP_SECONDS,
    MIN_CLIP_SECONDS,
    MIN_WINDOW_SECONDS,
    Clip,
    Letter,
    Limits,
    Spoken,
    Window,
    candidate_clips,
    plan_windows,
)
from data_pipelines.records.schema import SIDES, Dialogue, Side, Word
from data_pipelines.records.split import bucket
from data_pipelines.sound.audio import RATE_HZ, Audio, read_audio, to_mono_24k, write_flac
from data_pipelines.sound.levels import clipped_runs, swap_ratio
from model.errors import UserError

LETTER: dict[str, Letter] = {"left": "A", "right": "B"}
MIN_PLACED_SHARE = 0.5
MIN_SWAP_RATIO = 2.0
"""RMS of a channel inside its own words over outside: lower if the words are the other side's, or at much echo."""
_ELSEWHERE = Clip(pieces=((-2.0, -1.0),), seconds=MAX_CLIP_SECONDS)
"""Stands for a voice clip that is not taken from the recording, so that no window is too long for it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What shapes the output; a rerun into the same folder must have the same."""

    source: str
    licence: str
    agents: tuple[str, ...]
    role_prompts: Mapping[str, str] = field(default_factory=dict)
    role_fields: Mapping[str, str] = field(default_factory=dict)
    speaker_fields: Mapping[str, str] = field(default_factory=dict)
    voices: Mapping[str, str] = field(default_factory=dict)
    """Files with the voice of a side, for all recordings."""
    voice_fields: Mapping[str, str] = field(default_factory=dict)
    speakers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By recording: the name of the speaker on each side."""
    max_seconds: float = 150.0
    voice_seconds: float = 5.0
    fill: str = "both"
    listener: Listener = Listener(asr="tiny.en")
    split_by: str = "speaker"
    heldout: float = 0.1
    seed: int = 0


def import_item(item: Item, settings: Settings, out: Path) -> dict[str, Any]:
    """Writes all dialogues of one recording and answers plain values: its `dialogues` and `notes`, or `rejected`.

    Raises: Unready if an engine is missing; the faults of the recording itself become the reason of its rejection.
    """
    try:
        return {"name": item.name, **_import_item(item, settings, out)}
    except Unready:
        raise
    except UserError as why:
        reason = " ".join(str(why).split()).removeprefix(f"{item.name}: ")
        return {"name": item.name, "rejected": reason, "dialogues": [], "notes": []}


def _import_item(item: Item, settings: Settings, out: Path) -> dict[str, Any]:
    raw_CS, rate = item.audio()
    stereo(raw_CS, item.name)
    hot = clipped_runs(raw_CS)
    audio_CS, gain = at_24k(raw_CS, rate)
    del raw_CS
    seconds = audio_CS.shape[1] / RATE_HZ
    if seconds < MIN_WINDOW_SECONDS:
        raise UserError(f"{seconds:.1f} s, a dialogue lasts {MIN_WINDOW_SECONDS:.0f} s or more")
    sides, dropped = drop_bad_times(item.sides(), seconds, "its transcript")
    sides, muted = mute_overlapping(sides)
    filled = _fill(audio_CS, sides, settings)
    spoken = [
        Spoken(start=utterance.start, end=utterance.end, letter=LETTER[name], words=utterance.words)
        for name, side in filled.items()
        for utterance in side.utterances
    ]
    spoken.sort(key=lambda turn: (turn.start, turn.end, turn.letter))
    ratios = {name: _swap_ratio(audio_CS[n], filled.get(name)) for n, name in enumerate(SIDES)}
    voices = {name: voice for name in settings.agents if (voice := _own_voice(item, name, settings)) is not None}
    faults = {name: fault for name in settings.agents if (fault := _fault(filled.get(name), ratios[name]))}
    able = [name for name in settings.agents if name not in faults]
    windows = _windows(spoken, able, voices, seconds, settings) if able else []
    notes = [f"{dropped} words or utterances with impossible times are left out"] if dropped else []
    notes += [f"{muted} utterances lost their words: their speaker says two things at once"] if muted else []
    for what, fields in (("role", settings.role_fields), ("speaker", settings.speaker_fields)):
        lost = {side: path for side, path in fields.items() if field_of(item.metadata, path) is None}
        notes += [f"its record holds no {path!r} for the {what} of the {side} side" for side, path in lost.items()]
    notes += [f"the {name} side is no agent: {fault}" for name, fault in faults.items()]
    base = {"recording": item.name, "source_rate": rate, "gain": gain, "clipped_runs": hot, "seed": settings.seed}
    base |= {"resampler": "soxr HQ", **provenance_of(filled)}
    gates = {f"swap_ratio_{name}": round(ratio, 3) for name, ratio in ratios.items() if filled.get(name)}
    gates |= aligned_share(filled)
    cutter = Cutter(
        item=item, settings=settings, audio_CS=audio_CS, spoken=spoken, voices=voices, base=base, gates=gates
    )
    dialogues, refused = [], []
    for number, window in enumerate(windows, 1):
        name = f"{item_id(settings.source, item.name)}-{number}"
        reasons = {side: window.refusals[LETTER[side]] for side in able if LETTER[side] in window.refusals}
        refused += [f"{name}: the {side} side is no agent: {reason}" for side, reason in reasons.items()]
        if window.clips:
            dialogue = cutter.write(name, window, out)
            parts = {"id": name, "seconds": round(dialogue.seconds, 3), "split": dialogue.split}
            dialogues.append(parts | {"agents": list(dialogue.agent_sides)})
    if not dialogues:
        raise UserError("; ".join([*notes, *refused]) or "no stretch of it can be a dialogue")
    return {"dialogues": dialogues, "notes": [*notes, *refused]}


def _fill(audio_CS: Audio, sides: Sides, settings: Settings) -> dict[str, Filled]:
    """Word times of every side that has words, or is to get them."""
    filled = {}
    for channel, name in enumerate(SIDES):
        wanted = settings.fill == "both" or (settings.fill == "agent" and name in settings.agents)
        if name in sides or wanted:
            listener = settings.listener if wanted else Listener(asr="")
            filled[name] = fill_side(audio_CS[channel], RATE_HZ, sides.get(name), listener)
    return filled


def _swap_ratio(audio_S: Audio, filled: Filled | None) -> float:
    """RMS inside the utterances over outside, words or not; 0 if nothing is known."""
    spans = [
        span
        for utterance in (filled.utterances if filled else ())
        for span in utterance.words or (Word(text="", start=utterance.start, end=utterance.end),)
    ]
    return swap_ratio(audio_S, RATE_HZ, spans) if spans else 0.0


def _fault(filled: Filled | None, ratio: float) -> str:
    """Why a side cannot be the agent anywhere in the recording; "" if it can."""
    if filled is None:
        return "its words are unknown, and --fill forbids to listen"
    if not any(utterance.words for utterance in filled.utterances) and not filled.tried:
        return "it says no word"
    if filled.share < MIN_PLACED_SHARE:
        return f"only {100 * filled.share:.0f} % of its utterances fit the audio"
    if ratio < MIN_SWAP_RATIO:
        return f"its channel is as loud outside its words as inside (ratio {ratio:.1f}): swapped channels, or echo?"
    return ""


def _own_voice(item: Item, side: str, settings: Settings) -> Audio | None:
    """The voice clip that comes with the recording or from a file: float32 [samples] at 24 kHz; None for neither."""
    if side in settings.voice_fields:
        name = settings.voice_fields[side]
        audio_CS, rate = decode_audio(item.attachment(name), f"its {name}")
    elif side in settings.voices:
        audio_CS, rate = read_audio(Path(settings.voices[side]))
    else:
        return None
    voice = to_mono_24k(audio_CS, rate)[: round(MAX_CLIP_SECONDS * RATE_HZ)]
    if len(voice) < MIN_CLIP_SECONDS * RATE_HZ:
        raise UserError(f"the {side} voice lasts {len(voice) / RATE_HZ:.1f} s: a clip lasts 3 to 10 s")
    return np.clip(voice, -1, 1)


def _windows(
    spoken: Sequence[Spoken], able: Sequence[str], voices: Mapping[str, Audio], seconds: float, settings: Settings
) -> list[Window]:
    """Where to cut; a recording that fits and needs no clip of itself stays whole."""
    clips: dict[Letter, list[Clip]] = {letter: [] for letter in LETTER.values()}
    for name in able:
        own = [_ELSEWHERE] if name in voices else candidate_clips(spoken, LETTER[name], settings.voice_seconds)
        clips[LETTER[name]] = own
    if seconds <= settings.max_seconds and all(name in voices for name in able):
        found = {letter: tuple(clips[letter]) for letter in clips if clips[letter]}
        return [Window(start=0.0, end=seconds, clips=found, refusals={}, score=0.0)]
    return plan_windows(spoken, clips, seconds, Limits(max_seconds=settings.max_seconds))


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """Writes windows of one recording."""

    item: Item
    settings: Settings
    audio_CS: Audio
    spoken: Sequence[Spoken]
    voices: Mapping[str, Audio]
    base: Mapping[str, Any]
    gates: Mapping[str, float]

    def write(self, name: str, window: Window, out: Path) -> Dialogue:
        """Writes OUT/NAME whole; meta.json last."""
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        for left in folder.glob(".*.part"):  # of a run that was killed while writing
            left.unlink()
        cut_CS = self.audio_CS[:, round(window.start * RATE_HZ) : round(window.end * RATE_HZ)]
        able = [side for side in self.settings.agents if LETTER[side] in window.clips]
        split, agents = self._split(able)
        spans: dict[str, Any] = {}
        write_flac(folder / "audio.flac", cut_CS, RATE_HZ)
        for side in agents:
            voice, spans[side] = self._voice(name, side, window)
            write_flac(folder / f"{side}.voice.flac", voice, RATE_HZ)
        dialogue = Dialogue(
            id=name,
            source=self.settings.source,
            split=split,
            scenario=self.settings.source,
            seconds=cut_CS.shape[1] / RATE_HZ,
            left=self._side("left", window, "left" in agents),
            right=self._side("right", window, "right" in agents),
            licence=self.settings.licence,
            provenance={
                **self.base,
                "window": [round(window.start, 3), round(window.end, 3)],
                "voice_spans": spans,
                "split_by": self.settings.split_by,
            },
            gates=dict(self.gates),
        )
        dialogue.check(name)
        write_line(folder / "meta.json", dialogue.to_json())
        return dialogue

    def _side(self, side: str, window: Window, is_agent: bool) -> Side:
        words = [word for turn in self.spoken if turn.letter == LETTER[side] for word in turn.words]
        kept = tuple(
            Word(
                text=word.text,
                start=round(max(word.start - window.start, 0.0), 3),
                end=round(min(word.end, window.end) - window.start, 3),
            )
            for word in sorted(words, key=lambda word: (word.start, word.end))
            if word.start >= window.start - 1e-3 and word.end <= window.end + 1e-3
        )
        prompt = ""
        if is_agent:
            path = self.settings.role_fields.get(side)
            found = field_of(self.item.metadata, path) if path else None
            prompt = " ".join(str(found).split()) if found else self.settings.role_prompts.get(side, "")
        return Side(speaker=self._speaker(side)[0], words=kept, is_agent=is_agent, role_prompt=prompt)

    def _speaker(self, side: str) -> tuple[str, str]:
        """The key of a side's speaker, and what decides its split: the speaker, or the recording if it has no name."""
        path = self.settings.speaker_fields.get(side)
        name = field_of(self.item.metadata, path) if path else self.settings.speakers.get(self.item.name, {}).get(side)
        recording = item_id(self.settings.source, self.item.name)
        if name is None or isinstance(name, (dict, list)):
            return f"{recording}/{side}", recording
        key = f"{self.settings.source}/{name}"
        return key, key if self.settings.split_by == "speaker" else recording

    def _split(self, able: Sequence[str]) -> tuple[str, list[str]]:
        """The split, and the sides that are agents in it: a training speaker's dialogue trains with that one only."""
        if self.settings.split_by in ("train", "heldout"):
            return self.settings.split_by, list(able)
        held = {side: bucket(f"held out {self._speaker(side)[1]}") < self.settings.heldout for side in able}
        if all(held.values()):
            return "heldout", list(able)
        return "train", [side for side in able if not held[side]]

    def _voice(self, name: str, side: str, window: Window) -> tuple[Audio, Any]:
        """The voice clip and where it is from: float32 [samples]."""
        if side in self.voices:
            where = self.settings.voice_fields.get(side) or Path(self.settings.voices[side]).name
            return self.voices[side], where
        clip = draw_clip(window.clips[LETTER[side]], random.Random(f"{self.settings.seed}/{name}/{side}"))
        return play_clip(clip, self.audio_CS[SIDES.index(side)]), [round(time, 3) for time in clip.span]
