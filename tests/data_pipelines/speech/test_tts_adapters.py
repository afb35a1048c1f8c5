"""The contract of speech engines, on every adapter alike: espeak and Kokoro for real; Chatterbox and Dia with packages
that stand for them, in this process and behind the real server. Word times, choices, and checks of what comes back."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")
pytest.importorskip("pocketsphinx")

from data_pipelines.sound.audio import Audio
from data_pipelines.speech import engines
from data_pipelines.speech.engines import EngineChoice, open_engine
from data_pipelines.speech.protocols import ConversationEngine, Engine, EngineGone
from data_pipelines.speech.tts.backend import StoredBackend, checked
from data_pipelines.speech.tts.timed import timed_speech
from data_pipelines.text.spoken import expand
from model.errors import Code
from tests.data_pipelines import speech_servers
from tests.data_pipelines.speech_servers import LINES, check_speech, choice_of
from tests.refusals import refused

fakes, manifest, chatterbox_server, dia_server, here = speech_servers.FIXTURES

TEXT = "It costs $8/month, and you can pick it up on April 12th."


@pytest.fixture(params=["espeak", pytest.param("kokoro", marks=pytest.mark.slow), "chatterbox-http", "chatterbox-here"])
def by_turns(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "kokoro" and not engines.is_kokoro_fetched():
        pytest.skip("Kokoro is not fetched: run `ppx-data fetch kokoro`")
    return open_engine(choice_of(request.param, request, tmp_path))


# ---- the contract
@pytest.fixture(params=["dia-http", "dia-here"])
def at_once(request: pytest.FixtureRequest, tmp_path: Path) -> ConversationEngine:
    return open_engine(choice_of(request.param, request, tmp_path))


def check_identity(engine: Engine | ConversationEngine) -> None:
    identity = engine.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert {"name", "version", "licence", "output_licence", "deterministic"} <= set(identity)
    assert identity["name"] == engine.name


def test_an_engine_of_turns_keeps_the_contract(by_turns: Engine) -> None:
    check_identity(by_turns)
    voices = by_turns.voices()
    assert len({voice.key for voice in voices}) == len(voices) >= 4
    assert {voice.held_out for voice in voices} == {True, False}
    assert all(voice.key.startswith(f"{by_turns.name}/") for voice in voices)
    speech = by_turns.speak(TEXT, voices[0].key, seed=1)
    check_speech(speech, TEXT.split())
    again = by_turns.speak(TEXT, voices[0].key, seed=1)
    np.testing.assert_array_equal(speech.audio, again.audio)
    assert speech.words == again.words
    with refused("unknown-name", "nobody"):
        by_turns.speak(TEXT, f"{by_turns.name}/nobody", seed=1)
    with refused("bad-value", "'...'"):
        by_turns.speak("...", voices[0].key, seed=1)


def test_an_engine_of_dialogues_keeps_the_contract(at_once: ConversationEngine) -> None:
    check_identity(at_once)
    spoken = at_once.converse(LINES, seed=3)
    assert len(spoken) == len(LINES)
    for (_, text), speech in zip(LINES, spoken, strict=True):
        check_speech(speech, text.split())
        assert speech.rate == 44100 and speech.audio[0] == 0 and speech.audio[-1] == 0
    again = at_once.converse(LINES, seed=3)
    for a, b in zip(spoken, again, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)


# ---- word times
def test_word_times_from_alignment_agree_with_the_synthesizers_own() -> None:
    """eSpeak NG knows to the sample when a word starts."""
    espeak = open_engine("espeak")
    texts = ("I would like to order two large pizzas for tonight please.", "Could you deliver it before seven?",
             "My brother repairs old bicycles and gives them away when he is done.",
             "It costs $8/month, and pickup is April 12th.", "Your code is AB-1234, okay?")  # fmt: skip
    errors = []
    for voice in ("espeak/en-us+m1", "espeak/en-us+m2", "espeak/en-us+f2", "espeak/en-us+f5"):
        for text in texts:
            truth = espeak.speak(text, voice, seed=0)
            found = timed_speech(truth.audio, truth.rate, expand(text))
            assert [word for word, _, _ in found.words] == text.split()
            shift = (len(truth.audio) - len(found.audio)) / truth.rate  # what was trimmed at the start
            assert shift < 0.05
            errors += [abs(a - b) for (_, a, _), (_, b, _) in zip(found.words, truth.words, strict=True)]
    assert len(errors) > 150 and np.mean(errors) < 0.04 and np.quantile(errors, 0.95) < 0.1


def test_a_hum_alone_is_all_of_the_sound() -> None:
    truth = open_engine("espeak").speak("Mm-hm.", "espeak/en-us+m3", seed=0)
    ((text, start, end),) = timed_speech(truth.audio, truth.rate, expand("Mm-hm.")).words
    assert text == "Mm-hm." and start < 0.06 and end == pytest.approx(truth.words[-1][2], abs=0.05)


# ---- choices
@pytest.mark.parametrize("given, code, named", [
    ({"name": "festival"}, "unknown-name", ["'festival'", "kokoro, espeak, chatterbox, dia"]),
    ({"name": "espeak", "url": "http://x"}, "bad-combination", ["--url", "--engine espeak"]),
    ({"name": "kokoro", "device": "cuda"}, "bad-combination", ["--device", "--engine kokoro"]),
    ({"name": "dia", "voices": Path("v")}, "bad-combination", ["--voices", "--engine dia"]),
    ({"name": "chatterbox"}, "missing-option", ["--engine chatterbox", "--voices"]),
    ({"name": "dia", "url": "http://x", "model": "m"}, "bad-combination", ["--engine-model and --device", "--url"]),
])  # fmt: skip
def test_choices_without_effect_are_refused(given: dict[str, Any], code: Code, named: list[str]) -> None:
    with refused(code, *named):
        EngineChoice(**given)


def test_an_engine_that_is_not_installed_says_how_to_get_it(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chatterbox.tts", None)
    with refused(
        "missing-package", "install chatterbox-tts here", "scripts/tts_server.py chatterbox", error=EngineGone
    ):
        open_engine(EngineChoice(name="chatterbox", voices=manifest))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused("missing-package", "install 'ppx-train[dia]' here", error=EngineGone):
        open_engine(EngineChoice(name="dia"))


def test_an_engine_whose_weights_are_not_there_is_refused(manifest: Path, here: None) -> None:
    with refused("missing-engine", "chatterbox", "the hub cannot be reached", "--engine-model DIR", error=EngineGone):
        open_engine(EngineChoice(name="chatterbox", voices=manifest))


def test_weights_in_a_folder_that_is_not_there_are_never_looked_for_on_a_hub() -> None:
    with refused("not-found", "--engine-model no/such", error=EngineGone):
        open_engine(EngineChoice(name="dia", model="no/such"))


# ---- checks of what an engine returns
def test_a_peak_above_one_is_turned_down_and_good_sound_stays() -> None:
    x = np.sin(np.arange(16000) / 9).astype(np.float32)
    np.testing.assert_array_equal(checked(0.5 * x, 16000, 15), 0.5 * x)
    assert np.abs(checked(1.5 * x[None], 16000, 15)).max() == pytest.approx(1)
    for bad, fault in ((np.stack([x, x]), "2 dimensions"), (x[:0], "no sound"), (x * np.float32(1e-4), "silence")):
        with refused("bad-answer", fault):
            checked(bad, 16000, 15)
    with refused("bad-answer", "1.0 s for 150 letters"):
        checked(x, 16000, 150)


def test_a_stored_sound_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tone:
        def identity(self) -> dict[str, Any]:
            return {"name": "tone"}

        def say(self, text: str, reference: bytes, seed: int, options: dict[str, float]) -> tuple[Audio, int]:
            return (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32), 16000

    stored = StoredBackend(Tone(), tmp_path)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        stored.say("hello", b"", 0, {}, letters=10)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    monkeypatch.undo()
    first, rate = stored.say("hello", b"", 0, {}, letters=10)
    again, _ = stored.say("hello", b"", 0, {}, letters=10)
    np.testing.assert_array_equal(first, again)
    assert rate == 16000 and first.dtype == np.float32
