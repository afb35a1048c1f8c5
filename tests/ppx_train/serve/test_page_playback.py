"""The page's playback in a real browser: what is heard when sound comes on time, late, or too much at once."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("aiohttp")

from tests.browser import NEEDS_CHROMIUM

pytestmark = NEEDS_CHROMIUM

RATE = 24000
PLAY = """
const context = new OfflineAudioContext(1, given.rate * given.seconds, given.rate);
await context.audioWorklet.addModule("/playback.worklet.js");
const node = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
node.connect(context.destination);
const reports = [];
node.port.onmessage = ({ data }) => reports.push(data);
for (const [time, message] of given.messages)
  context.suspend(time).then(async () => {
    node.port.postMessage(message.samples ? { samples: Float32Array.from(message.samples) } : message);
    await new Promise((done) => setTimeout(done, 20)); // until the worklet has it
    context.resume();
  });
const sound = await context.startRendering();
await new Promise((done) => setTimeout(done, 50));
return { samples: [...sound.getChannelData(0)], reports };
"""


def wave_of(seconds: float) -> Any:
    return 0.5 * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)


def played(js: Any, pieces: list[tuple[float, Any]], seconds: float = 3.0, rate: int = 48000) -> tuple[Any, list[Any]]:
    """What is heard when messages, samples or objects, come at these seconds."""
    messages = [[at, given if isinstance(given, dict) else {"samples": given.tolist()}] for at, given in pieces]
    got = js(PLAY, {"rate": rate, "seconds": seconds, "messages": messages})
    return np.array(got["samples"]), got["reports"]


def paced(wav: Any, start: float = 0.1) -> list[tuple[float, Any]]:
    """Frames of 80 ms, each when it would arrive."""
    return [(start + 0.08 * n, wav[1920 * n : 1920 * (n + 1)]) for n in range(len(wav) // 1920)]


STEEPEST = 2 * np.pi * 200 * 0.5 / 48000
"""The largest step between two samples of `wave_of` at 48 kHz; a click has a larger one."""


@pytest.mark.parametrize("rate", [44100, 48000])
def test_paced_sound_is_played_without_gaps_and_soon(js: Any, rate: int) -> None:
    wav = wave_of(2.4)
    heard, reports = played(js, paced(wav), rate=rate)
    begins = np.flatnonzero(np.abs(heard) > 1e-3)[0] / rate
    assert 0.135 < begins < 0.155  # 40 ms after the first frame
    middle = heard[round(0.5 * rate) : round(2.2 * rate)]
    at = np.arange(len(middle)) * 2 * np.pi * 200 / rate
    rows = np.stack([np.sin(at), np.cos(at)])
    fit, *_ = np.linalg.lstsq(rows.T, middle, rcond=None)
    assert np.abs(middle - fit @ rows).max() < 1e-3 and abs(np.hypot(*fit) - 0.5) < 1e-3
    assert all(report["gaps"] == 0 and report["cut"] == 0 for report in reports if report["time"] < 2.4)
    assert max(report["queued"] for report in reports) < 0.13


def test_a_gap_is_faded_and_makes_the_margin_larger(js: Any) -> None:
    wav = wave_of(2.0)
    pieces = paced(wav[:12000]) + paced(wav[12000:], start=1.0)
    heard, reports = played(js, pieces)
    assert [report["gaps"] for report in reports if 0.9 < report["time"] < 2][-1] == 1
    assert reports[-1]["margin"] > reports[0]["margin"] == 0.04
    assert np.abs(np.diff(heard)).max() < 3 * STEEPEST


def test_a_queue_that_grows_is_cut_and_so_is_one_before_a_user_who_speaks(js: Any) -> None:
    wav = wave_of(2.6)
    burst = [(0.1, wav[:24000]), *paced(wav[24000:], start=0.15)]
    heard, reports = played(js, burst)
    assert max(report["queued"] for report in reports) > 0.9
    late = [report for report in reports if 1.6 < report["time"] < 1.7]
    assert all(report["queued"] < 0.2 and report["cut"] > 0.7 and report["gaps"] == 0 for report in late)
    _, reports = played(js, [(0.1, wav[:6000]), *paced(wav[6000:], start=0.15), (0.6, {"type": "cut"})])
    assert [report["cut"] for report in reports if report["time"] < 0.6][-1] == 0
    assert [report["cut"] for report in reports if report["time"] < 0.7][-1] > 0.1
    assert np.abs(np.diff(heard)).max() < 3 * STEEPEST


def test_what_waits_too_long_is_left_out_where_it_is_silent(js: Any) -> None:
    wav = np.concatenate([wave_of(0.8), np.zeros(14400), wave_of(1.0)])
    _, reports = played(js, [(0.1, wav[:4800]), *paced(wav[4800:], start=0.12)])
    assert [report["queued"] for report in reports if report["time"] < 0.9][-1] > 0.15
    assert 0.1 < reports[-1]["cut"] < 0.3 and [r["queued"] for r in reports if r["time"] < 2][-1] < 0.14


def test_after_a_gap_what_was_held_up_is_played_without_another_wait(js: Any) -> None:
    wav = wave_of(2.0)
    pieces = [*paced(wav[:12000]), (0.9, wav[12000:19680]), *paced(wav[19680:], start=0.95)]
    heard, reports = played(js, pieces)
    silent = np.flatnonzero(np.abs(heard[: round(1.5 * 48000)]) > 1e-3) / 48000
    gap = silent[np.argmax(np.diff(silent))]  # when it begins; the burst of 320 ms comes at 0.9 s
    assert 0.55 < gap < 0.7 and 0.89 < gap + np.diff(silent).max() < 0.92  # and not after the margin, 60 ms by now
    assert [report["gaps"] for report in reports if report["time"] < 1.5][-1] == 1


def test_a_calm_time_takes_the_margin_back(js: Any) -> None:
    wav = wave_of(24.0)
    _, reports = played(js, paced(wav[:12000]) + paced(wav[12000:], start=1.0), seconds=24.0, rate=24000)
    margin_of = {round(report["time"], 1): report["margin"] for report in reports}
    assert margin_of[15.0] == pytest.approx(0.06) and 0.04 <= margin_of[22.0] < 0.05
    assert [report["gaps"] for report in reports if report["time"] < 23][-1] == 1
