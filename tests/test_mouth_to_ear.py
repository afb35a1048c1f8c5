"""The measure of delays from mouth to ear: its network, how it reads recordings, and what stands in for the model."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.paths import ROOT
from tests.refusals import refused

BENCH = ROOT / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the measure."""
    monkeypatch.syspath_prepend(str(BENCH))
    import ear_marks
    import ear_server
    import lossy_link

    return SimpleNamespace(marks=ear_marks, server=ear_server, link=lossy_link)


def test_a_line_delays_every_packet_and_keeps_their_order(bench: Any) -> None:
    line = bench.link.LossyLine(0.075, 0.0, seed=0)
    assert line.next_at == float("inf")
    for n in range(5):
        line.take(bytes([n]), 10 + 0.02 * n)
    assert line.next_at == 10.075
    assert list(line.arrived(10.0749)) == []
    assert list(line.arrived(10.116)) == [b"\0", b"\1", b"\2"]
    assert list(line.arrived(11.0)) == [b"\3", b"\4"] and line.next_at == float("inf")


def test_a_line_loses_packets_independently_and_the_same_ones_for_the_same_seed(bench: Any) -> None:
    def kept(seed: int, count: int = 40000) -> Any:
        line = bench.link.LossyLine(0.0, 0.03, seed)
        for n in range(count):
            line.take(n.to_bytes(4, "big"), 0.0)
        came = {int.from_bytes(packet, "big") for packet in line.arrived(0.0)}
        assert line.taken == count and line.lost == count - len(came)
        return np.array([n in came for n in range(count)])

    lost = ~kept(1)
    assert abs(lost.mean() - 0.03) < 5 * np.sqrt(0.03 * 0.97 / len(lost))
    assert abs((lost[1:] & lost[:-1]).mean() - 0.03**2) < 5 * 0.03 / np.sqrt(len(lost))
    assert (kept(1) == ~lost).all() and (kept(2) != ~lost).any()


@pytest.mark.parametrize(("delay", "loss"), [(-0.1, 0.0), (0.1, 1.0), (0.1, -0.01), (float("nan"), 0.0)])
def test_a_line_that_cannot_be_is_refused(bench: Any, delay: float, loss: float) -> None:
    with refused("bad-value", delay, loss):
        bench.link.LossyLine(delay, loss, seed=0)


@pytest.mark.parametrize("rate", [44100, 48000])
def test_delays_are_read_from_recordings_that_were_made_with_them(bench: Any, rate: int) -> None:
    marks, chance = bench.marks, np.random.default_rng(0)
    microphone, speaker = 0.002 * chance.standard_normal((2, 20 * rate))
    note = 0.3 * np.sin(2 * np.pi * marks.AGENT_HZ * np.arange(20 * rate) / rate)
    sounds = np.ones(20 * rate, bool)
    made = {"mouth_to_ear": [], "reply": [], "stop": []}  # type: dict[str, list[float]]
    hum = round(marks.HUM_SECONDS * rate)
    for n in range(8):
        begins = round((1.5 + 2.2 * n + chance.uniform(0, 0.2)) * rate)
        said = marks.utterance(rate)
        microphone[begins : begins + len(said)] += said
        delays = {"mouth_to_ear": chance.uniform(0.1, 0.7), "stop": chance.uniform(0.05, 0.3)}
        # What the user hears of the agent after the marker cannot come before the marker.
        delays["reply"] = delays["mouth_to_ear"] + chance.uniform(0.0, 0.2)
        echo = begins + hum + round(delays["mouth_to_ear"] * rate)
        if n != 5:
            speaker[echo : echo + len(marks.marker(rate))] += 0.25 * marks.marker(rate)
        sounds[begins + round(delays["stop"] * rate) : begins + len(said) + round(delays["reply"] * rate)] = False
        for name, seconds in delays.items():
            made[name].append(np.nan if n == 5 else seconds)
    found = marks.read_delays(microphone, speaker + note * sounds, rate)
    assert found.mouth_to_ear == pytest.approx(made["mouth_to_ear"], abs=1 / rate, nan_ok=True)
    assert found.reply == pytest.approx(made["reply"], abs=0.006, nan_ok=True)
    assert found.stop == pytest.approx(made["stop"], abs=0.006, nan_ok=True)


def test_utterances_without_room_around_them_are_left_out(bench: Any) -> None:
    marks, rate = bench.marks, 48000
    said = marks.utterance(rate)
    microphone = np.concatenate([said, np.zeros(2 * rate), said, np.zeros(rate // 2)])
    assert len(marks.read_delays(microphone, np.zeros(len(microphone)), rate).reply) == 0
    microphone = np.concatenate([microphone, np.zeros(2 * rate)])
    assert np.isnan(marks.read_delays(microphone, np.zeros(len(microphone)), rate).mouth_to_ear).tolist() == [True]


def test_the_user_speaks_as_long_as_asked_and_pauses_differ(bench: Any) -> None:
    marks, rate = bench.marks, 24000
    speech = marks.user_speech(30.0, rate, seed=3)
    assert 30 <= len(speech) / rate < 33 and (speech == marks.user_speech(30.0, rate, seed=3)).all()
    spoken = np.flatnonzero(np.abs(speech) > 0.1)
    pauses = np.diff(spoken)[np.diff(spoken) > rate / 2] / rate
    assert len(pauses) >= 12 and pauses.min() > 0.99 and pauses.max() < 1.52 and pauses.std() > 0.05


def test_the_stand_in_speaks_in_silence_repeats_markers_and_else_is_silent(bench: Any) -> None:
    rate, frame = 24000, 1920
    said = bench.marks.utterance(rate).astype(np.float32)
    answer = bench.server.answer
    note = answer(np.zeros(frame, np.float32))
    assert (np.abs(np.fft.rfft(note)).argmax() * rate / frame, np.abs(note).max()) == (700, pytest.approx(0.3, 0.01))
    assert not answer(said[:frame]).any() and not answer(said[-frame:]).any()
    begins = round(0.3 * rate) - frame // 2  # half a frame of the hum, half of the marker
    assert (answer(said[begins : begins + frame]) == said[begins : begins + frame]).all()


def test_without_root_the_measure_says_so_in_a_line(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mouth_to_ear  # type: ignore[import-not-found]

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with refused("no-access", "--here"), bench.link.Link():
        pass
    monkeypatch.setattr(sys, "argv", ["mouth_to_ear.py"])
    with pytest.raises(SystemExit, match="wants root"):
        mouth_to_ear.main()
    monkeypatch.setattr(sys, "argv", ["mouth_to_ear.py", "--here", "--loss", "1"])
    with pytest.raises(SystemExit):
        mouth_to_ear.main()
    assert "--here has no network" in capsys.readouterr().err


ECHO = "import socket; s = socket.socket(type=2); s.bind(('198.18.0.2', 9)); print(flush=True)\n"
ECHO += "while True: s.sendto(*s.recvfrom(2000))"
PING = "import socket, time; s = socket.socket(type=2); s.settimeout(20); began = time.monotonic()\n"
PING += "s.sendto(b'x', ('198.18.0.2', 9)); s.recvfrom(9); print(time.monotonic() - began)"


def test_packets_go_through_the_link_which_leaves_nothing_behind(bench: Any) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("a network of its own wants root and /dev/net/tun")
    with bench.link.Link() as link:
        spaces = [["ip", "netns", "exec", space, sys.executable, "-c"] for space in link.spaces]
        lines = link.set(0.04, 0.0, seed=0)
        with subprocess.Popen([*spaces[1], ECHO], stdout=subprocess.PIPE) as echo:
            assert echo.stdout is not None and echo.stdout.readline()
            took = subprocess.run([*spaces[0], PING], check=True, capture_output=True, text=True)
            echo.kill()
        assert float(took.stdout) >= 0.04 and all(line.taken >= 1 and line.lost == 0 for line in lines)
    left = subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout
    assert not any(space in left for space in link.spaces)
