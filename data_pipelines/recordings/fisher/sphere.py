"""Reads NIST SPHERE audio, the format of the LDC discs, with several decoders, and writes it as mu-law.

The files of the discs hold 8-bit mu-law packed by "shorten", a lossless coder that libsndfile does not know;
institutional copies are often unpacked already, some under the name .wav. A file is therefore recognised by
its first bytes. Source: the public NIST SPHERE header description, ITU-T G.711, and T. Robinson, "SHORTEN"
(CUED/F-INFENG/TR.156, 1994).
"""

import io
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from model.errors import UserError
from model.extras import require
from model.files import write_bytes

MAGIC = b"NIST_1A"
HEADER_BYTES = 1024
SHORTEN_CODING: Literal["ulaw,embedded-shorten-v2.00"] = "ulaw,embedded-shorten-v2.00"
Coding = Literal["ulaw", "ulaw,embedded-shorten-v2.00"]

_RIFF_UNKNOWN = 0x7FFF_0000  # Programs that write WAV into a pipe put this or more for the length.
_SHORTEN_MARK = b"ajkg\x02"  # The name of the coder, and its version.
_BLOCK = 256  # Samples of a channel in a block, as in the files on the discs.
_DIFF1, _END, _BLOCK_LENGTH = 1, 4, 5  # Shorten's commands: code first differences; stop; change the block size.


def decode(path: Path) -> tuple[np.ndarray, int, str]:
    """Reads one SPHERE (or WAV, ...) file: float32 [samples, channels] in [-1, 1], rate, and the decoder's name.

    The decoders in order: libsndfile, which reads all but shorten; desphere_native, compiled, 0.005 of real time;
    desphere, the same in pure Python for systems without the binary, at least ten times slower; and the sph2pipe
    binary, the reference, which few have. All but the first are tried for SPHERE files only.
    Raises: UserError naming the file if it is missing, cut short, empty, or no decoder takes it (code "unreadable").
    """
    try:
        raw = path.read_bytes()
    except OSError as why:
        raise UserError(
            f"{path}: cannot be read ({why.strerror}): copy it again from the disc", code="unreadable"
        ) from why
    failures = []
    for name, decode in _decoders(path, raw.startswith(MAGIC)):
        try:
            samples, rate = soundfile.read(io.BytesIO(decode(raw)), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, UserError, ValueError, OSError, subprocess.SubprocessError) as why:
            failures.append(f"{name}: {why}")
            continue
        _check_length(path, raw, len(samples))
        return samples, int(rate), name
    kind = "a damaged SPHERE file" if raw.startswith(MAGIC) else "neither SPHERE nor any audio libsndfile reads"
    raise UserError(f"{path}: {kind} ({'; '.join(failures)}): copy it again from the disc", code="unreadable")


def write_sphere(path: Path, samples: np.ndarray, rate: int = 8000, coding: Coding = "ulaw") -> None:
    """Writes float [samples, channels] in [-1, 1] as mu-law SPHERE, plain or packed by shorten (both exact).

    Raises: UserError if the samples are not two-dimensional or the coding is unknown.
    """
    if samples.ndim != 2:
        raise UserError(f"{path}: give [samples, channels], not the shape {samples.shape}", code="bad-audio")
    mulaw = mulaw_bytes(samples)
    if coding == "ulaw":
        body = mulaw.tobytes()
    elif coding == SHORTEN_CODING:
        body = shorten(mulaw)
    else:
        raise UserError(f"{path}: use the SPHERE coding 'ulaw' or {SHORTEN_CODING!r}, not {coding!r}", code="bad-value")
    lines = [
        "NIST_1A",
        f"   {HEADER_BYTES}",
        f"sample_rate -i {rate}",
        f"channel_count -i {samples.shape[1]}",
        "sample_n_bytes -i 1",
        f"sample_count -i {len(samples)}",
        f"sample_coding -s{len(coding)} {coding}",
        "channels_interleaved -s4 TRUE",
        "end_head",
        "",
    ]
    header = "\n".join(lines).encode("ascii").ljust(HEADER_BYTES, b" ")
    write_bytes(path, header + body)


def mulaw_bytes(samples: np.ndarray) -> np.ndarray:
    """Turns float [samples, channels] into mu-law uint8 of the same shape (G.711, by libsndfile)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="RAW", subtype="ULAW")
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(samples.shape)


def telephone(samples: np.ndarray) -> np.ndarray:
    """Returns what a mu-law line makes of 8 kHz float [samples, channels]: the 255 levels of G.711."""
    buffer = io.BytesIO(mulaw_bytes(samples).tobytes())
    channels = samples.shape[1]
    heard, _ = soundfile.read(
        buffer, samplerate=8000, channels=channels, format="RAW", subtype="ULAW", dtype="float32", always_2d=True
    )
    return heard


def shorten(mulaw: np.ndarray) -> bytes:
    """Packs mu-law uint8 [samples, channels] losslessly: first differences, Rice-coded in blocks of 256.

    Everything in the stream is a pair (value, bits), written as value >> bits zeros, a one, and the low `bits` bits.
    """
    num_samples, channels = mulaw.shape
    unsigned = mulaw.astype(np.int64)
    # Shorten codes mu-law bytes by their rank in loudness order, in which neighbours are close.
    ranks = np.where(unsigned >= 128, 255 - unsigned, unsigned - 128)
    steps = np.diff(ranks, axis=0, prepend=0)
    folded = np.where(steps >= 0, 2 * steps, -2 * steps - 1)
    # The header begins with the kind of file, of which 8 is lossless mu-law.
    pairs: list[np.ndarray] = [_ulong(number) for number in (8, channels, _BLOCK, 0, 4, 0)]
    for start in range(0, num_samples, _BLOCK):
        block = folded[start : start + _BLOCK]
        if len(block) < _BLOCK:
            pairs += [np.array([[_BLOCK_LENGTH, 2]]), _ulong(len(block))]
        for channel in range(channels):
            values = block[:, channel]
            energy = _best_energy(values)
            pairs.append(np.array([[_DIFF1, 2], [energy, 3]]))
            pairs.append(np.stack([values, np.full_like(values, energy + 1)], axis=1))
    pairs.append(np.array([[_END, 2]]))
    stream = _pack_bits(np.concatenate(pairs))
    # Decoders read whole words of four bytes, counted from behind the mark: one to four zero bytes end the last one.
    return _SHORTEN_MARK + stream + b"\0" * (4 - len(stream) % 4)


def _decoders(path: Path, is_sphere: bool) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Yields the decoders in order of trust; each turns the file's bytes into bytes that libsndfile reads."""
    yield "libsndfile", bytes
    if is_sphere:
        yield "desphere_native", lambda raw: bytes(require("desphere_native", extra="fisher").transcode(raw))
        yield "desphere", _desphere
        command = ["sph2pipe", "-f", "wav", "-p", str(path)]
        yield "sph2pipe", lambda raw: subprocess.run(command, check=True, capture_output=True, timeout=300).stdout


def _desphere(raw: bytes) -> bytes:
    """Runs the pure Python decoder; its own error class is turned into ValueError."""
    desphere = require("desphere", extra="fisher")
    try:
        return bytes(desphere.transcode_bytes(raw))
    except desphere.DesphereError as why:
        raise ValueError(str(why)) from why


def _check_length(path: Path, raw: bytes, num_samples: int) -> None:
    """Raises UserError if the header promises more samples than there are, because the copy was cut short."""
    if raw.startswith(b"RIFF") and len(raw) < int.from_bytes(raw[4:8], "little") + 8 < _RIFF_UNKNOWN:
        raise UserError(
            f"{path}: shorter than its header promises: the file was cut short, copy it again", code="unreadable"
        )
    if not raw.startswith(MAGIC):
        return
    found = re.search(rb"^sample_count -i (\d+)", raw[:HEADER_BYTES], re.MULTILINE)
    if found and int(found[1]) > num_samples:
        raise UserError(
            f"{path}: holds {num_samples} of the {int(found[1])} samples its header promises: "
            "the file was cut short, copy it again from the disc",
            code="unreadable",
        )


def _ulong(value: int) -> np.ndarray:
    """Returns the pairs for a number of unknown size: how many bits it has, then those bits."""
    bits = value.bit_length()
    return np.array([[bits, 2], [value, bits]])


def _best_energy(folded: np.ndarray) -> int:
    """Returns the Rice parameter, 0 to 7, that makes this block shortest."""
    return min(range(8), key=lambda energy: int((folded >> (energy + 1)).sum()) + len(folded) * (energy + 2))


def _pack_bits(pairs: np.ndarray) -> bytes:
    """Packs pairs (value, bits) of shape [pairs, 2] into bytes, high bit first, zero-padded to a whole byte."""
    values, widths = pairs[:, 0], pairs[:, 1]
    ends = np.cumsum((values >> widths) + 1 + widths)
    bits = np.zeros(int(ends[-1]), np.uint8)
    bits[ends - widths - 1] = 1
    for place in range(int(widths.max())):
        has = widths > place
        bits[ends[has] - 1 - place] = (values[has] >> place) & 1
    return np.packbits(bits).tobytes()
