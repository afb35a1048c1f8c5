"""From a clip of a speaker to a voice: read, checked, levelled and encoded."""

# Shapes: C channels, Q codebooks, P prompt frames, S samples

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from data_pipelines.files import sha256
from data_pipelines.listening.speaker import open_speaker
from data_pipelines.listening.voice_clip import measure_clip
from data_pipelines.sound.audio import (
    ACCEPTED_VOICE_SECONDS,
    RATE_HZ,
    VOICE_LUFS,
    VOICE_SECONDS,
    Audio,
    loudness_normalise,
    read_audio,
    to_mono_24k,
)
from data_pipelines.sound.clip_faults import ClipFacts, faults
from model.errors import UserError
from model.files import whole_file
from model.mimi.codec import Mimi
from ppx_train.voices.voice_file import VOICE_ID, VoiceFile, check_id


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Whose voice a clip is. name: its id, None to take that of the file. label: for people, None to take the id.

    consent: why the speaker may be imitated. licence: of the voice, None if it is not stated.
    """

    consent: str
    name: str | None = None
    label: str | None = None
    licence: str | None = None


def encode_voice(path: Path, codec: Mimi, lufs: float = VOICE_LUFS) -> Tensor:
    """Encodes an audio file of any rate as a voice prompt, and returns its codes [8, P].

    The clip is made mono at 24 kHz, levelled to `lufs`, and encoded with fresh codec state.
    Raises: UserError if it cannot be read, is silent, or lasts less than 1 s or more than 30 s.
    """
    audio_CS, rate = read_audio(path)
    check_length(audio_CS.shape[-1] / rate, path)
    return encode_audio(audio_CS, rate, codec, lufs, path)


def check_length(seconds: float, where: object) -> None:
    """Raises UserError if a clip of this length is no voice prompt: 1 to 30 s are accepted."""
    (low, high), (advised, most) = ACCEPTED_VOICE_SECONDS, VOICE_SECONDS
    if not low <= seconds <= high:
        raise UserError(
            f"{where}: a voice prompt of {seconds:.1f} s; give {advised:.0f} to {most:.0f} s of one speaker "
            f"({low:.0f} to {high:.0f} s are allowed)",
            code="bad-audio",
        )


def voice_of_clip(
    path: Path, speaker: Speaker, codec: Mimi, *, lufs: float = VOICE_LUFS, skip: Sequence[str] = ()
) -> tuple[VoiceFile, ClipFacts]:
    """Returns the voice of a clip, and what was measured of it.

    skip: names of CHECKS that are left out.
    Raises: UserError for a clip that cannot be read, or with all that is wrong with it; for terms or an id that cannot
    be used; or if a package that a check needs is missing.
    """
    id_ = path.stem if speaker.name is None else speaker.name
    if speaker.name is None and not VOICE_ID.fullmatch(id_):
        raise UserError(
            f"{path}: the name of the file is no id of a voice, give --name one of letters, digits, '-' and '_'",
            code="bad-value",
        )
    check_id(id_)
    for option, text in (("consent", speaker.consent), ("licence", speaker.licence), ("label", speaker.label)):
        if text is not None and not text.strip():
            raise UserError(f"--{option} is empty: state it in a few words", code="bad-value")
    if not path.is_file():
        raise UserError(f"{path}: no such audio file", code="not-found")
    data = path.read_bytes()
    audio_CS, rate = read_audio(data, str(path))
    check_length(audio_CS.shape[-1] / rate, path)
    embedder = None if "speakers" in skip else open_speaker()
    facts = measure_clip(audio_CS, rate, embedder, skip)
    if found := faults(facts, skip):
        options = " ".join(f"--skip {name}" for name in found)
        raise UserError(f"{path}: {'; '.join(found.values())} ({options} takes it as it is)", code="bad-audio")
    voice = VoiceFile(
        id=id_,
        label=id_ if speaker.label is None else speaker.label.strip(),
        licence=speaker.licence if speaker.licence is None else speaker.licence.strip(),
        consent=speaker.consent.strip(),
        codec=codec.fingerprint(),
        source=sha256(data),
        codes_QP=encode_audio(audio_CS, rate, codec, lufs, path).cpu(),
    )
    return voice, facts


def advice(facts: ClipFacts, skip: Sequence[str] = ()) -> list[str]:
    """What would make a better voice of a clip that is taken, a line each."""
    lines = []
    low, high = VOICE_SECONDS
    if not low <= facts.seconds <= high:
        lines.append(f"{facts.seconds:.1f} s; models are trained with {low:.0f} to {high:.0f} s, and sound best so")
    if facts.likeness is None and "speakers" not in skip:
        lines.append("too little speech to see whether one person speaks, listen to it")
    return lines


def decode_voice(voice: VoiceFile, codec: Mimi) -> Audio:
    """The sound of a voice as the codec gives it back: [samples] at the codec's rate."""
    return codec.decode(voice.codes_QP[None].to(codec.device))[0, 0].clamp(-1, 1).cpu().numpy()


def write_wav(path: Path, audio: Audio) -> None:
    """Writes [samples] at 24 kHz as 16 bits; the file appears whole or not at all, and replaces an older one."""
    with whole_file(path) as temporary:
        soundfile.write(temporary, audio, RATE_HZ, "PCM_16", format="WAV")


def encode_audio(audio_CS: Audio, rate: int, codec: Mimi, lufs: float, where: object) -> Tensor:
    """As `encode_voice`, for [channels, samples] of any rate in Hz. where: names the audio in messages.

    Raises: UserError if it is silent.
    """
    clip_S = to_mono_24k(audio_CS, rate)
    try:
        clip_S = loudness_normalise(clip_S, codec.config.sample_rate, lufs)
    except UserError as why:
        raise UserError(f"{where}: {why}", code=why.code) from why
    return codec.encode(torch.from_numpy(clip_S)[None, None].to(codec.device))[0]
