"""Extends the bandwidth of telephone sound by an external program, which runs once for each call.

Such models live in environments of their own, so the interface is a command line and two WAV files. Nothing that comes
back is trusted: the programs are made for single sentences, and a wrong file would put words off their sound.
"""

# Shapes: C channels, S samples

import io
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from data_pipelines.sound.audio import RATE_HZ, Audio, read_audio, to_rate
from model.errors import UserError

MAX_LENGTH_ERROR = 0.010
"""Seconds that the result may be longer or shorter, and that it may be early or late."""
MIN_CORRELATION = 0.8
"""Least correlation of the result's low band with the input, on channels that sound.

The value is a choice: a copy has 1, another call about 0.
"""
MAX_LEVEL_CHANGE_DB = 12.0
_SILENT_DBFS = -70.0
_PIECE_SECONDS = 30  # Signals are compared in pieces of this length.


def check_command(command: str) -> None:
    """Raises UserError if a command lacks {input} or {output}, or if its program is not there."""
    words = _words(command, "in.wav", "out.wav")
    if "{input}" not in command or "{output}" not in command:
        raise UserError(
            f"--bandwidth-extension {command!r}: say where the files go, e.g. 'extend {{input}} {{output}}'",
            code="bad-value",
        )
    if shutil.which(words[0]) is None:
        raise UserError(f"--bandwidth-extension {words[0]}: no such program, give its path", code="not-found")


def extend(audio_CS: Audio, rate: int, command: str, timeout: float) -> Audio:
    """Runs the command on a stereo WAV of the call and returns its result.

    Shapes: audio_CS float32 [2, samples], the result float32 [2, samples at 24 kHz].
    Raises: UserError if it fails or takes longer than `timeout` seconds (code "program-failed"), or if the result is
    not the same call at 24 kHz ("bad-audio").
    """
    with tempfile.TemporaryDirectory(prefix="ppx-bandwidth-") as folder:
        source, target = Path(folder, "input.wav"), Path(folder, "output.wav")
        data = io.BytesIO()  # Written straight to a file, libsndfile would call a full disk a "System error".
        soundfile.write(data, audio_CS.T, rate, subtype="PCM_16", format="WAV")
        source.write_bytes(data.getvalue())
        words = _words(command, str(source), str(target))
        try:
            done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise UserError(
                f"bandwidth extension took more than {timeout:g} s: raise --bandwidth-timeout", code="program-failed"
            ) from late
        except OSError as why:
            raise UserError(
                f"bandwidth extension: {words[0]} cannot be run ({why.strerror})", code="program-failed"
            ) from why
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:200]
            raise UserError(f"bandwidth extension failed with code {done.returncode}: {last}", code="program-failed")
        if not target.is_file():
            raise UserError("bandwidth extension wrote no file: let it write to {output}", code="program-failed")
        extended_CS, heard_rate = read_audio(target)
    _check(audio_CS, rate, extended_CS, heard_rate)
    wanted = round(audio_CS.shape[1] * RATE_HZ / rate)
    return np.ascontiguousarray(np.pad(extended_CS, ((0, 0), (0, max(0, wanted - extended_CS.shape[1]))))[:, :wanted])


def _words(command: str, source: str, target: str) -> list[str]:
    """Splits a command line and fills in the files."""
    try:
        words = shlex.split(command)
    except ValueError as why:
        raise UserError(f"--bandwidth-extension {command!r}: {why}", code="bad-value") from why
    if not words:
        raise UserError("--bandwidth-extension '': give a command with {input} and {output}", code="bad-value")
    return [word.replace("{input}", source).replace("{output}", target) for word in words]


def _check(audio_CS: Audio, rate: int, extended_CS: Audio, extended_rate: int) -> None:
    """Raises UserError if the result is not the input with more treble."""
    if extended_rate != RATE_HZ:
        raise UserError(f"bandwidth extension answered {extended_rate} Hz, not {RATE_HZ}", code="bad-audio")
    if len(extended_CS) != len(audio_CS):
        raise UserError(
            f"bandwidth extension answered {len(extended_CS)} channel(s), not {len(audio_CS)}", code="bad-audio"
        )
    seconds, wanted = extended_CS.shape[1] / RATE_HZ, audio_CS.shape[1] / rate
    if abs(seconds - wanted) > MAX_LENGTH_ERROR:
        raise UserError(f"bandwidth extension answered {seconds:.3f} s, not {wanted:.3f} s", code="bad-audio")
    low_CS = to_rate(extended_CS, RATE_HZ, rate)
    for number, (before, after) in enumerate(zip(audio_CS, low_CS, strict=True)):
        level, heard = _dbfs(before), _dbfs(after)
        if level < _SILENT_DBFS:
            continue
        if heard < _SILENT_DBFS:
            raise UserError(f"bandwidth extension answered silence on channel {number + 1}", code="bad-audio")
        if abs(heard - level) > MAX_LEVEL_CHANGE_DB:
            raise UserError(
                f"bandwidth extension changed the level of channel {number + 1} by {heard - level:+.0f} dB",
                code="bad-audio",
            )
        found = _correlation(before, after, round(MAX_LENGTH_ERROR * rate), _PIECE_SECONDS * rate)
        if found < MIN_CORRELATION:
            raise UserError(
                f"bandwidth extension answered other sound on channel {number + 1}: below {rate // 2} Hz it correlates "
                f"with the call by {found:.2f}, wanted {MIN_CORRELATION}",
                code="bad-audio",
            )


def _dbfs(x_S: Sequence[float] | Audio) -> float:
    return 10 * float(np.log10(max(float(np.mean(np.square(x_S, dtype=np.float64))), 1e-12)))


def _correlation(x_S: Audio, y_S: Audio, most: int, piece: int) -> float:
    """Returns the greatest correlation of two signals at shifts of up to `most` samples; 1 for a scaled copy.

    It is summed over pieces of `piece` samples, so that a call of ten minutes needs no transform of its whole length.
    """
    num = min(len(x_S), len(y_S))
    sums = np.zeros(2 * most + 1)
    for start in range(0, num, piece):
        x, y = x_S[start : start + piece].astype(np.float64), y_S[start : start + piece].astype(np.float64)
        size = 1 << (len(x) + most).bit_length()
        found = np.fft.irfft(np.fft.rfft(x, size).conj() * np.fft.rfft(y[: len(x)], size), size)
        sums += np.concatenate((found[-most:], found[: most + 1]))
    power = np.sqrt(float(np.square(x_S[:num], dtype=np.float64).sum() * np.square(y_S[:num], dtype=np.float64).sum()))
    return float(np.max(sums)) / max(power, 1e-12)
