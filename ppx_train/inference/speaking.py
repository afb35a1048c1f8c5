"""When a side of a conversation speaks, by the level of its frames alone, so that it can be decided frame by frame.

A frame of 80 ms speaks if its RMS is above -45 dBFS. What our small Mimi makes of digital silence lies at -100 dBFS,
and the pauses inside of synthetic speech mostly between -50 and -80 (measured on 7 voices of Kokoro and espeak-ng).
A noisy line can be louder than that, and then counts as speech.
"""

# Shapes: S samples (at 24 kHz), T frames

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from model.config import FRAME_RATE, FRAME_SAMPLES
from ppx_train.inference.session import Audio

SPEAKS_DBFS = -45.0
"""A frame whose RMS is above this speaks."""
JOIN_FRAMES = 2
"""Pauses of at most this many frames (0.16 s) do not end a stretch of speech.

Turn statistics in the style of dGSLM (arXiv 2203.16502) join at 0.2 s, which is between 2 and 3 frames.
"""

Frames = npt.NDArray[np.bool_]


def levels(audio_S: Audio) -> npt.NDArray[np.float64]:
    """Returns the RMS of each frame in dBFS, [T]; -120 for silence. A last partial frame is filled with zeros."""
    padded_S = np.pad(audio_S.astype(np.float64), (0, -len(audio_S) % FRAME_SAMPLES))
    return 10 * np.log10(np.mean(padded_S.reshape(-1, FRAME_SAMPLES) ** 2, axis=1) + 1e-12)


def speaking(audio_S: Audio) -> Frames:
    """Returns whether each frame speaks, [T]."""
    return levels(audio_S) > SPEAKS_DBFS


def stretches(speaks_T: Frames) -> Iterator[tuple[int, int]]:
    """Yields the first frame and the frame after the last of each stretch of speech; short pauses do not end one."""
    start, last = None, -1
    for frame in np.flatnonzero(speaks_T).tolist():
        if start is not None and frame - last - 1 > JOIN_FRAMES:
            yield start, last + 1
            start = None
        start, last = frame if start is None else start, frame
    if start is not None:
        yield start, last + 1


def seconds(frames: int) -> float:
    """Returns how long a number of frames is."""
    return frames / FRAME_RATE


def frames_of(length: float) -> int:
    """Returns how many frames a length in seconds is, rounded."""
    return round(length * FRAME_RATE)
