"""All values of one dialogue that need nothing but its folder: the jobs of `ppx-data gate`, one a dialogue."""

# Shapes: C channels, S samples

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files import digest
from data_pipelines.listening.asr import Recogniser, open_asr
from data_pipelines.listening.speaker import Embedder, open_speaker
from data_pipelines.quality.across import Record
from data_pipelines.quality.agreement import asr_values, name_words, prompt_frames, speaker_values, text_values
from data_pipelines.quality.gates import rounded, signal_values
from data_pipelines.quality.role_fidelity import ROLE, role_values, text_of
from data_pipelines.quality.transcription import hear_turns
from data_pipelines.records.folder import ROLES, load_dialogue, signature
from data_pipelines.records.schema import SIDES, Dialogue, Word
from data_pipelines.records.turns import group_turns
from data_pipelines.records.typed import record
from data_pipelines.sound.audio import RATE_HZ, Audio, loudness, read_audio, require_stereo_24k, to_rate
from data_pipelines.text.words import normal_words
from model.config import frames_of
from model.errors import UserError
from model.files import write_bytes
from model.text import TextTokenizer

VERSION = "3"
"""Raise it with each change of this code that measures the same dialogue differently."""


@dataclass(kw_only=True, frozen=True)
class Listening:
    """The engines that listen to the dialogues; "none" leaves their gates out."""

    asr: str = "tiny.en"
    speaker: str = "resemblyzer"
    tokenizer: str = "none"
    """The path of a SentencePiece model."""
    device: str = "cpu"
    """Where the recogniser runs."""


@dataclass(kw_only=True, frozen=True)
class Measurement:
    """The content of OUT/measured/ID.json. If there is a fault, everything below it is empty and not stored."""

    id: str
    key: str
    """Identifies what was measured, by what, and by which version of this code."""
    fault: str = ""
    """Why the dialogue cannot be measured."""
    split: str = ""
    scenario: str = ""
    companies: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()
    text: str = ""
    audio_sha256: str = ""
    values: dict[str, float] = field(default_factory=dict)
    stored: dict[str, float] = field(default_factory=dict)
    """Values that the dialogue's own record holds."""
    engines: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        content = {"id": self.id, "key": self.key, "fault": self.fault} if self.fault else asdict(self)
        return json.dumps(content, sort_keys=True, ensure_ascii=False)

    def record(self) -> Record:
        """What the comparison with other dialogues needs."""
        return Record(
            id=self.id,
            split=self.split,
            scenario=self.scenario,
            companies=self.companies,
            speakers=self.speakers,
            text=self.text,
            audio_sha256=self.audio_sha256,
        )


@lru_cache(maxsize=1)
def shared_asr(name: str, device: str) -> Recogniser:
    """The recogniser of this process, which is opened once."""
    return open_asr(name, device)


@lru_cache(maxsize=1)
def shared_speaker(name: str) -> Embedder:
    """The speaker embedder of this process, which is opened once."""
    return open_speaker(name)


@lru_cache(maxsize=1)
def shared_tokenizer(path: str) -> TextTokenizer:
    """The tokenizer of this process, which is opened once."""
    return TextTokenizer(path)


def open_all(listening: Listening) -> None:
    """Opens the engines that listen. Raises UserError that names the package, file or device that is missing."""
    if listening.asr != "none":
        shared_asr(listening.asr, listening.device)
    if listening.speaker != "none":
        shared_speaker(listening.speaker)
    if listening.tokenizer != "none":
        shared_tokenizer(listening.tokenizer)


def measured_path(out: Path, folder: Path) -> Path:
    """Where the measurements of a dialogue are kept."""
    return out / "measured" / f"{folder.name}.json"


def measure_key(folder: Path, listening: Listening) -> str:
    """Identifies what measurements depend on: the dialogue without its gates, the engines, and this code."""
    return digest(VERSION, signature(folder, (ROLES,)), json.dumps(asdict(listening), sort_keys=True))


def measure_one(folder: Path, listening: Listening, out: Path) -> str:
    """Measures a dialogue into OUT/measured/ID.json; returns the fault if it cannot be read, else ""."""
    key = measure_key(folder, listening)
    open_all(listening)  # outside of the block below: an engine that cannot be opened is no fault of the dialogue
    try:
        measurement = _measured(folder, key, listening)
    except UserError as why:
        measurement = Measurement(id=folder.name, key=key, fault=" ".join(str(why).split()))
    return _save(measurement, out, folder)


def note_lost(folder: Path, reason: str, out: Path) -> str:
    """Stores a placeholder for a dialogue that kills its worker each time; the next run retries it."""
    return _save(Measurement(id=folder.name, key="", fault=reason), out, folder)


def _save(measurement: Measurement, out: Path, folder: Path) -> str:
    write_bytes(measured_path(out, folder), measurement.to_json().encode())
    return measurement.fault


def read_measurement(out: Path, folder: Path) -> Measurement:
    """The measurements of a dialogue. Raises OSError if they are not there, ValueError if they are damaged."""
    return record(Measurement, measured_path(out, folder).read_bytes())


def _measured(folder: Path, key: str, listening: Listening) -> Measurement:
    dialogue = load_dialogue(folder, (ROLES,))
    audio_CS = require_stereo_24k(folder / "audio.flac")
    seconds = audio_CS.shape[1] / RATE_HZ
    if abs(seconds - dialogue.seconds) > 0.1:
        raise UserError(
            f"audio of {seconds:.2f} s, its words are for {dialogue.seconds:.2f} s: make it again",
            code="bad-transcript",
        )
    voices = {side: read_audio(folder / f"{side}.voice.flac") for side in dialogue.agent_sides}
    clips = {side: to_rate(clip_CS[0], rate, RATE_HZ) for side, (clip_CS, rate) in voices.items()}
    values = signal_values(audio_CS, dialogue) | level_values(audio_CS, dialogue) | role_values(dialogue)
    values |= _text(dialogue, clips, listening)
    engines: dict[str, Any] = {}
    if listening.asr != "none":
        recogniser = shared_asr(listening.asr, listening.device)
        engines["asr"] = recogniser.identity()
        values |= _asr(recogniser, audio_CS, dialogue)
    if listening.speaker != "none":
        embedder = shared_speaker(listening.speaker)
        engines["speaker"] = embedder.identity()
        values |= _speakers(embedder, audio_CS, dialogue, clips)
    matches = [ROLE.match(dialogue.side(side).role_prompt) for side in dialogue.agent_sides]
    pcm = np.round(audio_CS * 32768).astype("<i2").tobytes()
    return Measurement(
        id=folder.name,
        key=key,
        split=dialogue.split,
        scenario=dialogue.scenario,
        companies=tuple(sorted({match["company"] for match in matches if match})),
        speakers=tuple(sorted({dialogue.side(side).speaker for side in dialogue.agent_sides})),
        text=spoken_text(dialogue),
        audio_sha256=hashlib.sha256(pcm).hexdigest(),
        values=rounded(values),
        stored=dialogue.gates,
        engines=engines,
    )


def spoken_text(dialogue: Dialogue) -> str:
    """What both sides say, turn by turn in order of time: numbers as words, without punctuation."""
    turns = [turn for name in SIDES for turn in group_turns(dialogue.side(name).words)]
    turns.sort(key=lambda turn: (turn[0].start, turn[0].end))
    return " ".join(word for turn in turns for word in normal_words(text_of(turn)))


def level_values(audio_CS: Audio, dialogue: Dialogue) -> dict[str, float]:
    """How much the agent speaks, how loud the channels are, and how loud the softest turn is.

    Shapes: audio [2, samples] at 24 kHz.
    Units: seconds, LUFS, dBFS.
    """
    values = {"agent_seconds": min(_speech(dialogue.side(side).words) for side in dialogue.agent_sides)}
    levels = []
    for name, channel in zip(SIDES, audio_CS, strict=True):
        for turn in group_turns(dialogue.side(name).words):
            pieces = [channel[round(w.start * RATE_HZ) : round(w.end * RATE_HZ)] for w in turn]
            power = np.mean(np.square(np.concatenate(pieces), dtype=np.float64)) if sum(map(len, pieces)) else 0.0
            levels.append(10 * float(np.log10(max(power, 1e-12))))
        if len(channel) >= 0.4 * RATE_HZ and np.isfinite(lufs := loudness(channel, RATE_HZ)):
            values[f"lufs_{name}"] = lufs
    return values | ({"turn_dbfs": min(levels)} if levels else {})


def _speech(words: Sequence[Word]) -> float:
    return sum(word.end - word.start for word in words)


def _text(dialogue: Dialogue, clips: dict[str, Audio], listening: Listening) -> dict[str, float]:
    tokenizer = shared_tokenizer(listening.tokenizer) if listening.tokenizer != "none" else None
    sides = {side: dialogue.side(side) for side in dialogue.agent_sides}
    prompts = [prompt_frames(side.role_prompt, len(clips[name]) / RATE_HZ, tokenizer) for name, side in sides.items()]
    values = {"frames": float(frames_of(dialogue.seconds) + max(prompts))}
    if tokenizer:
        each = [text_values(side.words, dialogue.seconds, tokenizer) for side in sides.values()]
        values |= {name: max(found[name] for found in each) for name in each[0]}
    return values


def _asr(recogniser: Recogniser, audio_CS: Audio, dialogue: Dialogue) -> dict[str, float]:
    sides = [dialogue.side(name) for name in SIDES]
    names = name_words(*(text for side in sides for text in (side.role_prompt, text_of(side.words))))
    return asr_values(
        [hear_turns(recogniser, x, RATE_HZ, s.words, names) for x, s in zip(audio_CS, sides, strict=True)]
    )


def _speakers(embedder: Embedder, audio_CS: Audio, dialogue: Dialogue, clips: dict[str, Audio]) -> dict[str, float]:
    """The worse agent's values where both sides are agents."""
    each = []
    for side in dialogue.agent_sides:
        agent = SIDES.index(side)
        sides = dialogue.side(side), dialogue.side(SIDES[1 - agent])
        each.append(speaker_values(embedder, audio_CS[agent], audio_CS[1 - agent], RATE_HZ, *sides, clips[side]))
    worst = {"speaker_similarity": min, "user_similarity": max}
    names = {name for found in each for name in found}
    return {name: worst[name](found[name] for found in each if name in found) for name in sorted(names)}
