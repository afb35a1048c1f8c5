"""Chatterbox, in this process and behind the real server: parts, voices, retries, the store, and unusable sound."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")
pytest.importorskip("pocketsphinx")

from data_pipelines.speech.engines import open_engine
from data_pipelines.speech.tts import cloned
from data_pipelines.speech.voices import ConsentedClip, Pool
from model.errors import Code
from tests.data_pipelines import speech_servers
from tests.data_pipelines.speech_servers import SPEAKERS, Server, check_speech, choice_of
from tests.refusals import refused

fakes, manifest, chatterbox_server, dia_server, here = speech_servers.FIXTURES


def test_long_texts_are_said_in_parts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    engine = open_engine(choice_of("chatterbox-http", request, tmp_path))
    text = "We close at nine. The shop is open today. You can call us tomorrow."
    whole = engine.speak(text, "chatterbox/anna/anna", seed=0)
    monkeypatch.setattr(cloned, "MAX_LETTERS", 30)
    parts = engine.speak(text, "chatterbox/anna/anna", seed=0)
    check_speech(parts, text.split())
    assert len(list(tmp_path.rglob("*.flac"))) == 1 + 3
    pauses = [parts.words[n + 1][1] - parts.words[n][2] for n in (3, 8)]
    assert min(pauses) >= cloned.BETWEEN_PARTS and whole.words[3][0] == "nine."


def test_the_voice_of_the_clip_decides_who_speaks(
    request: pytest.FixtureRequest, tmp_path: Path, here: None, fakes: Path
) -> None:
    engine = open_engine(choice_of("chatterbox-here", request, tmp_path))
    said = {name: engine.speak("Hello there, my friend.", f"chatterbox/{name}/{name}", seed=0) for name in SPEAKERS}
    assert len({speech.audio.tobytes() for speech in said.values()}) > 1
    voice = {v.key: v for v in engine.voices()}["chatterbox/cleo/cleo"]
    assert voice.held_out and voice.sex == "female" and voice.speaker == "cleo" and voice.licence == "CC0-1.0"


@pytest.mark.parametrize("word, code, named", [
    ("Silence", "bad-answer", "silence"),
    ("Nothing", "bad-answer", "no sound"),
    ("Broken", "bad-answer", "NaN"),
    ("Endless", "bad-answer", "s for 18 letters"),
    ("Hasty", "bad-answer", "0.1 s for 16 letters"),
    ("Loud", "bad-answer", "samples up to"),
    ("Different", "bad-answer", "'Different today"),
    ("Crash", "program-failed", "CUDA error: the device is gone"),
])  # fmt: skip
@pytest.mark.parametrize("way", ["chatterbox-http", "chatterbox-here"])
def test_an_unusable_sound_is_refused_with_its_reason(
    word: str,
    code: Code,
    named: str,
    way: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    engine = open_engine(choice_of(way, request, tmp_path))
    with refused(code, named):
        engine.speak(f"{word} today, thanks.", "chatterbox/anna/anna", seed=0)
    if word != "Different":  # That one sounds like speech, so that only the alignment notices it after it is stored.
        assert not list(tmp_path.rglob("*.flac"))


def test_what_fails_with_one_seed_may_succeed_with_the_next(
    request: pytest.FixtureRequest, tmp_path: Path, chatterbox_server: Server
) -> None:
    engine = open_engine(choice_of("chatterbox-http", request, tmp_path))
    before, text = chatterbox_server.requests(), "Sometimes it works."
    for seed in range(5):
        check_speech(engine.speak(text, "chatterbox/anna/anna", seed=seed), text.split())
    assert chatterbox_server.requests() - before > 5


def test_what_was_said_once_is_never_asked_for_again(
    request: pytest.FixtureRequest, tmp_path: Path, chatterbox_server: Server
) -> None:
    choice = choice_of("chatterbox-http", request, tmp_path)
    first = open_engine(choice).speak("Only once, please.", "chatterbox/anna/anna", seed=0)
    before = chatterbox_server.requests()
    again = open_engine(choice).speak("Only once, please.", "chatterbox/anna/anna", seed=0)
    np.testing.assert_array_equal(first.audio, again.audio)
    assert chatterbox_server.requests() == before
    open_engine(choice).speak("Only once, please.", "chatterbox/anna/anna", seed=1)
    open_engine(choice).speak("Only once, please.", "chatterbox/bob/bob", seed=0)
    open_engine(replace(choice, options=(("exaggeration", 0.7),))).speak(
        "Only once, please.", "chatterbox/anna/anna", seed=0
    )
    assert chatterbox_server.requests() == before + 3


@pytest.mark.parametrize("options, named", [
    ((("loudness", 3.0),), "option 'loudness': choose one of exaggeration, cfg_weight, temperature"),
    ((("temperature", 9.0),), "option temperature=9.0: must be 0.05 to 2.0"),
])  # fmt: skip
@pytest.mark.parametrize("way", ["chatterbox-http", "chatterbox-here"])
def test_unknown_options_are_refused(
    options: tuple[tuple[str, float], ...], named: str, way: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    choice = choice_of(way, request, tmp_path)
    with refused("bad-value", named):
        open_engine(replace(choice, options=options)).speak("Hello.", "chatterbox/bob/bob", seed=0)


def test_a_clip_that_was_replaced_is_not_spoken_with(tmp_path: Path) -> None:
    clip = ConsentedClip(
        path="a.wav", speaker="a", sex="male", accent="us", licence="x", consent="y", held_out=False, sha256="0"
    )
    (tmp_path / "a.wav").write_bytes(b"other")
    with refused("checksum", tmp_path / "a.wav", "`ppx-data voices`"):
        Pool(tmp_path, (clip,)).audio("a/a")
