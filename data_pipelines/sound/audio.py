"""Reading, resampling, levelling and writing audio, so that every stage does it the same way.

Arrays are float32 in [-1, 1]. Files on the way to training are 16-bit FLAC at 24 kHz: mono for voice
prompts, stereo (left side, right side) for dialogues.
"""

# Shapes: C channels, S samples

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from model.errors import UserError
from model.files import write_bytes

Audio = npt.NDArray[np.float32]

RATE_HZ = 24_000
"""The codec's rate, and so that of every file between the stages."""

VOICE_LUFS = -24.0
"""Loudness of voice prompts at inference, and so in training. Dialogue channels keep their own level."""

VOICE_SECONDS = (3.0, 10.0)
"""Shortest and longest voice prompt: 3 s show who speaks, and cloning engines read 10 s at most."""

ACCEPTED_VOICE_SECONDS = (1.0, 30.0)
"""What a model is prompted with if it is asked to; VOICE_SECONDS are what it is trained with."""

CLIP_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""The audio files that may be voice clips."""

FLAC_MAGIC = b"fLaC"
"""The first bytes of a FLAC file."""
BLOCK_SAMPLES = 1 << 21
"""Samples of all channels together that are read at once."""


class _Stream(soundfile.SoundFile):
    """An audio file that is read from its beginning to its end.

    soundfile seeks after each read of a file that can seek, which fails in a FLAC that does not state its length.
    """

    def seekable(self) -> bool:
        """Returns False."""
        return False


def decoded(file: io.BytesIO | str) -> tuple[Audio, int]:
    """Decodes an audio file in blocks up to its end, whatever length its header states; returns its rate in Hz, too.

    The header of a stream (FLAC, WAV) may state no length, or a false one.
    Shapes: float32 [channels, samples], which may be empty or hold NaN.
    Raises: soundfile.SoundFileError or RuntimeError for what libsndfile cannot read.
    """
    with _Stream(file) as stream:
        frames, blocks = max(1, BLOCK_SAMPLES // stream.channels), [np.zeros((stream.channels, 0), np.float32)]
        while len(block_SC := stream.read(frames, dtype="float32", always_2d=True)):
            blocks.append(np.ascontiguousarray(block_SC.T))
        return np.concatenate(blocks, axis=1), int(stream.samplerate)


def read_audio(source: Path | bytes, where: str = "the audio") -> tuple[Audio, int]:
    """Reads a whole audio file, by its path or as bytes, as (float32 [channels, samples], rate in Hz).

    `where` names bytes in messages; a file is named by its path.
    Raises: UserError if the file is missing (code "not-found"), of no format that libsndfile knows ("unreadable"),
    empty or with samples that are not finite ("bad-audio").
    """
    file: io.BytesIO | str
    if isinstance(source, bytes):
        file, fix = io.BytesIO(source), ""
    else:
        file, fix, where = str(source), ": convert it to WAV or FLAC", str(source)
        if not Path(source).is_file():
            raise UserError(f"{where}: no such audio file", code="not-found")
    try:
        audio_CS, rate = decoded(file)
    except (soundfile.SoundFileError, RuntimeError) as why:
        raise UserError(f"{where}: cannot be read as audio ({why}){fix}", code="unreadable") from why
    has_samples, is_finite = bool(audio_CS.shape[1]), bool(np.isfinite(audio_CS).all())
    if isinstance(source, bytes) and not (has_samples and is_finite):
        raise UserError(f"{where}: holds no sample, or NaN: convert it again from its source", code="bad-audio")
    if not has_samples:
        raise UserError(f"{where}: holds no audio sample: delete it or record it again", code="bad-audio")
    if not is_finite:
        raise UserError(f"{where}: holds NaN or infinite samples: convert it again from its source", code="bad-audio")
    return audio_CS, rate


def check_flac(path: Path) -> None:
    """Raises UserError if a file is missing (code "not-found") or no FLAC ("bad-audio")."""
    if not path.is_file():
        raise UserError(f"{path}: no such audio file", code="not-found")
    with path.open("rb") as file:
        if file.read(len(FLAC_MAGIC)) != FLAC_MAGIC:
            raise UserError(f"{path}: is no FLAC: convert it, whatever its name says", code="bad-audio")


RESAMPLERS = {"soxr-mq": "MQ", "soxr-hq": "HQ", "soxr-vhq": "VHQ"}
"""The names of resamplers in options and records: libsoxr at 16, 20 and 28 bits of precision."""


def to_rate(x: Audio, from_hz: int, to_hz: int, resampler: str = "soxr-hq") -> Audio:
    """Resamples the last axis. Shapes: [samples] or [channels, samples]. Raises: KeyError for an unknown resampler."""
    if from_hz == to_hz:
        return x
    return np.ascontiguousarray(soxr.resample(x.T, from_hz, to_hz, quality=RESAMPLERS[resampler]).T, dtype=np.float32)


def to_mono_24k(x: Audio, rate: int) -> Audio:
    """Averages the channels of [channels, samples] (or takes [samples]) and resamples to 24 kHz: [samples]."""
    return to_rate(x.mean(axis=0, dtype=np.float32) if x.ndim == 2 else x, rate, RATE_HZ)


def loudness(x: Audio, rate: int) -> float:
    """Returns the integrated loudness in LUFS (ITU-R BS.1770) of [samples] or [channels, samples]; -inf for silence.

    Raises: UserError below 0.4 s, the length of one measuring block.
    """
    import pyloudnorm

    if x.shape[-1] < 0.4 * rate:
        raise UserError(
            f"audio of {x.shape[-1] / rate:.2f} s is too short to measure its loudness: give 0.4 s or more",
            code="bad-audio",
        )
    return float(pyloudnorm.Meter(rate).integrated_loudness(x.T.astype(np.float64)))


def loudness_normalise(x: Audio, rate: int, target_lufs: float = VOICE_LUFS) -> Audio:
    """Scales audio to `target_lufs`, by one gain for all channels.

    Nothing is limited: a very peaky clip may pass 1.0, where a 16-bit file clips. At -24 LUFS speech does not.

    Raises: UserError if the audio is shorter than 0.4 s or silent.
    """
    measured = loudness(x, rate)
    if not np.isfinite(measured):
        raise UserError(
            "audio is silent, so it has no loudness to normalise: give a clip with speech", code="bad-audio"
        )
    return (x * np.float32(10 ** ((target_lufs - measured) / 20))).astype(np.float32)


def write_flac(path: Path, x: Audio, rate: int) -> None:
    """Writes [samples] or [channels, samples] as 16-bit FLAC; the file appears whole or not at all."""
    data = io.BytesIO()  # libsndfile would report a full disk as a "System error".
    soundfile.write(data, x.T, rate, subtype="PCM_16", format="FLAC")
    write_bytes(Path(path), data.getvalue())


def require_stereo_24k(path: Path) -> Audio:
    """Reads a dialogue: float32 [2, samples], left and right.

    Raises: UserError naming the file and its fault: unreadable, not two channels, not 24 kHz.
    """
    x_CS, rate = read_audio(path)
    if x_CS.shape[0] != 2:
        raise UserError(
            f"{path}: has {x_CS.shape[0]} channel{'s' * (x_CS.shape[0] != 1)}, a dialogue needs 2 "
            "(left: agent, right: user): put each speaker on a channel of their own",
            code="bad-audio",
        )
    if rate != RATE_HZ:
        raise UserError(f"{path}: has {rate} Hz, a dialogue needs {RATE_HZ} Hz: resample it first", code="bad-audio")
    return x_CS


def fade_in(x: Audio, samples: int) -> Audio:
    """Returns a copy whose first `samples` samples rise from 0 by a raised cosine."""
    return np.ascontiguousarray(fade_out(x[..., ::-1], samples)[..., ::-1])


def fade_out(x: Audio, samples: int) -> Audio:
    """Returns a copy whose last `samples` samples fall to exactly 0 by a raised cosine."""
    x = x.copy()
    samples = min(samples, x.shape[-1])
    if samples:
        ramp = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, samples + 1) / samples)
        x[..., -samples:] *= ramp.astype(np.float32)
    return x
