"""Lengths in frames, and the sizes that a language model cannot have."""

from typing import Any

import pytest

from model.config import DELAYS, FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, LMConfig, frame_at, frames_of
from model.errors import Code
from tests.model.tiny import tiny
from tests.refusals import refused


def test_a_frame_is_80_ms() -> None:
    assert FRAME_SAMPLES / SAMPLE_RATE == 1 / FRAME_RATE == 0.08


def test_a_length_has_the_frames_that_its_samples_fill() -> None:
    for frames in range(1, 2500):
        samples = 1920 * frames
        assert frames_of((samples - 1919) / 24000) == frames  # one sample in the last frame
        assert frames_of(samples / 24000) == frames
        assert frames_of((samples + 1) / 24000) == frames + 1
    assert frames_of(0.0) == 0


def test_a_decimal_length_is_not_a_frame_too_long() -> None:
    for milliseconds in range(200_000):
        assert frames_of(milliseconds / 1000) == (milliseconds + 79) // 80


def test_a_moment_lies_in_the_frame_that_began_last() -> None:
    for milliseconds in range(200_000):
        assert frame_at(milliseconds / 1000) == milliseconds // 80
    assert frame_at(-0.01) == -1


def test_only_the_codebooks_behind_the_semantic_ones_are_delayed() -> None:
    config = LMConfig()
    assert list(DELAYS) == config.delays
    semantic = (config.agent_audio.start, config.user_audio.start)
    assert [stream for stream, delay in enumerate(DELAYS) if delay == 0] == [0, *semantic] == [0, 1, 9]


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"num_heads": 3}, "bad-combination", ["32", "3 heads"]),
        ({"depformer_num_heads": 16}, "bad-combination", ["16", "16 heads"]),  # heads of width 1 have no pairs to turn
        ({"num_heads": 0}, "bad-combination", ["0 heads"]),
        ({"n_q": 8}, "bad-value", ["n_q=8"]),
        ({"dep_q": 9}, "bad-value", ["dep_q=9"]),
        ({"delays": [0] * 16}, "bad-combination", ["16 delays", "17 streams"]),
        ({"context": 0}, "bad-value", ["context=0"]),
        ({"card": -1}, "bad-value", ["card=-1"]),
        ({"num_layers": 10**9}, "bad-value", ["num_layers=1000000000"]),
        ({"context": 10**9}, "bad-value", ["context=1000000000"]),
        ({"hidden_scale": float("nan")}, "bad-value", ["hidden_scale=nan"]),
        ({"hidden_scale": 0.01}, "bad-combination", ["hidden_scale=0.01"]),
        ({"delays": [-1] * 17}, "bad-value", ["delays=[-1"]),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes: dict[str, Any], code: Code, names: list[str]) -> None:
    with refused(code, *names):
        tiny(**changes)
