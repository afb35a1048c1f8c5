"""`ppx-chat --replay`: a call over real sockets is held again offline, and what may make it differ is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

import soundfile
from safetensors.torch import load_file, save_file

from model.duplex import DuplexLM
from model.errors import Code
from model.streaming.sample import Sampling
from ppx_train.cli.chat import command
from ppx_train.inference import call as live_call
from ppx_train.inference.loading import Release, load_release
from ppx_train.inference.session import Audio
from ppx_train.serve import query, replay
from ppx_train.serve.client import CallOptions, connect
from tests.ppx_train.inference.noise import CONFIG
from tests.ppx_train.serve.live import live, speech, within
from tests.refusals import refused

CONTEXT, FRAMES = 104, 75
"""The window, which voice, role and the call together outlast."""
OPTIONS = CallOptions(
    voice="bob", role="you work for citysan", seed=7, codec="pcm16", sampling=Sampling(text_top_k=40, audio_top_k=30)
)


async def hold(one: Any, folder: Path) -> Path:
    """Holds a call with the client, and writes what the page would; returns the path of the settings."""
    user_TS = speech(FRAMES)
    heard: list[Audio] = []
    pieces, stats = [], {"cut_ms": 0.0, "dropped": 0, "left_out": 0}
    async with connect(one.address, OPTIONS) as talking:
        await talking.send(user_TS[:2].reshape(-1))  # The server cuts less than a frame of the beginning.
        async for message in talking:
            if message.kind == "audio":
                heard.append(message.agent_S)
                if len(heard) + 1 < FRAMES:
                    await talking.send(user_TS[len(heard) + 1])
            elif message.event.get("type") == "text":
                pieces.append({"at": message.event["at"], "text": message.event["text"]})
            elif message.event.get("type") == "stats":
                stats |= message.event
            if len(heard) == FRAMES - 1:
                break
        info = (await one.get("/api/info"))[1]
    agent_S, user_S = np.concatenate(heard), user_TS.reshape(-1)[round(stats["cut_ms"] * 24) :]
    both_SC = np.zeros((len(user_S), 2), np.float32)
    both_SC[: len(agent_S), 0], both_SC[:, 1] = agent_S, user_S
    soundfile.write(folder / "call-1.wav", both_SC, 24000, "PCM_16")
    (folder / "call-1-transcript.json").write_text(json.dumps({"agent": [], "pieces": pieces}))
    named = ("model", "version", "checksum", "device", "precision", "past_window", "sessions")
    asked = OPTIONS.query()
    content = {
        "server": {"address": one.address, **{name: info[name] for name in named}},
        "role": OPTIONS.role, "voice": OPTIONS.voice, "seed": OPTIONS.seed, "codec": "pcm16",
        "sampling": {k: float(asked[k]) for k in asked if k.endswith(("_topk", "_temperature"))},
        "seconds": len(agent_S) / 24000, "cut_ms": stats["cut_ms"],
        "frames_dropped": stats["dropped"], "frames_left_out": stats["left_out"],
    }  # fmt: skip
    settings = folder / "call-1-settings.json"
    settings.write_text(json.dumps(content))
    return settings


@pytest.fixture(scope="module")
def long(voiced: Release) -> Release:
    """The model with a window that half of holds the prompt."""
    lm = DuplexLM(replace(CONFIG, context=CONTEXT)).eval().requires_grad_(False)
    lm.load_state_dict(voiced.lm.state_dict())
    return replace(voiced, lm=lm)


@pytest.fixture(autouse=True)
def loaded(long: Release, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The model of the calls, in place of a folder; returns what it was asked for."""
    asked: list[Any] = []

    def load(model: str, **options: Any) -> Release:
        asked.append(options["precision"])
        return long

    monkeypatch.setattr(replay, "load_release", load)
    monkeypatch.setattr(live_call, "MOST_BACKLOG_FRAMES", 10**6)  # A busy machine must not drop what is compared.
    return asked


@pytest.fixture(scope="module")
def kept(long: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a call that outlasts the window, beside its recording and transcript."""
    folder = tmp_path_factory.mktemp("kept")

    async def test() -> None:
        async with live(long, past_window="pin") as one:
            await hold(one, folder)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(query, "ROLE", "")  # That of the call with which a server warms up is too long for this model.
        within(240, test())
    return folder / "call-1-settings.json"


@pytest.fixture
def settings(kept: Path, tmp_path: Path) -> Path:
    """A copy, which tests may change."""
    for path in kept.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / kept.name


def change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    server = content["server"] | changes.pop("server", {})
    path.write_text(json.dumps({**content, **changes, "server": server}))


def test_a_call_with_the_client_is_held_again(
    settings: Path, tmp_path: Path, loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tiny", "--replay", str(settings)]
    assert command([*words, "--output-wav", str(tmp_path / "again.wav")]) == 0
    assert loaded == ["fp32"]
    assert capsys.readouterr().out.startswith(f"equal: text and sound of all {FRAMES - 1} frames (5.9 s)")
    again, recorded = (soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("again.wav", "call-1.wav"))
    np.testing.assert_allclose(again, recorded[: len(again), 0], atol=2**-9)
    assert (tmp_path / "again.json").is_file() and (tmp_path / "again.png").is_file()
    (tmp_path / "call-1.wav").rename(tmp_path / "moved.wav")
    assert command([*words, "--input-wav", str(tmp_path / "moved.wav")]) == 0


def test_what_was_otherwise_makes_it_differ_and_is_named(
    settings: Path, voiced: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tiny", "--replay", str(settings)]
    change(settings, seed=8)
    assert command(words) == 1
    said = capsys.readouterr().out
    assert (
        said.startswith(f"different from frame 0 of {FRAMES - 1} on (0.00 s): ") and "nothing in the settings" in said
    )
    change(settings, seed=7, voice="ada", frames_dropped=3, server={"version": "0.0.1", "device": "cuda"})
    assert command(words) == 1
    said = capsys.readouterr().out
    for why in ("left 3 frames of the user unheard", "was cuda and is cpu", "another version, 0.0.1"):
        assert f"why that may be: {why}" in said or why in said
    change(settings, server={"checksum": "ab" * 32, "model": "other"})
    assert command(words) == 1
    assert f"held with other {'ab' * 6}, this is {voiced.name} {voiced.checksum[:12]}" in capsys.readouterr().out


def test_the_first_frame_that_differs_is_found(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny", "--replay", str(settings)]
    both_SC, rate = soundfile.read(settings.with_name("call-1.wav"), dtype="int16")
    both_SC[30 * 1920 + 7, 0] ^= 0x4000
    soundfile.write(settings.with_name("call-1.wav"), both_SC, rate)
    assert command(words) == 1
    assert "different from frame 30 of 74 on (2.40 s): the sound differs" in capsys.readouterr().out
    change(settings, codec="opus")
    assert command(words) == 0 and capsys.readouterr().out.startswith("equal: text of all 74 frames")
    transcript = settings.with_name("call-1-transcript.json")
    pieces = json.loads(transcript.read_text())["pieces"]
    gone = next(n for n, piece in enumerate(pieces) if piece["at"] >= 1)
    transcript.write_text(json.dumps({"pieces": pieces[:gone] + pieces[gone + 1 :]}))
    assert command(words) == 1
    out = capsys.readouterr().out
    assert f"different from frame {round(pieces[gone]['at'] * 12.5)} of 74" in out and "what Opus made of" in out


def test_another_past_window_differs_only_past_the_window(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(settings, server={"past_window": "forget"})
    assert command(["--model", "tiny", "--replay", str(settings)]) == 1
    first = int(capsys.readouterr().out.removeprefix("different from frame ").split()[0])
    assert CONTEXT - 52 <= first < FRAMES - 1  # The prompt has 52 frames at most, half of the window.


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"seed": "7"}, "bad-record", "seed is '7'"),
        ({"seed": -1}, "bad-record", "seed is -1"),
        ({"voice": "eve"}, "unknown-name", "ada, bob"),
        ({"voice": "../eve"}, "bad-record", "no id of a voice"),
        ({"server": {"precision": "fp8"}}, "bad-record", "server.precision is 'fp8'"),
        ({"server": {"sessions": 10**9}}, "bad-record", "server.sessions is 1000000000"),
        ({"seconds": float("nan")}, "bad-record", "seconds is nan"),
        ({"seconds": 0.01}, "no-data", "not heard for a frame"),
        ({"sampling": {"text_topk": 2.5}}, "bad-record", "text_topk is not a whole number"),
    ],
)
def test_a_damaged_settings_file_is_one_line(settings: Path, changes: dict[str, Any], code: Code, named: str) -> None:
    change(settings, **changes)
    with refused(code, named):
        command(["--model", "tiny", "--replay", str(settings)])


def test_files_that_are_missing_or_no_recording_are_named(settings: Path) -> None:
    words = ["--model", "tiny", "--replay", str(settings)]
    soundfile.write(settings.with_name("call-1.wav"), np.zeros(4000), 24000)
    with refused("bad-audio", "call-1.wav", "no stereo"):
        command(words)
    settings.with_name("call-1-transcript.json").unlink()
    with refused("not-found", "call-1-transcript.json"):
        command(words)
    other = settings.rename(settings.with_name("mine.json"))
    with refused("not-found", "mine.json", "-settings.json"):
        command([*words[:3], str(other)])


def test_two_models_have_two_checksums_in_any_precision(voiced: Release, folder: Path, tmp_path: Path) -> None:
    assert {load_release(folder, precision=p).checksum for p in ("fp32", "bf16", "fp16")} == {voiced.checksum}
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = load_file(other / "model.safetensors")
    weights["text_linear.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors")
    assert load_release(other).checksum != voiced.checksum
