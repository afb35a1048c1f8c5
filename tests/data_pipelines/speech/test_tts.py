"""The speech engines: eSpeak NG for real, Kokoro for real where its weights were fetched (slow)."""

import functools
import json
import sys

import numpy as np
import pytest

from data_pipelines.speech import engines
from data_pipelines.speech.protocols import Engine, Speech, trim_silence, trim_word_ends
from data_pipelines.speech.tts.espeak import CLAUSE_END, WORD, word_times
from data_pipelines.text.spoken import expand
from tests.refusals import refused

TEXT = "One of the agents will call you, at 9:30 PM. The price is $8/month for AB-1234. I don't know what to say!"
WRITTEN = TEXT.split()
RATE = 24000


def beeps(*spans: tuple[float, float], seconds: float) -> np.ndarray:
    """A 300 Hz tone that sounds only in the given spans."""
    t = np.arange(round(seconds * RATE)) / RATE
    on = np.zeros_like(t)
    for start, end in spans:
        on[(t >= start) & (t < end)] = 1
    return (0.5 * on * np.sin(2 * np.pi * 300 * t)).astype(np.float32)


def onset_after_pauses(speech: Speech, pause: float = 0.08) -> list[float]:
    """Times at which the level rises above 2 % of the peak after at least `pause` seconds below it."""
    hop = speech.rate // 200
    loud = np.abs(speech.audio[: len(speech.audio) // hop * hop]).reshape(-1, hop).max(axis=1)
    loud = loud > 0.02 * np.abs(speech.audio).max()
    starts = np.flatnonzero(loud[1:] & ~loud[:-1]) + 1
    quiet = round(pause * 200)
    return [int(start) / 200 for start in starts if start >= quiet and not loud[start - quiet : start].any()]


def assert_words_fit(speech: Speech, written: list[str]) -> None:
    assert [text for text, _, _ in speech.words] == written
    last = -1.0
    for _, start, end in speech.words:
        assert last < start < end <= speech.seconds
        last = start


# ---- repairs, on signals whose result is known
def test_a_word_end_in_a_pause_moves_back_to_the_sound() -> None:
    audio = beeps((0.5, 0.8), (1.5, 1.8), seconds=2)
    trimmed = trim_word_ends([("a", 0.5, 1.4), ("b", 1.5, 1.8)], audio, RATE)
    assert trimmed[0][2] == pytest.approx(0.81, abs=0.011) and trimmed[1][1:] == (1.5, pytest.approx(1.8, abs=0.001))


def test_silence_around_speech_is_cut_and_the_words_move_with_it() -> None:
    speech = Speech(audio=beeps((1.0, 1.5), seconds=3), rate=RATE, words=(("a", 1.0, 1.5),))
    cut = trim_silence(speech, before=0.03, after=0.06)
    assert cut.seconds == pytest.approx(0.59, abs=0.001)
    assert cut.words[0][1:] == (pytest.approx(0.03, abs=1e-4), pytest.approx(0.53, abs=1e-4))
    assert cut.audio[0] == 0 and cut.audio[-1] == 0


def test_silence_is_refused() -> None:
    with refused("bad-answer", "silence"):
        trim_silence(Speech(audio=np.zeros(RATE, np.float32), rate=RATE, words=(("a", 0.0, 1.0),)))


# ---- eSpeak's events
def test_words_of_one_event_share_its_time_by_their_letters() -> None:
    #        One    of     the      agents
    spans = [(0, 3), (4, 6), (7, 10), (11, 17)]
    events = [(WORD, 0, 0), (WORD, 4, 3000), (WORD, 11, 8000), (CLAUSE_END, 18, 12000)]
    assert word_times(spans, events, 15000) == [(0, 3000), (3000, 5000), (5000, 8000), (8000, 12000)]


def test_several_events_in_one_word_count_as_one() -> None:
    spans = [(0, 2), (3, 6), (7, 9)]  # "at", "P M", "it"
    events = [(WORD, 0, 0), (WORD, 3, 100), (WORD, 5, 250), (CLAUSE_END, 6, 300), (WORD, 7, 400)]
    assert word_times(spans, events, 500) == [(0, 100), (100, 300), (400, 500)]


def test_a_first_word_without_an_event_starts_with_the_audio() -> None:
    assert word_times([(0, 3), (4, 7)], [(WORD, 4, 100)], 300) == [(0, 100), (100, 300)]


# ---- eSpeak NG
@pytest.fixture(scope="module")
def espeak() -> Engine:
    pytest.importorskip("espeakng_loader")
    return engines.open_engine("espeak")


def test_espeak_times_every_written_word(espeak: Engine) -> None:
    for voice in espeak.voices():
        speech = espeak.speak(TEXT, voice.key, seed=0)
        assert_words_fit(speech, WRITTEN)
        assert speech.audio.dtype == np.float32 and 0.05 < np.abs(speech.audio).max() <= 1


def test_espeak_words_start_where_the_sound_starts(espeak: Engine) -> None:
    speech = espeak.speak("Table. Better. Dinner. Garden. Paper. Kitchen.", "espeak/en-us+m3", seed=0)
    onsets = [0.0, *onset_after_pauses(speech)]
    starts = [start for _, start, _ in speech.words]
    assert len(onsets) >= 6
    # A stop such as the first sound of "table" begins with its silent closure, hence not to the sample.
    for start in starts:
        assert min(abs(start - onset) for onset in onsets) < 0.06


def test_espeak_says_longer_things_longer_and_faster_things_shorter(espeak: Engine) -> None:
    def say(text: str, speed: float = 1.0) -> float:
        return espeak.speak(text, "espeak/en-us+m3", seed=0, speed=speed).seconds

    assert say("$8/month") > 2 * say("eight")
    assert say(TEXT, 1.25) < 0.88 * say(TEXT)


def test_espeak_gives_the_same_bytes_whatever_it_said_before(espeak: Engine) -> None:
    for voice in ("espeak/en-us+m3", "espeak/en-us+m7", "espeak/en-gb-x-rp+f2"):
        first = espeak.speak("It is in the box.", voice, seed=5)
        espeak.speak("Something else, said in between.", "espeak/en-us+f1", seed=1)
        again = engines.open_engine("espeak").speak("It is in the box.", voice, seed=5)
        assert first.words == again.words
        np.testing.assert_array_equal(first.audio, again.audio)


def test_espeak_gives_the_same_bytes_beside_phonemizer(espeak: Engine) -> None:
    pytest.importorskip("phonemizer")
    from data_pipelines.speech.tts.phonemes import _espeak_backend

    first = espeak.speak("It is in the box.", "espeak/en-us+m3", seed=5)
    _espeak_backend("en-us").phonemize(["box"])
    for _ in range(3):
        np.testing.assert_array_equal(first.audio, espeak.speak("It is in the box.", "espeak/en-us+m3", seed=5).audio)


def test_espeak_holds_out_two_women_and_two_men(espeak: Engine) -> None:
    held = [voice for voice in espeak.voices() if voice.held_out]
    assert sorted(voice.sex for voice in held) == ["female", "female", "male", "male"]
    assert len({voice.key for voice in espeak.voices()}) == len(espeak.voices()) >= 12


def test_espeak_refuses_unknown_voices_and_empty_texts(espeak: Engine) -> None:
    with refused("unknown-name", "espeak/nobody", "espeak/en-us+m3"):
        espeak.speak("Hello.", "espeak/nobody", seed=0)
    with refused("bad-value", "'...'"):
        espeak.speak("...", "espeak/en-us+m3", seed=0)


def test_the_identity_of_an_engine_goes_into_json(espeak: Engine) -> None:
    identity = espeak.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["name"] == "espeak" and identity["version"].startswith("eSpeak NG 1.") and identity["deterministic"]


# ---- phonemes and phrases of Kokoro
def test_long_texts_are_cut_at_sentence_ends_then_commas_then_words() -> None:
    from data_pipelines.speech.tts.kokoro import split_phrases

    words = expand("aa aa. aa aa, aa aa")
    sizes = [10] * 6
    assert split_phrases(words, sizes, limit=100) == [slice(0, 6)]
    assert split_phrases(words, sizes, limit=50) == [slice(0, 2), slice(2, 6)]
    assert split_phrases(words[2:], sizes[2:], limit=40) == [slice(0, 2), slice(2, 4)]
    assert split_phrases(words[4:], sizes[4:], limit=12) == [slice(0, 1), slice(1, 2)]
    with refused("too-long", "'aa'"):
        split_phrases(words, sizes, limit=8)


@pytest.fixture(scope="module")
def symbols() -> frozenset[str]:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("phonemizer")
    if not engines.is_kokoro_fetched():
        pytest.skip("Kokoro is not fetched: run `ppx-data fetch kokoro`")
    return frozenset(json.loads((engines.kokoro_folder() / "symbols.json").read_text("utf-8"))["vocab"])


def test_weak_words_suffixes_and_letters_have_their_sounds(symbols: frozenset[str]) -> None:
    from data_pipelines.speech.tts.phonemes import Phonemes

    us = Phonemes("us", symbols, engines.kokoro_folder() / "lexicons")
    # The expected sounds are the IPA of a learner's dictionary in Kokoro's symbols, whose capitals are diphthongs.
    expected = {
        "a": "\u0250",
        "A": "\u02c8A",
        "lived": "l\u02c8Ivd",
        "boxes": "b\u02c8\u0251ks\u1d7bz",
        "cats": "k\u02c8\u00e6ts",
        "stopped": "st\u02c8\u0251pt",
        "making": "m\u02c8Ak\u026a\u014b",
        "D's": "d\u02c8iz",
        "wishes": "w\u02c8\u026a\u0283\u1d7bz",
        "customer's": "k\u02c8\u028cst\u0259m\u0259\u0279z",
        "customers'": "k\u02c8\u028cst\u0259m\u0259\u0279z",
        "needed": "n\u02c8id\u1d7bd",
    }
    assert {word: us.of(word) for word in expected} == expected
    assert us.words(["the", "apple"])[0] == "\u00f0i" and us.words(["the", "table"])[0] == "\u00f0\u0259"


@pytest.mark.parametrize("accent", ["us", "gb"])
def test_invented_names_are_pronounced_with_known_symbols_only(symbols: frozenset[str], accent: str) -> None:
    from data_pipelines.speech.tts.phonemes import Phonemes

    lexicon = Phonemes(accent, symbols, engines.kokoro_folder() / "lexicons")
    for name in ("Ayelen", "Lucero", "Zxqvor", "shakshuka", "Br\u00fbl\u00e9e", "Nguyen's"):
        sounds = lexicon.of(name)
        assert len(sounds) >= 3 and set(sounds) <= symbols


# ---- Kokoro
@pytest.fixture(scope="module")
def kokoro() -> Engine:
    pytest.importorskip("onnxruntime")
    if not engines.is_kokoro_fetched():
        pytest.skip("Kokoro is not fetched: run `ppx-data fetch kokoro`")
    return engines.open_engine("kokoro")


@pytest.mark.slow
def test_kokoro_times_every_written_word(kokoro: Engine) -> None:
    for voice in ("kokoro/af_heart", "kokoro/bm_george"):
        speech = kokoro.speak(TEXT, voice, seed=0)
        assert speech.rate == 24000 and np.abs(speech.audio).max() <= 1
        assert_words_fit(speech, WRITTEN)


@pytest.mark.slow
def test_kokoro_words_after_a_pause_start_where_the_sound_starts(kokoro: Engine) -> None:
    text = "My dinner was cold, but the garden is nice. Mother is here; does the window open? Yellow is nice. Get it."
    speech = kokoro.speak(text, "kokoro/am_michael", seed=0)
    onsets = onset_after_pauses(speech, pause=0.1)
    misses = [min(abs(start - onset) for _, start, _ in speech.words) for onset in onsets]
    assert len(onsets) >= 3 and max(misses) < 0.06


@pytest.mark.slow
def test_kokoro_is_deterministic_and_joins_the_parts_of_long_texts(
    kokoro: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines.speech.tts import kokoro as module

    text = "We close at nine. The shop is open today."
    whole = kokoro.speak(text, "kokoro/af_sky", seed=0)
    np.testing.assert_array_equal(whole.audio, kokoro.speak(text, "kokoro/af_sky", seed=1).audio)
    monkeypatch.setattr(module, "split_phrases", functools.partial(module.split_phrases, limit=25))
    parts = kokoro.speak(text, "kokoro/af_sky", seed=0)
    assert_words_fit(parts, text.split())
    assert parts.seconds > whole.seconds  # Each part has its own silence around it.
    assert onset_after_pauses(parts)[-1] == pytest.approx(parts.words[4][1], abs=0.06)


@pytest.mark.slow
def test_kokoro_holds_out_the_four_voices_of_the_split(kokoro: Engine) -> None:
    held = {voice.key for voice in kokoro.voices() if voice.held_out}
    assert held == {"kokoro/bf_emma", "kokoro/af_kore", "kokoro/am_puck", "kokoro/bm_george"}
    assert len(kokoro.voices()) == 28


def test_importing_the_pipeline_needs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnx", "espeakng_loader", "phonemizer", "num2words", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [n for n in sys.modules if n.startswith("data_pipelines")]:
        monkeypatch.delitem(sys.modules, name)
    import data_pipelines.speech.speak
    import data_pipelines.speech.tts.kokoro  # noqa: F401
