"""The page's modules in a real browser, against soxr, sphn and a reader of Ogg that shares no code with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("aiohttp")

import soundfile
import soxr

from tests.browser import NEEDS_CHROMIUM, speak
from tests.ppx_train.serve.ogg import crc, pages

pytestmark = NEEDS_CHROMIUM

RATE = 24000

RESAMPLE = """
const { Resampler } = await import("/resample.js");
const resampler = new Resampler(given.from, given.to);
const out = [];
for (const piece of cut(Float32Array.from(given.samples), sizes)) out.push(...resampler.process(piece));
return out;
"""


def resampled(js: Any, wav: Any, source: int, target: int) -> Any:
    return np.array(js(RESAMPLE, {"samples": [round(float(x), 7) for x in wav], "from": source, "to": target}))


@pytest.mark.parametrize(
    ("source", "target"), [(48000, RATE), (44100, RATE), (96000, RATE), (16000, RATE), (RATE, 48000), (RATE, 44100)]
)
def test_the_resampler_agrees_with_soxr(js: Any, source: int, target: int) -> None:
    noise = np.random.default_rng(0).standard_normal(source // 2)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise), 1 / source) > 0.8 * min(source, target) / 2] = 0
    wav = 0.1 * np.fft.irfft(spectrum, len(noise))
    ours, reference = resampled(js, wav, source, target), soxr.resample(wav, source, target, "VHQ")
    assert 0 <= len(reference) - len(ours) <= 40 * max(1, target / source)  # what waits for more input
    inner = slice(target // 100, len(ours))
    assert np.std(ours[inner] - reference[inner]) < 1e-3 * np.std(reference[inner])


@pytest.mark.parametrize("source", [48000, 44100])
def test_the_resampler_lets_nothing_through_that_would_come_back_as_another_tone(js: Any, source: int) -> None:
    tone = np.sin(2 * np.pi * 13000 * np.arange(source // 4) / source)
    assert np.abs(resampled(js, tone, source, RATE)[300:]).max() < 2e-4


def test_written_ogg_pages_are_read_by_another_reader(js: Any) -> None:
    lengths = [0, 1, 80, 254, 255, 256, 510, 1275]
    got = js(
        """
        const { OggWriter, join } = await import("/ogg.js");
        const writer = new OggWriter({ rate: 24000, preSkip: 312, serial: 4000000000 });
        const packets = given.map((length, n) => new Uint8Array(length).fill(n + 1));
        return [...join([writer.headers(), ...packets.map((packet) => writer.page(packet, 960))])];
        """,
        lengths,
    )
    found = pages(bytes(got))
    assert all(page.checks for page in found) and {page.serial for page in found} == {4000000000}
    assert [page.number for page in found] == list(range(len(lengths) + 2))
    assert [page.flags for page in found] == [2] + [0] * (len(lengths) + 1)
    assert [page.granule for page in found] == [0, 0, *(960 * n for n in range(1, len(lengths) + 1))]
    assert [page.packets for page in found[2:]] == [(bytes([n + 1]) * length,) for n, length in enumerate(lengths)]
    assert found[0].packets[0] == b"OpusHead\x01\x01" + bytes([56, 1]) + (24000).to_bytes(4, "little") + bytes(3)


def page_of(number: int, flags: int, lacing: list[int], content: bytes) -> bytes:
    """A page, written here from RFC 3533."""
    head = b"OggS\0" + bytes([flags]) + bytes(8) + (7).to_bytes(4, "little") + number.to_bytes(4, "little")
    tail = bytes([len(lacing), *lacing]) + content
    return head + crc(head + bytes(4) + tail).to_bytes(4, "little") + tail


READ = """
const { OggReader } = await import("/ogg.js");
const reader = new OggReader();
const packets = [];
for (const piece of cut(Uint8Array.from(given), sizes)) packets.push(...reader.push(piece));
return { packets: packets.map((packet) => [...packet]), damaged: reader.damaged, preSkip: reader.preSkip };
"""


def test_ogg_pages_of_others_are_read_however_they_are_cut(js: Any) -> None:
    sphn = pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
    stream = sphn.OpusStreamWriter(RATE).append_pcm(np.zeros(48000, np.float32))
    got, found = js(READ, list(stream)), pages(bytes(stream))
    assert [bytes(packet) for packet in got["packets"]] == [packet for page in found[2:] for packet in page.packets]
    assert len(got["packets"]) == 50 and got["damaged"] == 0
    assert got["preSkip"] == int.from_bytes(found[0].packets[0][10:12], "little")


def test_packets_over_two_pages_are_joined_and_damaged_pages_left_out(js: Any) -> None:
    first, second = bytes(range(200)) * 2, b"x" * 30
    parts = [
        page_of(0, 0, [200, 200], first),
        page_of(1, 0, [255, 255], b"a" * 510),  # goes on in the next page
        page_of(2, 1, [10, 30], b"b" * 10 + second),
    ]
    damaged = bytearray(page_of(3, 0, [50], b"c" * 50))
    damaged[40] ^= 1
    got = js(READ, list(parts[0] + b"OggjunkO" + parts[1] + parts[2] + bytes(damaged) + page_of(4, 0, [2], b"ok")))
    expected = [first[:200], first[200:], b"a" * 510 + b"b" * 10, second, b"ok"]
    assert [bytes(packet) for packet in got["packets"]] == expected and got["damaged"] == 1


def tone(seconds: float) -> Any:
    """A chirp, so that a shift would be seen."""
    at = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (300 + 300 * at) * at)).astype(np.float32)


def likeness(one: Any, two: Any) -> float:
    count = min(len(one), len(two))
    return float(np.corrcoef(one[2000:count], two[2000:count])[0, 1])


def test_opus_of_the_page_is_heard_by_the_server(js: Any) -> None:
    sphn = pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
    wav = tone(1.5)
    got = js(
        """
        const { hasOpus, makeCodec } = await import("/codec.js");
        if (!(await hasOpus())) return null;
        const { join } = await import("/ogg.js");
        const parts = [];
        const codec = makeCodec("opus", { onBytes: (bytes) => parts.push(bytes), onError: (why) => { throw why; } });
        for (const piece of cut(Float32Array.from(given), [480])) codec.send(piece);
        await codec.encoder.flush();
        codec.close();
        return [...join(parts)];
        """,
        wav.tolist(),
    )
    if got is None:
        pytest.skip("this Chromium has no Opus encoder")
    found = pages(bytes(got))
    assert all(page.checks for page in found) and len(found) >= 2 + 75
    assert found[-1].granule == 960 * (len(found) - 2)
    heard = np.concatenate([sphn.OpusStreamReader(RATE).append_bytes(bytes(got))])
    skip = len(heard) - len(wav) if len(heard) > len(wav) else 0
    assert max(likeness(heard[n:], wav) for n in range(skip + 200)) > 0.98


def test_opus_of_the_server_is_heard_by_the_page(js: Any) -> None:
    sphn = pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
    wav = tone(2.0)
    got = js(
        """
        const { hasOpus, makeCodec } = await import("/codec.js");
        if (!(await hasOpus())) return null;
        const heard = [];
        const onSamples = (samples) => heard.push(...samples);
        const codec = makeCodec("opus", { onSamples, onError: (why) => { throw why; } });
        for (const piece of cut(Uint8Array.from(given), sizes)) codec.take(piece);
        await codec.decoder.flush();
        codec.close();
        return heard;
        """,
        list(sphn.OpusStreamWriter(RATE).append_pcm(wav)),
    )
    if got is None:
        pytest.skip("this Chromium has no Opus decoder")
    assert 0 <= len(wav) - len(got) <= 400 and likeness(np.array(got), wav) > 0.98  # the encoder's delay is cut off


def test_pcm16_is_cut_anywhere_and_clipped(js: Any) -> None:
    values = np.random.default_rng(0).integers(-(2**15), 2**15, 3000).astype("<i2")
    sent, heard = js(
        """
        const { makeCodec } = await import("/codec.js");
        const [sent, heard] = [[], []];
        const on = { onBytes: (bytes) => sent.push(...bytes), onSamples: (samples) => heard.push(...samples) };
        const codec = makeCodec("pcm16", on);
        codec.send(Float32Array.from([0, 0.5, -1, 1, 7, -7]));
        for (const piece of cut(Uint8Array.from(given), sizes)) codec.take(piece);
        return [sent, heard];
        """,
        list(values.tobytes()),
    )
    assert np.frombuffer(bytes(sent), "<i2").tolist() == [0, 16384, -32768, 32767, 32767, -32768]
    assert np.array_equal(np.array(heard) * 2**15, values)


def levels(wav: Any) -> Any:
    """Root mean squares of 20 ms."""
    return np.sqrt((wav[: len(wav) // 480 * 480].reshape(-1, 480) ** 2).mean(1)).tolist()


def test_the_agents_voice_is_noticed_in_the_microphone_and_the_users_is_not(js: Any, tmp_path: Path) -> None:
    wav, rate = soundfile.read(speak(tmp_path / "speech.wav"))
    agent = np.tile(soxr.resample(wav, rate, RATE), 3)
    room = 0.001 * np.random.default_rng(0).standard_normal(len(agent))
    echo = 0.1 * np.roll(agent, round(0.23 * RATE)) + room
    user = 0.5 * np.roll(agent, round(2.9 * RATE)) + room  # another sentence at each moment
    watch = """
        const { EchoWatch } = await import("/echo.js");
        const watch = new EchoWatch();
        return given.heard.map((level, n) => {
          watch.addPlayed(0.02 * n + 0.001, given.played[n]);
          return watch.addCaptured(0.02 * n + 0.001, level);
        }).filter(Boolean).length;
        """
    played = levels(agent)
    assert js(watch, {"played": played, "heard": levels(echo)}) >= 1
    assert js(watch, {"played": played, "heard": levels(user)}) == 0
    assert js(watch, {"played": played, "heard": levels(user + echo)}) == 0  # who speaks louder hides it
    assert js(watch, {"played": played, "heard": levels(room)}) == 0
    assert js(watch, {"played": levels(room), "heard": levels(user)}) == 0
