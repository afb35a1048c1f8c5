"""One recording of any of the general formats: fills in what its transcript lacks, cuts it, writes dialogue folders.

Fisher's calls have steps of their own (see `fisher/call.py`).
"""

# Shapes: C channels, S samples

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import write_line
from data_pipelines.recordings.clips import MAX_CLIP_SECONDS, MIN_CLIP_SECONDS, VoiceClip, candidate_clips, draw_clip
from data_pipelines.recordings.cut import (
    MIN_PLACED_SHARE,
    MIN_SWAP_RATIO,
    HeardRecording,
    VoicePrompt,
    channel_ratio,
    write_window,
)
from data_pipelines.recordings.drafts import CutDialogue, RecordingDraft
from data_pipelines.recordings.fill import Filled, Listener, aligned_share, fill_side, provenance_of
from data_pipelines.recordings.mask import mask_call, mask_prompt, mask_speaker, split_known
from data_pipelines.recordings.recording import Recording, Unready, at_24k, field_of, recording_id, stereo
from data_pipelines.recordings.times import drop_bad_times, mute_overlapping
from data_pipelines.recordings.utterances import Sides, Spoken
from data_pipelines.recordings.windows import MIN_WINDOW_SECONDS, Window, WindowLimits, plan_windows
from data_pipelines.records.provenance import MASKED, RECORDED
from data_pipelines.records.schema import SIDES, SPLITS, Dialogue, Side
from data_pipelines.records.split import bucket
from data_pipelines.sound.audio import RATE_HZ, Audio, read_audio, to_mono_24k
from data_pipelines.sound.levels import clipped_runs
from model.errors import UserError

_ELSEWHERE = VoiceClip(pieces=((-2.0, -1.0),), seconds=MAX_CLIP_SECONDS)
"""Stands for a voice clip that is not taken from the recording, so that no window is too long for it."""


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What shapes the output; a rerun into the same folder must have the same. Mappings are by side."""

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
    """The name of the speaker on each side, by recording."""
    max_seconds: float = 150.0
    voice_seconds: float = 5.0
    fill: str = "both"
    listener: Listener = Listener(asr="tiny.en")
    split_by: str = "speaker"
    heldout: float = 0.1
    seed: int = 0
    mask: bool = False
    """Whether personal numbers and names are masked."""

    def record(self) -> dict[str, Any]:
        """Returns what OUT keeps of the settings; `mask` is there only if it is set, as in earlier versions."""
        return {name: value for name, value in asdict(self).items() if name != "mask" or value}


def import_recording(recording: Recording, settings: ImportSettings, out: Path) -> RecordingDraft:
    """Writes all dialogues of one recording below `out` and returns what it gave, or why it is rejected.

    Raises: Unready if an engine is missing; faults of the recording itself become the reason of its rejection.
    """
    try:
        return _import_recording(recording, settings, out)
    except Unready:
        raise
    except UserError as why:
        reason = " ".join(str(why).split()).removeprefix(f"{recording.name}: ")
        return RecordingDraft(name=recording.name, rejected=reason)


def _import_recording(recording: Recording, settings: ImportSettings, out: Path) -> RecordingDraft:
    if recording.split and settings.split_by in SPLITS and settings.split_by != recording.split:
        raise UserError(
            f"its record says that it is in the split {recording.split}: leave out --split {settings.split_by}",
            code="bad-combination",
        )
    raw_CS, rate = recording.audio()
    stereo(raw_CS, recording.name)
    hot = clipped_runs(raw_CS)
    audio_CS, gain = at_24k(raw_CS, rate)
    del raw_CS
    seconds = audio_CS.shape[1] / RATE_HZ
    if seconds < MIN_WINDOW_SECONDS:
        raise UserError(f"{seconds:.1f} s, a dialogue lasts {MIN_WINDOW_SECONDS:.0f} s or more", code="bad-audio")
    sides, num_dropped = drop_bad_times(recording.sides(), seconds, "its transcript")
    sides, num_muted = mute_overlapping(sides)
    filled = _fill(audio_CS, sides, settings)
    spoken: Spoken = {
        side: sorted(filled[side].utterances if side in filled else (), key=lambda u: (u.start, u.end))
        for side in SIDES
    }
    people = _named(recording, settings)
    counts = Counter(recording.masked or {})
    if settings.mask:
        if unknown := [side for side in SIDES if side not in filled]:
            raise UserError(
                f"the {unknown[0]} side's words are unknown, so that nothing can be masked there: leave out --fill",
                code="bad-combination",
            )
        prompts = [_prompt(recording, side, settings) for side in settings.agents]
        masked = mask_call(audio_CS, RATE_HZ, spoken, source_rate=rate, known=split_known(people), prompts=prompts)
        audio_CS, spoken = masked.audio_CS, masked.spoken
        counts.update(masked.counts)
        people = {"": " ".join(sorted(masked.names)), **people}
    ratios = {side: channel_ratio(spoken[side], audio_CS[n], RATE_HZ) for n, side in enumerate(SIDES)}
    voices = {side: voice for side in settings.agents if (voice := _own_voice(recording, side, settings))}
    faults = {side: fault for side in settings.agents if (fault := _fault(filled.get(side), ratios[side]))}
    able = [side for side in settings.agents if side not in faults]
    notes = list(recording.notes)
    if num_dropped:
        notes.append(f"{num_dropped} words or utterances with impossible times are left out")
    if num_muted:
        notes.append(f"{num_muted} utterances lost their words: their speaker says two things at once")
    for what, fields in (("role", settings.role_fields), ("speaker", settings.speaker_fields)):
        lost = {side: path for side, path in fields.items() if field_of(recording.metadata, path) is None}
        notes += [f"its record holds no {path!r} for the {what} of the {side} side" for side, path in lost.items()]
    notes += [f"the {side} side is no agent: {fault}" for side, fault in faults.items()]
    gates = {f"swap_ratio_{side}": round(ratio, 3) for side, ratio in ratios.items() if side in filled}
    heard = HeardRecording(audio_CS=audio_CS, spoken=spoken, gates=gates | aligned_share(filled))
    base = {"recording": recording.name, "source_rate": rate, "gain": gain, "clipped_runs": hot, "seed": settings.seed}
    base |= {RECORDED: True, "resampler": "soxr HQ", "split_by": settings.split_by, **provenance_of(filled)}
    base |= {MASKED: dict(sorted(counts.items()))} if settings.mask or recording.masked is not None else {}
    known = split_known(people) if settings.mask else []
    casting = Casting(recording=recording, settings=settings, heard=heard, voices=voices, provenance=base, known=known)
    dialogues = []
    for number, window in enumerate(_windows(spoken, able, voices, seconds, settings), 1):
        name = f"{recording_id(settings.source, recording.name)}-{number}"
        for side in able:
            if side in window.refusals:
                notes.append(f"{name}: the {side} side is no agent: {window.refusals[side]}")
        if window.clips:
            dialogues.append(casting.write(out / name, window))
    if not dialogues:
        raise UserError("; ".join(notes) or "no stretch of it can be a dialogue", code="no-data")
    return RecordingDraft(name=recording.name, dialogues=tuple(dialogues), notes=tuple(notes))


def _fill(audio_CS: Audio, sides: Sides, settings: ImportSettings) -> dict[str, Filled]:
    """Finds the word times of every side that has words, or is to get them."""
    filled = {}
    for channel, side in enumerate(SIDES):
        wanted = settings.fill == "both" or (settings.fill == "agent" and side in settings.agents)
        if side in sides or wanted:
            listener = settings.listener if wanted else Listener(asr="")
            filled[side] = fill_side(audio_CS[channel], RATE_HZ, sides.get(side), listener)
    return filled


def _fault(filled: Filled | None, ratio: float) -> str:
    """Returns why a side cannot be the agent anywhere in the recording; "" if it can."""
    if filled is None:
        return "its words are unknown, and --fill forbids to listen"
    if not any(utterance.words for utterance in filled.utterances) and not filled.tried:
        return "it says no word"
    if filled.share < MIN_PLACED_SHARE:
        return f"only {100 * filled.share:.0f} % of its utterances fit the audio"
    if ratio < MIN_SWAP_RATIO:
        return f"its channel is as loud outside its words as inside (ratio {ratio:.1f}): swapped channels, or echo?"
    return ""


def _own_voice(recording: Recording, side: str, settings: ImportSettings) -> VoicePrompt | None:
    """Reads the voice prompt that comes with the recording or from a file; None if there is neither."""
    if side in settings.voice_fields:
        origin = settings.voice_fields[side]
        audio_CS, rate = read_audio(recording.attachment(origin), f"its {origin}")
    elif side in settings.voices:
        origin = Path(settings.voices[side]).name
        audio_CS, rate = read_audio(Path(settings.voices[side]))
    else:
        return None
    audio_S = to_mono_24k(audio_CS, rate)[: round(MAX_CLIP_SECONDS * RATE_HZ)]
    if len(audio_S) < MIN_CLIP_SECONDS * RATE_HZ:
        raise UserError(
            f"the {side} voice lasts {len(audio_S) / RATE_HZ:.1f} s: a clip lasts 3 to 10 s", code="bad-audio"
        )
    return VoicePrompt(audio_S=np.clip(audio_S, -1, 1), origin=origin)


def _named(recording: Recording, settings: ImportSettings) -> dict[str, str]:
    """Returns the names of the speakers by side, where a table or the record states them."""
    names = {}
    for side in SIDES:
        path = settings.speaker_fields.get(side)
        found = field_of(recording.metadata, path) if path else settings.speakers.get(recording.name, {}).get(side)
        if found is not None and not isinstance(found, (dict, list)):
            names[side] = str(found)
    return names


def _prompt(recording: Recording, side: str, settings: ImportSettings) -> str:
    """Returns the role prompt that a record or the settings state for a side."""
    path = settings.role_fields.get(side)
    found = field_of(recording.metadata, path) if path else None
    return " ".join(str(found).split()) if found else settings.role_prompts.get(side, "")


def _windows(
    spoken: Spoken, able: list[str], voices: Mapping[str, VoicePrompt], seconds: float, settings: ImportSettings
) -> list[Window]:
    """Decides where to cut; a recording that fits and needs no clip of itself stays whole."""
    if not able:
        return []
    clips: dict[str, list[VoiceClip]] = {side: [] for side in SIDES}
    for side in able:
        clips[side] = [_ELSEWHERE] if side in voices else candidate_clips(spoken[side], settings.voice_seconds)
    if seconds <= settings.max_seconds and all(side in voices for side in able):
        found = {side: tuple(own) for side, own in clips.items() if own}
        return [Window(start=0.0, end=seconds, clips=found, refusals={}, score=0.0)]
    return plan_windows(spoken, clips, seconds, WindowLimits(max_seconds=settings.max_seconds))


@dataclass(frozen=True, kw_only=True)
class Casting:
    """Who the two sides of a recording are: speakers, voices, roles, and the split that they decide."""

    recording: Recording
    settings: ImportSettings
    heard: HeardRecording
    voices: Mapping[str, VoicePrompt]
    provenance: Mapping[str, Any]
    known: Sequence[str]
    """Names of these people, which are masked in their prompts."""

    def write(self, folder: Path, window: Window) -> CutDialogue:
        """Writes the dialogue folder of one window whole, meta.json last."""
        split, agents = self._split([side for side in self.settings.agents if side in window.clips])
        left, right = (self._side(side, side in agents) for side in SIDES)
        dialogue = Dialogue(
            id=folder.name,
            source=self.settings.source,
            split=split,
            scenario=self.settings.source,
            seconds=window.end - window.start,
            left=left,
            right=right,
            licence=self.recording.licence or self.settings.licence,
            provenance=dict(self.provenance),
        )
        voices = {side: self.voices.get(side) or self._drawn_voice(folder.name, side, window) for side in agents}
        cut = write_window(folder, window, self.heard, dialogue, voices)
        write_line(folder / "meta.json", cut.to_json())
        stated = self.recording.licence or None
        return CutDialogue(
            id=cut.id, seconds=round(cut.seconds, 3), split=split, agents=cut.agent_sides, licence=stated
        )

    def _drawn_voice(self, name: str, side: str, window: Window) -> VoicePrompt:
        clip = draw_clip(window.clips[side], random.Random(f"{self.settings.seed}/{name}/{side}"))
        return self.heard.voice(side, clip)

    def _side(self, side: str, is_agent: bool) -> Side:
        prompt = ""
        if is_agent:
            prompt = _prompt(self.recording, side, self.settings)
            prompt = mask_prompt(prompt, self.known) if self.settings.mask else prompt
        return Side(speaker=self._speaker(side)[0], is_agent=is_agent, role_prompt=prompt)

    def _speaker(self, side: str) -> tuple[str, str]:
        """Returns the key of a side's speaker, and what decides its split: the speaker, else the recording."""
        source, name = self.settings.source, self.recording.name
        found = _named(self.recording, self.settings).get(side)
        recording = recording_id(source, name)
        if found is None:
            return f"{recording}/{side}", recording
        key = f"{source}/{mask_speaker(found) if self.settings.mask else found}"
        return key, key if self.settings.split_by == "speaker" else recording

    def _split(self, able: list[str]) -> tuple[str, list[str]]:
        """Returns the split and its agents; a dialogue with one training speaker trains with that speaker only.

        The split that a record states counts, since a dialogue that was held out may have been evaluated.
        """
        if self.recording.split:
            return self.recording.split, able
        if self.settings.split_by in ("train", "heldout"):
            return self.settings.split_by, able
        held = {side: bucket(f"held out {self._speaker(side)[1]}") < self.settings.heldout for side in able}
        if all(held.values()):
            return "heldout", able
        return "train", [side for side in able if not held[side]]
