"""The sound of a call that waits."""

import numpy as np

from model.config import FRAME_SAMPLES
from ppx_train.inference.call import MOST_BACKLOG_FRAMES, Call
from ppx_train.inference.session import SessionSettings
from tests.ppx_train.inference.test_engine import samples


def test_of_a_backlog_that_is_too_long_silence_is_dropped_first_and_then_the_oldest() -> None:
    loud, silent = samples(MOST_BACKLOG_FRAMES + 2, seed=7), np.zeros(FRAME_SAMPLES, np.float32)
    call = Call(SessionSettings(), lambda _: None, None)
    for piece in (loud[:FRAME_SAMPLES], silent, loud[FRAME_SAMPLES:]):
        call.hear(piece)
    first = call.next_frame()
    assert first is not None and call.dropped == 3
    np.testing.assert_array_equal(first, loud[2 * FRAME_SAMPLES : 3 * FRAME_SAMPLES])


def test_sound_that_comes_in_any_pieces_leaves_in_whole_frames() -> None:
    heard, call = samples(3, seed=2), Call(SessionSettings(), lambda _: None, None)
    for piece in np.split(heard, [1, 1, 700, 1919, 1921, 4000]):
        call.hear(piece)
    frames = [call.next_frame() for _ in range(3)]
    np.testing.assert_array_equal(np.concatenate([f for f in frames if f is not None]), heard)
    assert call.next_frame() is None and call.backlog == 0
