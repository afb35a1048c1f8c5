"""What is said into the microphone to measure delays, and how they are read from microphone and speaker.

The user hums on one note and says a marker, a short chirp, in the middle of it; the agent sounds another note while the
user is silent, and repeats the marker. Delays are between two recordings of one clock:

* mouth to ear: from the marker in the microphone to the marker in the speaker;
* reply: from the end of the hum to the agent's note;
* stop: from the beginning of the hum to the end of the agent's note.
"""

# Shapes: S samples, N rows (utterances), M some (samples of a marker)

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float64]
USER_HZ, AGENT_HZ = 300.0, 700.0
"""Whole periods in a frame of 80 ms, so that frames follow each other without a click."""
MARKER_HZ = (1500.0, 4500.0)
MARKER_SECONDS = 0.1
HUM_SECONDS = 0.3
"""Before the marker, and after it."""
PAUSE_SECONDS = (1.0, 1.5)
"""Between two utterances, drawn anew each time, so that they begin anywhere in a frame."""
LOUD = 0.3
RAMP_SECONDS = 0.005
WINDOW_SECONDS = 0.01
"""Levels are those of a window of this length: times of notes are known to a part of it."""
ALIKE = 0.5
"""Correlation with the marker from which it is one."""


def utterance(rate: int) -> Wave:
    """Hum, marker, hum [S], with soft edges."""
    hum_S = LOUD * np.sin(2 * np.pi * USER_HZ * np.arange(round(HUM_SECONDS * rate)) / rate)
    return np.concatenate([_soft(hum_S, rate), LOUD * marker(rate), _soft(hum_S, rate)])


def marker(rate: int) -> Wave:
    """The chirp [M], with a peak of 1."""
    at_M = np.arange(round(MARKER_SECONDS * rate)) / rate
    low, high = MARKER_HZ
    return _soft(np.sin(2 * np.pi * (low * at_M + (high - low) * at_M**2 / (2 * MARKER_SECONDS))), rate)


def user_speech(seconds: float, rate: int, seed: int) -> Wave:
    """Utterances with pauses between them, at least `seconds` long, [S]."""
    chance = np.random.default_rng(seed)
    parts, length = list[Wave](), 0
    while length < seconds * rate:
        parts += [np.zeros(round(chance.uniform(*PAUSE_SECONDS) * rate)), utterance(rate)]
        length += len(parts[-1]) + len(parts[-2])
    return np.concatenate(parts)


@dataclass(frozen=True)
class Delays:
    """Seconds for each utterance [N]; NaN where what was waited for never came."""

    mouth_to_ear: Wave
    reply: Wave
    stop: Wave


def read_delays(microphone_S: Wave, speaker_S: Wave, rate: int) -> Delays:
    """Delays of all utterances that lie wholly within the recordings, with a pause after them."""
    spoken = _markers(microphone_S, rate)
    heard = _markers(speaker_S, rate)
    user_S, agent_S = (level(wav_S, hz, rate) for wav_S, hz in ((microphone_S, USER_HZ), (speaker_S, AGENT_HZ)))
    near = round((HUM_SECONDS + MARKER_SECONDS + PAUSE_SECONDS[0] / 2) * rate)
    rows = []
    for n, at in enumerate(spoken):
        next_at = spoken[n + 1] if n + 1 < len(spoken) else len(microphone_S)
        if at < near or (n + 1 == len(spoken) and next_at - at < near + PAUSE_SECONDS[0] * rate):
            continue
        hums = at - near + np.flatnonzero(user_S[at - near : at + near] > LOUD / 2)
        echo = next((echo for echo in heard if at < echo < next_at), None)
        if echo is None or not len(hums):
            rows.append((np.nan, np.nan, np.nan))
            continue
        notes = np.flatnonzero(agent_S > LOUD / 2)
        before, after = notes[notes < echo], notes[notes > echo]
        stop = before[-1] - hums[0] if len(before) and before[-1] > hums[0] else np.nan
        reply = after[0] - hums[-1] if len(after) and after[0] < next_at else np.nan
        rows.append((echo - at, reply, stop))
    mouth_N, reply_N, stop_N = np.array(rows, float).reshape(-1, 3).T / rate
    return Delays(mouth_N, reply_N, stop_N)


def level(wav_S: Wave, hz: float, rate: int) -> Wave:
    """The amplitude [S] of one note over time: a step in it is at half of its height when it happens."""
    window = np.hanning(round(WINDOW_SECONDS * rate) | 1)
    turned_S = wav_S * np.exp(-2j * np.pi * hz * np.arange(len(wav_S)) / rate)
    return 2 * np.abs(_convolve(turned_S, window / window.sum(), lag=len(window) // 2))


def _markers(wav_S: Wave, rate: int) -> list[int]:
    """Samples at which markers begin."""
    marker_M = marker(rate)
    products_S = _convolve(wav_S, marker_M[::-1], lag=len(marker_M) - 1).real
    power_S = np.cumsum(np.pad(wav_S**2, (1, len(marker_M))))
    energy_S = power_S[len(marker_M) : len(marker_M) + len(wav_S)] - power_S[: len(wav_S)]
    loudest = max(float(energy_S.max(initial=0.0)), 1e-12)
    alike_S = products_S / np.sqrt(np.maximum(energy_S, 1e-3 * loudest) * np.sum(marker_M**2))
    found = list[int]()
    for at in np.flatnonzero(alike_S > ALIKE):
        if not found or at - found[-1] > len(marker_M):
            found.append(int(at))
        elif alike_S[at] > alike_S[found[-1]]:
            found[-1] = int(at)
    return found


def _convolve(wav_S: Any, kernel: Any, lag: int) -> Any:
    """The convolution [S] that begins `lag` samples after its start, by Fourier transform."""
    size = 1 << (len(wav_S) + len(kernel) - 1).bit_length()
    return np.fft.ifft(np.fft.fft(wav_S, size) * np.fft.fft(kernel, size))[lag : lag + len(wav_S)]


def _soft(wav_S: Wave, rate: int) -> Wave:
    ramp = np.sin(np.pi / 2 * np.arange(round(RAMP_SECONDS * rate)) / round(RAMP_SECONDS * rate)) ** 2
    soft_S = wav_S.copy()
    soft_S[: len(ramp)] *= ramp
    soft_S[-len(ramp) :] *= ramp[::-1]
    return soft_S
