"""What every format is turned into: recordings to import, in batches that any worker can open."""

# Shapes: C channels, S samples

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from data_pipelines.recordings.utterances import Sides
from data_pipelines.records.schema import SIDES
from data_pipelines.sound.audio import RATE_HZ, Audio, to_rate
from model.errors import UserError
from model.files import inside

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".sph")
UNEVEN_SHARE = 0.05
"""How much shorter one of two mono files may be; the rest is filled with silence."""


class Unready(UserError):
    """An engine cannot be opened, which is the fault of no recording and so ends the run."""


@dataclass(kw_only=True)
class Recording:
    """One recording. What is costly, or can be broken, is read on demand and then raises UserError.

    `name` is unique within an import and says where the recording comes from.
    """

    name: str
    audio: Callable[[], tuple[Audio, int]]
    """Returns both channels, float32 [2, samples], and their rate in Hz."""
    sides: Callable[[], Sides] = dict
    attachment: Callable[[str], bytes] = field(default=lambda name: _no_attachment(name))
    """Returns the bytes of another file or column of the record, such as a voice clip."""
    metadata: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    """The terms that the record itself states; "" if it states none. They count, whatever the import says of others."""
    split: str = ""
    """The split that the record itself states; "" if it states none."""
    masked: Mapping[str, int] | None = None
    """How many personal stretches of each kind were masked before, as the record states; None if it does not."""
    notes: tuple[str, ...] = ()
    """What was left out when it was found, for the report."""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A recording that cannot even be listed properly, and why."""

    name: str
    reason: str


class Batch(Protocol):
    """Recordings that are read together, such as those of one tar. Batches are picklable."""

    @property
    def label(self) -> str:
        """The name of the batch in messages."""
        ...

    def recordings(self) -> Iterator[Recording | Broken]:
        """Yields the recordings one after the other. Raises Unready if a package is missing."""
        ...


def recording_id(source: str, name: str) -> str:
    """Returns a name for folders and tars that is readable, and never the same for two names."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", str(PurePosixPath(name).with_suffix(""))).strip("_")
    if plain == name and len(plain) <= 60:
        return f"{source}-{plain}"
    return f"{source}-{plain[-60:].strip('_-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def field_of(metadata: dict[str, Any], path: str) -> Any:
    """Returns the value at a dotted path, "speakers.left.id", where numbers count in lists; None if it is missing."""
    value: Any = metadata
    for key in path.split("."):
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value.get(key)
        else:
            return None
    return value


def named_file(root: Path, metadata: dict[str, Any], field: str) -> bytes:
    """Reads the file below `root` that a record names in one of its fields.

    Raises: UserError if the field names no file (code "bad-record") or the file is missing ("not-found").
    """
    name = field_of(metadata, field)
    if not isinstance(name, str):
        raise UserError(f"its record names no file as {field!r}", code="bad-record")
    path = inside(root, name, f"its {field}")
    if not path.is_file():
        raise UserError(f"{path}: no such file (its {field})", code="not-found")
    return path.read_bytes()


def stereo(audio_CS: Audio, where: str) -> Audio:
    """Returns the audio. Raises UserError if it does not have two channels."""
    if len(audio_CS) != 2:
        raise UserError(
            f"{where}: has {len(audio_CS)} channel{'s' * (len(audio_CS) != 1)}, 2 are wanted: one for each speaker",
            code="bad-audio",
        )
    return audio_CS


def from_two(left: tuple[Audio, int], right: tuple[Audio, int], where: str) -> tuple[Audio, int]:
    """Joins two mono recordings to one of two channels, at the higher rate; the shorter one ends with silence.

    Shapes: each float32 [1, samples], the result float32 [2, samples].
    Raises: UserError if one is not mono, or their lengths differ by more than UNEVEN_SHARE.
    """
    for name, (audio_CS, _) in zip(SIDES, (left, right), strict=True):
        if len(audio_CS) != 1:
            raise UserError(
                f"{where}: the {name} file has {len(audio_CS)} channels, a side's own file has 1", code="bad-audio"
            )
    rate = max(left[1], right[1])
    sides = [to_rate(audio_CS[0], own, rate) for audio_CS, own in (left, right)]
    samples = max(map(len, sides))
    if min(map(len, sides)) < (1 - UNEVEN_SHARE) * samples:
        lengths = " and ".join(f"{len(side) / rate:.1f} s" for side in sides)
        raise UserError(f"{where}: its two files last {lengths}: they are not of one conversation", code="bad-audio")
    return np.stack([np.pad(side, (0, samples - len(side))) for side in sides]), rate


def at_24k(audio_CS: Audio, rate: int) -> tuple[Audio, float]:
    """Resamples to 24 kHz; also returns the gain that kept the result off full scale (1 unless it is very hot)."""
    audio_CS = to_rate(audio_CS, rate, RATE_HZ)
    peak = float(np.abs(audio_CS).max())
    gain = 1.0 if peak < 0.99 else 0.98 / peak
    return (audio_CS if gain == 1.0 else audio_CS * np.float32(gain)), round(gain, 6)


def _no_attachment(name: str) -> bytes:
    raise UserError(f"the record holds no {name!r}", code="bad-record")
