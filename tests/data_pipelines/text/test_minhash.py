"""Runs of words and their sketches against sets of tuples."""

import random

import numpy as np
import pytest

from data_pipelines.text.minhash import HASHES, Runs, jaccard

RUNS = Runs(3, multiplier=1_000_003, seed=5)


def tuples(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[n : n + 3]) for n in range(max(len(words) - 2, 1))} if words else set()


def texts(draw: random.Random) -> tuple[list[str], list[str]]:
    """Two random texts, the second with some words of the first replaced."""
    first = [draw.choice("abcdefghij") * draw.randrange(1, 4) for _ in range(draw.randrange(0, 120))]
    share = draw.random()
    return first, [word if draw.random() > 0.4 * share else "other" for word in first]


def test_different_runs_have_different_keys_and_equal_ones_the_same() -> None:
    draw = random.Random(1)
    for _ in range(50):
        a, b = texts(draw)
        keys_a, keys_b = RUNS.keys(a), RUNS.keys(b)
        assert len(keys_a) == len(tuples(a)) and (np.diff(keys_a.astype(object)) > 0).all()
        assert jaccard(keys_a, keys_b) == len(tuples(a) & tuples(b)) / max(len(tuples(a) | tuples(b)), 1)


def test_a_short_text_is_one_run_and_no_text_has_none() -> None:
    assert len(RUNS.keys(["a", "b"])) == 1 and len(RUNS.keys([])) == 0
    assert RUNS.keys(["a"]) != RUNS.keys(["b"])
    assert Runs(3, multiplier=7, seed=5, first=1).keys(["a"]) != Runs(3, multiplier=7, seed=5).keys(["a"])


def test_equal_values_in_two_sketches_estimate_the_similarity() -> None:
    draw, errors = random.Random(2), []
    for _ in range(60):
        a, b = (RUNS.keys(words) for words in texts(draw))
        if len(a) and len(b):
            estimate = (RUNS.sketch(a) == RUNS.sketch(b)).mean()
            errors.append(estimate - jaccard(a, b))
    deviation = 0.5 / HASHES**0.5  # of one estimate, at the similarity where it is largest
    assert max(map(abs, errors)) < 5 * deviation and abs(np.mean(errors)) < 3 * deviation / len(errors) ** 0.5
    with pytest.raises(ValueError):
        RUNS.sketch(RUNS.keys([]))
