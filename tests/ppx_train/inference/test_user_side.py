"""A user who follows a script: turns that wait for the agent, come at a second, or barge in."""

from collections.abc import Callable

import numpy as np
import pytest

from model.config import FRAME_SAMPLES
from ppx_train.inference.session import Audio
from ppx_train.inference.speaking import speaking
from ppx_train.inference.user_side import RecordedUser, ScriptedUser, UserTurn, When
from tests.ppx_train.inference.scenes import syllables
from tests.refusals import refused

LOUD = np.full(FRAME_SAMPLES, 0.1, np.float32)
QUIET = np.zeros(FRAME_SAMPLES, np.float32)
LENGTH = 10
"""Frames of each turn."""


def turn(when: When, seconds: float, text: str = "hello") -> UserTurn:
    return UserTurn(text=text, audio_S=np.tile(LOUD, LENGTH)[:-100], when=when, seconds=seconds)


def held(user: ScriptedUser, agent: Callable[[int], bool], most: int = 2000) -> tuple[list[bool], list[bool]]:
    """Which frames the user and the agent speak; `agent` decides for each frame."""
    heard: Audio | None = None
    spoke: list[bool] = []
    answered: list[bool] = []
    while (frame := user.next(heard)) is not None:
        assert frame.shape == (FRAME_SAMPLES,) and frame.dtype == np.float32 and len(spoke) < most
        spoke.append(bool(frame.any()))
        answered.append(agent(len(answered)))
        heard = LOUD if answered[-1] else QUIET
    return spoke, answered


def starts(user: ScriptedUser) -> list[int]:
    return [round(said.start * 12.5) for said in user.said]


def test_a_turn_follows_the_agents_answer_and_a_silence() -> None:
    user = ScriptedUser([turn("after", 0.8), turn("after", 1.2)], tail=2.0)
    spoke, _ = held(user, lambda n: 25 <= n < 50)
    assert starts(user) == [10, 50 + 15] and not any(said.in_vain for said in user.said)
    assert [n for n, speaks in enumerate(spoke) if speaks] == [*range(10, 20), *range(65, 75)]
    assert len(spoke) == 75 + 25  # The tail of 2 s.
    assert user.said[0].end == pytest.approx(20 / 12.5)


def test_a_greeting_is_heard_out_before_the_first_turn() -> None:
    user = ScriptedUser([turn("after", 0.8)], tail=1.0)
    held(user, lambda n: 5 <= n < 30)
    assert starts(user) == [40]


def test_a_backchannel_within_a_turn_is_no_answer() -> None:
    user = ScriptedUser([turn("after", 0.0), turn("after", 0.8)], tail=1.0)
    held(user, lambda n: 3 <= n < 6 or 40 <= n < 60)
    assert starts(user) == [0, 70]


def test_a_user_who_waits_in_vain_goes_on() -> None:
    user = ScriptedUser([turn("after", 0.0), turn("after", 0.8), turn("barge_in", 0.4)], tail=1.0)
    held(user, lambda n: False)
    assert starts(user) == [0, 10 + 75, 95 + 75] and [said.in_vain for said in user.said] == [False, True, True]


def test_an_agent_that_never_stops_is_interrupted_after_30_s() -> None:
    user = ScriptedUser([turn("after", 0.0), turn("after", 0.8)], tail=1.0)
    held(user, lambda n: True)
    assert starts(user) == [0, 10 + 375] and user.said[1].in_vain


def test_a_barge_in_comes_while_the_agent_speaks() -> None:
    user = ScriptedUser([turn("after", 0.8), turn("barge_in", 1.6)], tail=1.0)
    _, agent = held(user, lambda n: 15 <= n < 90)  # It begins within the turn, which ends at frame 20.
    assert starts(user) == [10, 40] and agent[39] and not user.said[1].in_vain
    short = ScriptedUser([turn("after", 0.8), turn("barge_in", 1.6)], tail=1.0)
    held(short, lambda n: 25 <= n < 35 or 45 <= n < 54 or (n in range(60, 90) and n % 4 != 0))
    assert starts(short) == [10, 87]  # After 20 frames that speak; pauses of one frame do not end a stretch.


def test_a_turn_at_a_second_waits_for_the_turn_before_alone() -> None:
    user = ScriptedUser([turn("at", 2.0), turn("at", 2.4), turn("at", 8.0)], tail=1.0)
    held(user, lambda n: True)
    assert starts(user) == [25, 35, 100]


def test_a_recording_goes_on_whatever_the_agent_does() -> None:
    recording = RecordedUser(np.concatenate([LOUD, LOUD[:100]]))
    assert recording.length == 2 and recording.said == []
    frames = [recording.next(None), recording.next(LOUD), recording.next(LOUD)]
    assert frames[0] is not None and frames[1] is not None and frames[2] is None
    assert frames[1][:100].all() and not frames[1][100:].any()
    with refused("bad-audio", "empty"):
        RecordedUser(np.zeros(0, np.float32))


def test_turns_of_speech_are_speech() -> None:
    user = ScriptedUser([UserTurn(text="hello", audio_S=syllables(1.0), when="at", seconds=0.0)], tail=0.4)
    frames = []
    while (frame := user.next(None)) is not None:
        frames.append(frame)
    assert speaking(np.concatenate(frames)).tolist() == [True] * 13 + [False] * 5
