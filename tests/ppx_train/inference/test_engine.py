"""The live engine on a clock of the test's own, and on the real one."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from model.config import FRAME_SAMPLES
from model.streaming.sample import Sampling
from ppx_train.inference.call import CATCH_UP_TICKS, MOST_BACKLOG_FRAMES, PHASE_SAMPLES, Call, CallEvent
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.engine import LiveEngine
from ppx_train.inference.loading import Release
from ppx_train.inference.session import Audio, SessionSettings
from tests.ppx_train.inference.noise import noise
from tests.ppx_train.inference.test_conversations import MOST, alone, settings
from tests.refusals import refused


class Caller:
    """A user of the engine: sends sound, and keeps what it is told."""

    def __init__(self, engine: LiveEngine, of: SessionSettings, most_frames: int | None = None) -> None:
        self.events: list[CallEvent] = []
        self.call: Call = engine.begin(of, self.events.append, most_frames)

    def kinds(self) -> list[str]:
        """The kinds of events, without repeats in a row."""
        kinds = [event.kind for event in self.events]
        return [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]

    def frames(self) -> list[tuple[int, ...]]:
        return [event.frame.tokens for event in self.events if event.frame is not None]


def samples(frames: float, seed: int = 0) -> Audio:
    return noise(frames * 0.08 + 0.01, seed=seed)[: round(frames * FRAME_SAMPLES), 0].astype(np.float32)


def engine(release: Release, slots: int = 2) -> LiveEngine:
    return LiveEngine(Conversations(release, slots, most=MOST))


def ticks(of: LiveEngine, count: int, before: Callable[[int], None] | None = None, start: int = 0) -> None:
    """Ticks without a clock: prompts get all the time they want."""
    for number in range(start, start + count):
        if before is not None:
            before(number)
        of.tick(number, until=time.monotonic() + 60)


def test_a_call_is_prompted_talks_and_ends(release: Release) -> None:
    one = engine(release)
    caller = Caller(one, settings(release, 0), most_frames=7)
    ticks(one, 1)
    assert caller.kinds() == ["prompting", "ready"]
    heard = samples(12, seed=3)
    caller.call.hear(heard[: FRAME_SAMPLES // 2])
    ticks(one, 1)  # cuts the stream to the phase of the ticks
    cut = FRAME_SAMPLES // 2 - PHASE_SAMPLES
    ticks(one, 10, lambda n: caller.call.hear(heard[FRAME_SAMPLES // 2 :][n * FRAME_SAMPLES : (n + 1) * FRAME_SAMPLES]))
    assert caller.kinds() == ["prompting", "ready", "frame", "ended"]
    assert caller.events[-1].reason == "limit" and one.conversations.free == 2
    seen = [heard[cut + n * FRAME_SAMPLES : cut + (n + 1) * FRAME_SAMPLES] for n in range(7)]
    assert caller.frames() == [frame.tokens for frame in alone(release, settings(release, 0), seen)]


def test_calls_wait_for_a_slot_in_their_order_and_too_many_are_refused(release: Release) -> None:
    one = engine(release, slots=1)
    callers = [Caller(one, SessionSettings(sampling=MOST, seed=n)) for n in range(3)]
    ticks(one, 2)
    assert [caller.kinds()[-1] for caller in callers] == ["ready", "queued", "queued"]
    assert [caller.events[-1].position for caller in callers[1:]] == [1, 2]
    callers[1].call.leave()
    ticks(one, 1)
    assert callers[1].kinds()[-1] == "ended" and callers[2].events[-1].position == 1
    callers[0].call.leave()
    ticks(one, 1)
    assert callers[2].kinds()[-1] == "ready" and one.figures.calls == 2
    for n in range(32):
        one.begin(SessionSettings(sampling=MOST, seed=n), lambda _: None)
    with refused("in-use", "32"):
        one.begin(SessionSettings(sampling=MOST), lambda _: None)
    one.drain()
    with refused("in-use"):
        one.begin(SessionSettings(sampling=MOST), lambda _: None)
    with refused("bad-value", "text_top_k"):
        one.begin(SessionSettings(sampling=Sampling(text_top_k=400)), lambda _: None)


def test_a_backlog_is_worked_off_without_bursts(release: Release) -> None:
    one = engine(release, slots=1)
    caller = Caller(one, SessionSettings(sampling=MOST, seed=1))
    ticks(one, 2)
    caller.call.hear(samples(4))
    counts = []
    for number in range(2, 14):
        before = len(caller.frames())
        caller.call.hear(samples(1, seed=number))
        ticks(one, 1, start=number)
        counts.append(len(caller.frames()) - before)
    assert set(counts) == {1, 2} and counts.count(2) == 12 // CATCH_UP_TICKS
    assert caller.call.dropped == 0 and caller.call.backlog < MOST_BACKLOG_FRAMES


@pytest.mark.parametrize("speed", [0.995, 1.005])
def test_a_clock_that_is_off_by_half_a_percent_costs_no_frame_and_no_delay(release: Release, speed: float) -> None:
    """2000 ticks, 160 s: the client's clock counts 10 frames more or fewer than the server's."""
    one = engine(release, slots=1)
    caller = Caller(one, SessionSettings(sampling=MOST, seed=1))
    ticks(one, 2)
    sound, sent, waits, before = samples(8), 0, [], caller.call.late

    def speak(number: int) -> None:
        nonlocal sent
        for at in range(4):  # 20 ms at a time
            due = int((number - 2 + (at + 1) / 4) * FRAME_SAMPLES * speed)
            start = sent % (7 * FRAME_SAMPLES)
            caller.call.hear(sound[start : start + due - sent])
            sent = due
        waits.append(caller.call.backlog)

    ticks(one, 2000, speak, start=2)
    heard = len(caller.frames()) + caller.call.cut_samples / FRAME_SAMPLES + caller.call.backlog
    assert heard == pytest.approx(2000 * speed, abs=0.01)  # Nothing is lost or made up,
    assert caller.call.dropped == 0 and max(waits) < 2.5  # and nothing piles up:
    assert np.mean(waits[-200:]) - np.mean(waits[:200]) < 1  # the delay at the end is that of the beginning.
    late = caller.call.late - before
    assert late <= 1 if speed > 1 else 8 <= late <= 12  # A slow client has no frame every 200 ticks.


def test_a_call_that_catches_up_ends_at_its_limit(release: Release) -> None:
    one = engine(release)
    caller = Caller(one, SessionSettings(sampling=MOST, seed=1), most_frames=1)
    ticks(one, 2)
    caller.call.hear(samples(4))
    ticks(one, 3)
    assert len(caller.frames()) == 1 and caller.events[-1].reason == "limit"


def test_a_prompt_goes_on_where_a_part_takes_its_time_whatever_its_length(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(release)
    fed, feed = [], one.conversations.feed_prompts

    def slow(budget: int) -> int:
        time.sleep(0.03)
        fed.append(feed(budget))
        return fed[-1]

    monkeypatch.setattr(one.conversations, "feed_prompts", slow)
    long = SessionSettings(prompt_KP=release.prompt(None, "tell me about the waste schedule " * 16), sampling=MOST)
    caller = Caller(one, long)
    for _ in range(2):
        one.tick(0, until=time.monotonic())  # No time is left: a part all the same, and a shorter one the next time.
    assert 0 < fed[1] < fed[0]
    number = 2
    while caller.kinds()[-1] != "ready" and number < 200:
        one.tick(number, until=time.monotonic() + 0.06)
        number += 1
    assert sum(fed) == long.prompt_frames > 100 and number < 15


def test_a_call_without_sound_waits_and_others_go_on(release: Release) -> None:
    one = engine(release)
    quiet, loud = (Caller(one, settings(release, n)) for n in (0, 1))
    ticks(one, 2)
    ticks(one, 5, lambda n: loud.call.hear(samples(1, seed=n)))
    assert len(loud.frames()) == 4 and not quiet.frames() and quiet.call.late >= 5  # the first sound was cut


def test_a_stream_is_cut_when_its_sound_begins_so_that_its_frames_are_whole_before_ticks(release: Release) -> None:
    one = engine(release, slots=1)
    caller = Caller(one, SessionSettings(sampling=MOST, seed=1))
    ticks(one, 5)  # without any sound yet
    heard = samples(4, seed=5)
    caller.call.hear(heard[: 2 * FRAME_SAMPLES - 7])
    ticks(one, 1, start=5)
    assert caller.call.cut_samples == FRAME_SAMPLES - PHASE_SAMPLES - 7 and len(caller.frames()) == 1
    assert caller.call.backlog * FRAME_SAMPLES == pytest.approx(PHASE_SAMPLES)


def test_a_stream_whose_frames_come_at_the_very_tick_finds_a_frame_in_nearly_every_one(release: Release) -> None:
    one = engine(release, slots=1)
    caller = Caller(one, SessionSettings(sampling=MOST, seed=1))
    ticks(one, 2)
    caller.call.hear(samples(PHASE_SAMPLES / FRAME_SAMPLES / 2))  # which is less than jitter takes away
    ticks(one, 1, start=2)
    jitter, late = [0, 1, 0, 0, 1, 0, 1, 1] * 5, caller.call.late
    sent = 0
    for number, behind in enumerate(jitter):
        due = (number + 1) * FRAME_SAMPLES - behind * PHASE_SAMPLES
        caller.call.hear(samples((due - sent) / FRAME_SAMPLES, seed=number))
        sent = due
        ticks(one, 1, start=3 + number)
    assert caller.call.late - late <= 2 and len(caller.frames()) >= len(jitter) - 2


def test_a_receiver_that_fails_ends_its_call_alone(release: Release) -> None:
    one = engine(release)
    good = Caller(one, settings(release, 0))

    def fails(event: CallEvent) -> None:
        if event.kind == "frame":
            raise RuntimeError("no receiver")

    bad = one.begin(settings(release, 1), fails)
    ticks(one, 1)

    def both_hear(number: int) -> None:
        for call in (good.call, bad):
            call.hear(samples(1, seed=number))

    ticks(one, 4, both_hear)
    assert bad.leaves == "internal" and one.conversations.free == 1 and len(good.frames()) == 3


def test_on_a_real_clock_frames_come_on_time_and_stop_ends_all(release: Release) -> None:
    one = engine(release)
    one.start()
    caller = Caller(one, settings(release, 0))
    deadline = time.monotonic() + 60
    while "ready" not in caller.kinds() and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    for number in range(12):
        caller.call.hear(samples(1, seed=number))
        time.sleep(max(0.0, began + (number + 1) * 0.08 - time.monotonic()))
    assert one.is_healthy and len(caller.frames()) >= 1
    one.stop()
    assert caller.events[-1].kind == "ended" and caller.events[-1].reason == "draining"
    assert "engine" not in {thread.name for thread in threading.enumerate()}
    with refused("in-use"):
        one.begin(SessionSettings(sampling=MOST), lambda _: None)


def test_a_model_that_fails_ends_all_calls_and_says_so(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(release)
    caller = Caller(one, SessionSettings(sampling=MOST, seed=1))

    def fails(*_: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(one.conversations, "step", fails)
    one.start()
    deadline = time.monotonic() + 60
    while not (caller.events and caller.events[-1].kind == "ended") and time.monotonic() < deadline:
        caller.call.hear(samples(1))
        time.sleep(0.02)
    assert caller.events[-1].reason == "internal" and not one.is_healthy and isinstance(one.failure, RuntimeError)
