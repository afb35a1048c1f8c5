"""What decides whether a text is what is said: the limit of a speaker, and sound that no word covers."""

import numpy as np
import pytest

from data_pipelines.listening.fit import limit_of, unsaid_seconds
from data_pipelines.records.schema import Word


@pytest.mark.parametrize(
    ("scores", "limit"),
    [([-30, -32, -90], -57), ([-10, -11, -12], -40), ([-46, -47, -44], -66), ([-80, -90, -85], -50), ([], -40)],
)
def test_the_limit_follows_the_speaker_between_bounds_that_wrong_texts_cannot_move(
    scores: list[float], limit: float
) -> None:
    assert limit_of(scores) == limit


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_sound_beside_the_words_is_measured(noise: float) -> None:
    rng = np.random.default_rng(0)
    audio = rng.normal(0, noise, 24_000).astype(np.float32)
    for start, end in ((0.5, 1.0), (1.5, 1.9), (2.4, 2.5)):  # The second one has no word.
        audio[int(start * 8000) : int(end * 8000)] += rng.normal(0, 0.2, round((end - start) * 8000))
    words = [Word(text="one", start=0.5, end=1.0), Word(text="two", start=2.38, end=2.5)]
    assert unsaid_seconds(audio, 8000, words, 0.0, 3.0) == pytest.approx(0.4, abs=0.03)
    assert unsaid_seconds(audio, 8000, words, 0.0, 1.7) == pytest.approx(0.2, abs=0.03)
    assert unsaid_seconds(audio, 8000, words[:0], 2.0, 3.0) == pytest.approx(0.1, abs=0.03)
    assert unsaid_seconds(audio[:0], 8000, words, 0.0, 3.0) == 0
