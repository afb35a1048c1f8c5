"""The faults of agents, on conversations made by hand and on synthetic speech through the codec."""

import numpy as np
import pytest
import torch

from data_pipelines.sound.audio import to_mono_24k
from model.mimi.files import load_mimi
from ppx_train.inference.loops import longest_code_loop, repeated_phrase
from ppx_train.inference.offline import AgentSide
from ppx_train.inference.sound_faults import flatness, longest_steady
from ppx_train.inference.speaking import levels, speaking, stretches
from ppx_train.inference.timeline import AgentWord
from ppx_train.inference.verdicts import NAMES, judge
from tests.paths import ROOT
from tests.ppx_train.inference.scenes import Audio, placed, scene, syllables

RNG = np.random.default_rng(0)
HISS = (0.1 * RNG.standard_normal(20 * 24000)).astype(np.float32)
TONE = (0.2 * np.sin(2 * np.pi * 440 * np.arange(20 * 24000) / 24000)).astype(np.float32)


def failed(made: tuple[AgentSide, list[AgentWord]]) -> list[str]:
    judgement = judge(*made)
    assert [fault.name for fault in judgement.faults] == list(NAMES)
    return [fault.name for fault in judgement.failed]


def test_an_agent_that_answers_and_listens_is_fine() -> None:
    made = scene(20.0, user=((1, 3), (8, 10)), agent=((3.4, 6.6), (10.3, 13)))
    judgement = judge(*made)
    assert not judgement.failed and str(judgement) == "ok"
    assert (judgement.turns, judgement.unanswered) == (2, 0)
    assert judgement.reply_seconds == pytest.approx(0.35, abs=0.08)  # Gaps of 0.4 and 0.3 s.
    assert judgement.agent_seconds == pytest.approx(5.9, abs=0.3) and judgement.overlap_share == 0


def test_an_agent_that_says_nothing_is_silent_and_nothing_else() -> None:
    assert failed(scene(12.0, agent=(), words=())) == ["silent"]


def test_an_agent_that_leaves_turns_unanswered_is_silent() -> None:
    greets = scene(12.0, user=((4, 6),), agent=((0.5, 3),))
    assert failed(greets) == ["silent"] and "1 of 1 turns without an answer" in str(judge(*greets))
    half = scene(24.0, user=((1, 3), (10, 12)), agent=((3.4, 6),))
    assert failed(half) == ["silent"]
    third = scene(34.0, user=((1, 3), (10, 12), (20, 22)), agent=((3.4, 6), (22.5, 25)))
    assert failed(third) == [] and judge(*third).unanswered == 1


def test_a_turn_after_which_the_recording_ends_or_the_user_goes_on_is_not_judged() -> None:
    assert judge(*scene(7.0, user=((1, 3),), agent=((0.2, 0.9),))).turns == 0  # 4 s are left.
    pause = scene(12.0, user=((1, 2), (2.6, 4)), agent=((4.3, 6),))
    assert (judge(*pause).turns, judge(*pause).unanswered) == (1, 0)


def test_an_agent_that_talks_over_the_user_never_stops() -> None:
    over = scene(14.0, user=((1, 3), (5, 8)), agent=((0.5, 4.5), (5.2, 9)))
    assert failed(over) == ["never stops"] and judge(*over).overlap_share > 0.9
    barge_in = scene(14.0, user=((1, 3), (6, 8)), agent=((3.4, 6.8), (8.5, 11)))
    assert failed(barge_in) == [] and 0.1 < judge(*barge_in).overlap_share < 0.3


def test_an_agent_without_a_pause_for_20_s_never_stops() -> None:
    assert failed(scene(26.0, agent=((3.4, 24.0),))) == ["never stops"]
    assert failed(scene(26.0, agent=((3.4, 13.0), (13.4, 24.0)))) == []


def test_without_speech_of_the_user_overlap_is_not_judged() -> None:
    judgement = judge(*scene(8.0, user=(), agent=((2.0, 4.5),)))
    assert not judgement.failed and str(judgement) == "ok, not judged: never stops"


@pytest.mark.parametrize(
    ("sound", "why"), [(HISS, "spectrum like noise"), (TONE, "constant level"), (HISS * 20, "samples clipped")]
)
def test_noise_a_tone_and_clipping_are_noisy(sound: Audio, why: str) -> None:
    made = scene(14.0, agent=((3.4, 8.0),), sound=np.clip(sound, -1, 1))
    assert failed(made) == ["noisy"] and why in str(judge(*made))


def test_noise_in_bursts_is_noisy_by_its_spectrum() -> None:
    bursts = HISS[: 5 * 24000] * (np.arange(5 * 24000) // 3840 % 2)
    made = scene(14.0, agent=((3.4, 8.0),), sound=bursts.astype(np.float32))
    assert failed(made) == ["noisy"] and "constant" not in str(judge(*made))


def test_sound_without_words_is_noisy_after_3_s() -> None:
    assert failed(scene(14.0, agent=((3.4, 6.2),), words=())) == []
    made = scene(14.0, agent=((3.4, 7.4),), words=())
    assert failed(made) == ["noisy"] and "4.1 s of sound without a word" in str(judge(*made))


def test_repeated_words_loop() -> None:
    assert failed(scene(14.0, words=["no"] * 5)) == []
    made = scene(14.0, words=["No,"] * 3 + ["no"] * 3)
    assert failed(made) == ["looping"] and '"no" 6 times in a row' in str(judge(*made))
    phrase = "how can I help you".split()
    assert failed(scene(14.0, words=phrase * 3)) == []
    assert failed(scene(14.0, words=["well", *phrase * 4, "bye"])) == ["looping"]


def brute_force_count(words: list[str]) -> int:
    """How often the phrase of up to 12 words that is said most often in a row is said: all starts and lengths."""
    best = min(1, len(words))
    for start in range(len(words)):
        for size in range(1, min(12, len(words) - start) + 1):
            count = 1
            while words[start + count * size : start + (count + 1) * size] == words[start : start + size]:
                count += 1
            best = max(best, count)
    return best


def test_the_count_of_a_phrase_equals_trying_all() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        words = [str(word) for word in rng.choice(list("abc"[: rng.integers(1, 4)]), rng.integers(0, 14))]
        found = repeated_phrase(words)
        if not found.is_loop:
            assert found.count == brute_force_count(words), words
        else:
            assert found.count > (5 if len(found.text.split()) == 1 else 3)
            assert " ".join([found.text] * found.count) in " ".join(words)


def test_repeated_codes_loop_if_they_sound() -> None:
    frames = 14 * 25 // 2
    chance = RNG.integers(2048, size=frames)
    assert failed(scene(14.0, agent=((3.4, 9.0),), codes=chance)) == []
    period = chance.copy()
    period[45:110] = np.tile(chance[:5], 13)
    made = scene(14.0, agent=((3.4, 9.0),), codes=period)
    assert failed(made) == ["looping"] and judge(*made).loop_seconds == pytest.approx(65 / 12.5, abs=0.25)
    damaged = period.copy()
    damaged[50:110:23] = 5000
    assert failed(scene(14.0, agent=((3.4, 9.0),), codes=damaged)) == ["looping"]
    assert failed(scene(14.0, agent=((3.2, 4.2), (9.5, 12)), codes=period)) == []  # The codes of silence may be equal.


def test_a_long_period_must_come_three_times() -> None:
    part, sounds = RNG.integers(2048, size=60), np.ones(200, np.bool_)
    tail = RNG.integers(2048, 4000, size=200)
    assert longest_code_loop(np.concatenate([part, part, tail])[:200], sounds) == 0
    assert longest_code_loop(np.concatenate([part, part, part, tail])[:200], sounds) >= 108


def test_stretches_join_short_pauses() -> None:
    speaks = np.array([0, 1, 1, 0, 0, 1, 0, 0, 0, 1], np.bool_)
    assert list(stretches(speaks)) == [(1, 6), (9, 10)] and list(stretches(speaks[:1])) == []


def test_levels_are_those_of_a_sine() -> None:
    np.testing.assert_allclose(levels(TONE), 20 * np.log10(0.2 / np.sqrt(2)), atol=0.03)
    assert levels(np.zeros(1921, np.float32)).tolist() == pytest.approx([-120.0, -120.0])
    assert speaking(placed(2.0, [(1.0, 2.0)])).tolist() == [False] * 12 + [True] * 13


@pytest.mark.parametrize("engine", ["espeak", "kokoro"])
def test_speech_is_fine_plain_and_through_the_codec(engine: str) -> None:
    from data_pipelines.speech.engines import is_kokoro_fetched, open_engine

    if engine == "kokoro" and not is_kokoro_fetched():
        pytest.skip("Kokoro is not fetched")
    speaker = open_engine(engine)
    text = "Good morning, this is the Harbour clinic. We have Tuesday at half past ten, or Friday afternoon at four."
    codec = load_mimi(ROOT / "model" / "assets" / "mimi_small.safetensors").eval()
    for voice in speaker.voices()[:1]:
        speech = speaker.speak(text, voice.key, seed=0)
        plain = to_mono_24k(speech.audio, speech.rate)
        with torch.inference_mode():
            codes_BQT = codec.encode(torch.from_numpy(plain)[None, None])
            coded = codec.decode(codes_BQT)[0, 0].numpy()
        for audio in (plain, coded):
            speaks = speaking(audio)
            assert speaks.mean() > 0.6 and longest_steady(audio, speaks) == 0 and flatness(audio, speaks) < 0.1
        assert longest_code_loop(codes_BQT[0, 0].numpy(), speaking(coded)) == 0


def test_syllables_are_like_speech_in_what_is_measured() -> None:
    audio = syllables(6.0)
    assert longest_steady(audio, speaking(audio)) == 0 and flatness(audio, speaking(audio)) < 0.1
