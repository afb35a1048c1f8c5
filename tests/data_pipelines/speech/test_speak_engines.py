"""`ppx-data speak` with Chatterbox and Dia behind the real server: whole runs, kills, resuming, rejections; and with
fitted timing and augmentation."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")
pytest.importorskip("pocketsphinx")

import itertools

from data_pipelines import verbs
from data_pipelines.records.folder import load_dialogue
from data_pipelines.records.provenance import voice_rights
from data_pipelines.records.schema import Script, Turn, Word
from data_pipelines.sound.audio import loudness, read_audio, require_stereo_24k, to_mono_24k
from data_pipelines.speech import speak as speak_module
from data_pipelines.speech.protocols import EngineGone
from data_pipelines.speech.timing import Table, Timing
from model.errors import Code
from tests.data_pipelines import speech_servers
from tests.data_pipelines.speech_servers import ROOT, Server
from tests.refusals import refused

fakes, manifest, chatterbox_server, dia_server, here = speech_servers.FIXTURES

TURNS = (
    Turn(speaker="agent", text="Hello, this is CitySan Services. How can I help you?"),
    Turn(speaker="user", text="Hi there. What does the compost bin cost?"),
    Turn(speaker="agent", text="It costs $8/month, and pickup is on Monday morning."),
    Turn(speaker="user", text="Sorry, wait a moment.", kind="barge_in"),
    Turn(speaker="agent", text="Sure, go on."),
)


Spoken = tuple[Path, dict[str, Any]]
"""A folder of dialogues and the report of the run that wrote it."""


def script(name: str, split: Literal["train", "heldout"] = "train", *extra: Turn) -> Script:
    return Script(id=name, source="service", split=split, scenario="x", role_prompt="You work.", turns=(*TURNS, *extra))


def write(path: Path, *scripts: Script) -> Path:
    path.write_text("\n".join(s.to_json() for s in scripts), "utf-8")
    return path


def speak(scripts: Path, out: Path, *options: str) -> dict[str, Any]:
    verbs.main(["speak", "--scripts", str(scripts), "--out", str(out), "--voice-seconds", "3.2", *options])
    return dict(json.loads((out / "report.json").read_text()))


def contents(out: Path) -> dict[str, bytes]:
    kept = (p for p in out.rglob("*") if p.is_file() and ".speech" not in p.parts)
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    return write(folder / "scripts.jsonl", script("a"), script("b"), script("c", "heldout"))


@pytest.fixture(scope="module")
def cloned(
    scripts: Path, chatterbox_server: Server, manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> Spoken:
    out = tmp_path_factory.mktemp("cloned") / "out"
    return out, speak(scripts, out, "--engine", "chatterbox", "--url", chatterbox_server.url, "--voices", str(manifest))


# ---- Chatterbox
def test_chatterbox_speaks_whole_dialogues_in_the_voices_of_the_pool(cloned: Spoken) -> None:
    out, report = cloned
    assert report["done"] == 3 and report["rejected"] == [] and report["engine"] == "chatterbox"
    for name, people in (("a", {"anna", "bob"}), ("b", {"anna", "bob"}), ("c", {"cleo", "dan"})):
        dialogue = load_dialogue(out / name)
        assert {side.speaker.split("/")[1] for side in (dialogue.left, dialogue.right)} == people
        assert dialogue.licence == "CC0-1.0 AND MIT"
        assert dialogue.provenance["engine"]["name"] == "chatterbox" and "speed" not in dialogue.provenance
        terms = dialogue.provenance["cloned_voices"]
        assert {side["licence"] for side in terms.values()} == {"CC0-1.0 AND MIT"}
        assert voice_rights(dialogue.provenance, "left", dialogue.left.speaker).consent == terms["left"]["consent"]
        assert "$8/month," in [word.text for word in dialogue.left.words] or dialogue.events
        voice, rate = read_audio(out / name / "left.voice.flac")
        assert 3 <= voice.shape[1] / rate <= 3.6


def test_bytes_do_not_depend_on_workers_order_or_what_was_stored(
    cloned: Spoken, scripts: Path, chatterbox_server: Server, manifest: Path, tmp_path: Path
) -> None:
    out, _ = cloned
    backwards = reversed([Script.from_json(line, "") for line in scripts.read_text().splitlines()])
    turned = write(tmp_path / "turned.jsonl", *backwards)
    options = ("--engine", "chatterbox", "--url", chatterbox_server.url, "--voices", str(manifest))
    speak(turned, tmp_path / "two", *options, "--workers", "2", "--store", str(tmp_path / "store"))
    assert contents(tmp_path / "two") == contents(out) and not (tmp_path / "two" / ".speech").exists()
    asked = chatterbox_server.requests()
    speak(scripts, tmp_path / "three", *options, "--store", str(tmp_path / "store"))
    assert contents(tmp_path / "three") == contents(out)
    assert chatterbox_server.requests() == asked  # All of it was in the store.


def test_a_run_that_is_complete_says_so_and_asks_for_nothing(
    cloned: Spoken, scripts: Path, chatterbox_server: Server, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = cloned
    before = contents(out)
    speak(scripts, out, "--engine", "chatterbox", "--url", chatterbox_server.url, "--voices", str(manifest))
    assert "3 were there" in capsys.readouterr().out and contents(out) == before


def test_other_voices_are_other_settings(
    cloned: Spoken, scripts: Path, chatterbox_server: Server, tmp_path: Path, manifest: Path
) -> None:
    out, _ = cloned
    shutil.copytree(manifest.parent, tmp_path / "voices")
    other = tmp_path / "voices" / "voices.yaml"
    other.write_text(manifest.read_text().replace("CC0-1.0", "CC-BY-4.0"))
    with refused("other-settings", out, "engine.voices_sha256"):
        speak(scripts, out, "--engine", "chatterbox", "--url", chatterbox_server.url, "--voices", str(other))


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    cloned: Spoken, scripts: Path, chatterbox_server: Server, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--engine", "chatterbox", "--url", chatterbox_server.url, "--voices", str(manifest)]
    code = "import sys; from data_pipelines.verbs import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "speak", "--scripts", str(scripts), "--out", str(out)]
    command += ["--voice-seconds", "3.2"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for answers in (3, 9):  # This kills it in the middle of the first and of the second dialogue.
        process = subprocess.Popen([*command, *options], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 1200
        while len(list(out.glob(".speech/*/*.flac"))) < answers and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (out / "c" / "meta.json").exists()
    speak(scripts, out, *options)
    assert contents(out) == contents(cloned[0])


def test_when_the_server_dies_the_run_ends_and_goes_on_with_another(
    cloned: Spoken, scripts: Path, fakes: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    first = Server(fakes, "chatterbox", "--engine-model", str(fakes / "weights"))
    options = ["--engine", "chatterbox", "--voices", str(manifest)]
    one = speak_module.speak_one

    def dies_after_the_first(spoken: Script, *rest: Any) -> speak_module.SpokenScript:
        if spoken.id == "b":
            first.stop()
        return one(spoken, *rest)

    monkeypatch.setattr(speak_module, "speak_one", dies_after_the_first)
    with refused("unreachable", first.url, "6 tries", "start it and run this again", error=EngineGone):
        speak(scripts, tmp_path / "out", *options, "--url", first.url)
    assert (tmp_path / "out" / "a" / "meta.json").is_file() and not (tmp_path / "out" / "b").exists()
    monkeypatch.undo()
    second = Server(fakes, "chatterbox", "--engine-model", str(fakes / "weights"))
    try:
        report = speak(scripts, tmp_path / "out", *options, "--url", second.url)
    finally:
        second.stop()
    assert report["done"] == 3 and contents(tmp_path / "out") == contents(cloned[0])


def test_the_voice_prompt_may_be_the_clip_itself(
    cloned: Spoken, scripts: Path, chatterbox_server: Server, manifest: Path, tmp_path: Path
) -> None:
    options = ("--engine", "chatterbox", "--url", chatterbox_server.url, "--voices", str(manifest))
    store = str(cloned[0] / ".speech")
    speak(scripts, tmp_path / "out", *options, "--voice-prompt-from", "clip", "--store", store)
    for name in "abc":
        dialogue = load_dialogue(tmp_path / "out" / name)
        clip, rate = read_audio(manifest.parent / f"{dialogue.left.speaker.split('/')[1]}.wav")
        prompt, _ = read_audio(tmp_path / "out" / name / "left.voice.flac")
        clip_24k = to_mono_24k(clip, rate)
        assert prompt.shape[1] == len(clip_24k) and loudness(prompt[0], 24000) == pytest.approx(-24, abs=0.1)
        assert np.corrcoef(prompt[0], clip_24k)[0, 1] > 0.999
        assert load_dialogue(cloned[0] / name).left.words == dialogue.left.words


def test_one_silent_turn_rejects_one_script_with_its_reason(
    chatterbox_server: Server, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = script("bad", "train", Turn(speaker="user", text="Silence fell over the room."))
    mixed = write(tmp_path / "mixed.jsonl", script("good"), bad)
    report = speak(mixed, tmp_path / "out", "--engine", "chatterbox", "--url", chatterbox_server.url, "--voices",
                   str(manifest))  # fmt: skip
    assert report["done"] == 1 and report["rejected"] == [{"id": "bad", "reason": "the engine returned silence"}]
    assert not (tmp_path / "out" / "bad").exists()


# ---- Dia
def test_dia_speaks_both_sides_of_a_dialogue_on_their_channels(
    scripts: Path, dia_server: Server, tmp_path: Path
) -> None:
    report = speak(scripts, tmp_path / "out", "--engine", "dia", "--url", dia_server.url)
    assert report["done"] == 3 and report["rejected"] == []
    dialogue = load_dialogue(tmp_path / "out" / "a")
    assert dialogue.left.speaker == "dia/a-agent" and dialogue.right.speaker == "dia/a-user"
    assert dialogue.licence == "Apache-2.0"
    audio_CS = require_stereo_24k(tmp_path / "out" / "a" / "audio.flac")
    for channel, side in ((0, dialogue.left), (1, dialogue.right)):
        inside = np.zeros(audio_CS.shape[1], bool)
        for word in side.words:
            inside[max(0, round((word.start - 0.1) * 24000)) : round((word.end + 0.15) * 24000)] = True
        assert np.square(audio_CS[channel, inside]).mean() > 100 * np.square(audio_CS[channel, ~inside]).mean()
    # The stand-in's first voice is a woman's (espeak f2, 180 Hz and more), the second a man's.
    assert pitch(audio_CS[0], dialogue.left.words) > 1.3 * pitch(audio_CS[1], dialogue.right.words)
    voice, _rate = read_audio(tmp_path / "out" / "a" / "left.voice.flac")
    assert pitch(voice[0], ()) == pytest.approx(pitch(audio_CS[0], dialogue.left.words), rel=0.15)


def pitch(channel: np.ndarray, words: Sequence[Word]) -> float:
    """Fundamental by autocorrelation, median over frames of 40 ms within the words."""
    spans = [(w.start, w.end) for w in words] or [(0.0, len(channel) / 24000)]
    found = []
    for start, end in spans:
        for at in range(round(start * 24000), round(end * 24000) - 960, 480):
            frame = channel[at : at + 960].astype(np.float64)
            if np.abs(frame).max() > 0.05:
                fit = np.correlate(frame, frame, "full")[959:]
                lag = 60 + int(np.argmax(fit[60:340]))
                if fit[lag] > 0.5 * fit[0]:
                    found.append(24000 / lag)
    return float(np.median(found))


def test_babble_needs_an_engine_with_voices(scripts: Path, dia_server: Server, tmp_path: Path) -> None:
    with refused("bad-combination", "dia", "babble", "--augment"):
        speak(scripts, tmp_path / "out", "--engine", "dia", "--url", dia_server.url, "--augment", "room")
    assert not (tmp_path / "out").exists()


# ---- timing and augmentation, with eSpeak NG itself
def test_a_fitted_timing_decides_gaps_pauses_and_backchannels(scripts: Path, tmp_path: Path) -> None:
    slow = replace(Timing(), name="slow", gap=Table.uniform(1.0, 1.0), user_silence_share=0.0, pause_rate=0.3,
                   pause=Table.uniform(0.7, 0.7), backchannel_rate=0.5)  # fmt: skip
    (tmp_path / "slow.json").write_text(json.dumps({"timing": asdict(slow)}))
    long = Turn(speaker="user", text="I have been waiting for so long now, and nobody has come to take away any of it.")
    some = write(tmp_path / "some.jsonl", script("a", "train", long), script("b", "train", long))
    speak(some, tmp_path / "out", "--engine", "espeak", "--timing", str(tmp_path / "slow.json"))
    kinds, pauses = set(), []
    for name in "ab":
        dialogue = load_dialogue(tmp_path / "out" / name)
        assert dialogue.provenance["timing"] == {"name": "slow", "sha256": slow.sha256}
        first = next(w for w in dialogue.left.words if w.text == "you?")
        answer = next(w for w in dialogue.right.words if w.text == "Hi")
        assert answer.start - first.end == pytest.approx(1.0, abs=0.12)  # 1 s and the silence that engines leave
        kinds |= {(event.kind, event.side) for event in dialogue.events}
        said = dialogue.right.words
        pauses += [b.start - a.end for a, b in itertools.pairwise(said)]
    assert ("backchannel", "left") in kinds
    assert sum(abs(pause - 0.7) < 0.02 for pause in pauses) >= 1
    with refused("other-settings", tmp_path / "out", "options.timing"):
        speak(some, tmp_path / "out", "--engine", "espeak")


def test_augmentation_changes_the_users_channel_alone_and_is_recorded(scripts: Path, tmp_path: Path) -> None:
    speak(scripts, tmp_path / "clean", "--engine", "espeak")
    (tmp_path / "all.yaml").write_text(
        "noise: {share: 1, kinds: [babble], snr_db: [15, 15]}\ncodec: {share: 1, kinds: [mulaw]}\n"
    )
    speak(scripts, tmp_path / "noisy", "--engine", "espeak", "--augment", str(tmp_path / "all.yaml"))
    for name in "abc":
        clean, noisy = (load_dialogue(tmp_path / kind / name) for kind in ("clean", "noisy"))
        assert clean.left == noisy.left and clean.right == noisy.right and clean.gates == noisy.gates
        assert "augmentation" not in clean.provenance
        record = noisy.provenance["augmentation"]
        assert (
            record["settings"] == "all" and record["noise"]["kind"] == "babble" and record["codec"] == {"kind": "mulaw"}
        )
        a_CS, b_CS = (require_stereo_24k(tmp_path / kind / name / "audio.flac") for kind in ("clean", "noisy"))
        np.testing.assert_array_equal(a_CS[0], b_CS[0])
        assert not np.array_equal(a_CS[1], b_CS[1])
        size = 1 << (2 * a_CS.shape[1]).bit_length()
        cross = np.fft.irfft(np.fft.rfft(b_CS[1], size) * np.conj(np.fft.rfft(a_CS[1], size)), size)
        assert min(int(np.argmax(cross)), size - int(np.argmax(cross))) <= 3
    speak(scripts, tmp_path / "again", "--engine", "espeak", "--augment", str(tmp_path / "all.yaml"), "--workers", "2")
    assert contents(tmp_path / "again") == contents(tmp_path / "noisy")
    with refused("other-settings", tmp_path / "noisy", "augmentation"):
        speak(scripts, tmp_path / "noisy", "--engine", "espeak")


@pytest.mark.parametrize("options, code, named", [
    (["--engine", "espeak", "--store", "x"], "bad-combination", ["--store", "--engine espeak"]),
    (["--engine", "espeak", "--engine-option", "a=1"], "bad-combination", ["--engine-option", "--engine espeak"]),
    (["--engine", "dia", "--engine-option", "loud"], "bad-value", ["--engine-option 'loud'", "KEY=NUMBER"]),
    (["--engine", "chatterbox"], "missing-option", ["--voices"]),
    (["--engine", "espeak", "--voice-prompt-from", "clip"], "bad-combination", ["--engine espeak", "imitates no clip"]),
    (["--engine", "espeak", "--timing", "no.json"], "not-found", ["--timing no.json"]),
    (["--engine", "espeak", "--augment", "studio"], "not-found", ["--augment studio"]),
])  # fmt: skip
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    options: list[str], code: Code, named: list[str], scripts: Path, tmp_path: Path
) -> None:
    with refused(code, *named):
        speak(scripts, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
