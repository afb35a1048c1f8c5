"""Forced alignment against exact times of synthetic speech, and its refusals."""

import numpy as np
import pytest

from data_pipelines.listening.align import Aligner, Alignment, after_pauses, pronounce, spoken_parts
from data_pipelines.recordings.fisher.sphere import telephone
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import to_rate
from data_pipelines.speech.protocols import Speech
from tests.refusals import refused


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    pytest.importorskip("pocketsphinx")
    return Aligner()


def test_words_are_split_as_they_are_said() -> None:
    known = {"uh-huh", "old", "fashioned", "it's", "'cause"}.__contains__
    assert spoken_parts("Old-fashioned,", known) == ["old", "fashioned"]
    assert spoken_parts("uh-huh.", known) == ["uh-huh"]
    assert spoken_parts("It\u2019s", known) == ["it's"]
    assert spoken_parts("T.V.,", known) == ["t.", "v."]
    assert spoken_parts("t._v.", known) == ["t.", "v."]
    assert spoken_parts('"Wow!"', known) == ["wow"]
    for bad in ("42", "-", "$8"):
        with refused("bad-transcript", repr(bad), "spell it out"):
            spoken_parts(bad, known)


def test_words_outside_the_dictionary_get_a_pronunciation() -> None:
    known = {"agent": "EY JH AH N T", "box": "B AA K S", "wait": "W EY T"}
    assert pronounce("agent's", known.get) == "EY JH AH N T Z".split()
    assert pronounce("box's", known.get) == "B AA K S IH Z".split()
    assert pronounce("waited", known.get) == "W EY T IH D".split()
    assert pronounce("v.", known.get) == ["V", "IY"]
    assert pronounce("mm-hmm".replace("-", ""), known.get) == ["M", "HH", "M"]
    assert pronounce("nell", known.get) == ["N", "EH", "L"]


def test_silence_noise_and_no_words_are_rejected(aligner: Aligner) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 16000).astype(np.float32)
    for audio in (np.zeros(16000, np.float32), noise, noise[:100]):
        assert aligner.align(audio, 8000, ["please", "hold", "the", "line"]) is None
    assert aligner.align(noise, 8000, []) is None


SENTENCES = [
    "One big agent will call you back before Friday evening about your contract",
    "Please tell Malenka that seven boxes came late and two broke badly",
    "We never close before midnight during summer months",
    "My brother bought yellow paint because green looked terrible",
]


@pytest.fixture(scope="module")
def spoken() -> list[Speech]:
    """Synthetic speech with the exact positions of its words, by telephone as Fisher is."""
    pytest.importorskip("espeakng_loader")
    from data_pipelines.speech.tts.espeak import EspeakEngine

    engine = EspeakEngine()
    voices = ("espeak/en-us+m3", "espeak/en-us+f2")
    heard = []
    for speech in [engine.speak(text, voice, seed=0) for voice in voices for text in SENTENCES]:
        line = telephone(to_rate(speech.audio, speech.rate, 8000)[:, None])[:, 0]
        heard.append(Speech(audio=line, rate=8000, words=speech.words))
    return heard


def test_word_starts_are_within_a_frame_of_the_truth_on_the_telephone(aligner: Aligner, spoken: list[Speech]) -> None:
    errors = []
    for speech in spoken:
        found = aligner.align(speech.audio, speech.rate, [word for word, _, _ in speech.words])
        if found is None:
            continue
        assert [w.text for w in found.words] == [word for word, _, _ in speech.words]
        errors += [word.start - start for word, (_, start, _) in zip(found.words, speech.words, strict=True)]
    assert len(errors) >= 65  # one of eight sentences may be rejected
    figures = (np.mean(np.abs(errors)), np.quantile(np.abs(errors), 0.95), abs(np.mean(errors)))
    print("MAE, p95, |bias| in ms:", [round(1000 * float(x), 1) for x in figures])
    assert figures[0] <= 0.040 and figures[1] <= 0.100 and figures[2] <= 0.025


def test_a_pause_at_the_start_of_a_word_is_taken_from_it_and_a_short_closure_is_not() -> None:
    sound, silence = np.full(2400, 0.1, np.float32), np.zeros(2400, np.float32)
    audio = np.concatenate((sound, silence, sound, silence[:800], sound))  # at 8 kHz
    words = [Word(text=text, start=a, end=b) for text, a, b in (("a", 0.0, 0.3), ("b", 0.3, 0.9), ("c", 0.9, 1.3))]
    assert [word.start for word in after_pauses(words, audio, 8000)] == [0.0, 0.59, 0.9]
    assert [word.end for word in after_pauses(words, audio, 8000)] == [0.3, 0.9, 1.3]
    noise = audio + np.random.default_rng(0).normal(0, 0.05, len(audio)).astype(np.float32)
    assert after_pauses(words, noise, 8000) == words
    assert after_pauses(words, np.zeros_like(audio), 8000) == words


def test_the_text_of_another_sentence_is_rejected(aligner: Aligner, spoken: list[Speech]) -> None:
    for speech, other in zip(spoken[:4], [*spoken[1:4], spoken[0]], strict=True):
        assert aligner.align(speech.audio, speech.rate, [word for word, _, _ in other.words]) is None


def test_the_result_does_not_depend_on_what_was_aligned_before(aligner: Aligner, spoken: list[Speech]) -> None:
    def align(with_aligner: Aligner, speech: Speech) -> Alignment | None:
        return with_aligner.align(speech.audio, speech.rate, [word for word, _, _ in speech.words])

    alone = [align(Aligner(), speech) for speech in spoken]
    assert alone.count(None) <= 1
    assert alone == [align(aligner, speech) for speech in reversed(spoken)][::-1]


def test_nothing_to_hear_fits_no_text_and_spoils_nothing(aligner: Aligner, spoken: list[Speech]) -> None:
    assert aligner.align(np.zeros(0, np.float32), 8000, ["hello"]) is None
    speech = spoken[0]
    assert aligner.align(speech.audio, speech.rate, [word for word, _, _ in speech.words]) is not None
