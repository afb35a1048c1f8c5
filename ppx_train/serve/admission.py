"""How many calls fit: from the memory that is free, and from the time of a tick, measured before anybody calls."""

# Shapes: S samples (of a frame)

import time
from dataclasses import dataclass

import numpy as np

from model.config import FRAME_SAMPLES
from model.devices import free_bytes
from model.errors import UserError
from model.streaming.kv_cache import slot_bytes
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.engine import TICK_SECONDS
from ppx_train.inference.loading import Release
from ppx_train.inference.model_options import PastWindow
from ppx_train.inference.session import SessionSettings
from ppx_train.serve.query import MOST

BUDGET_SECONDS = 0.8 * TICK_SECONDS
"""A tick with all slots taken; the rest of the 80 ms is for prompts, queues and sockets."""
MEMORY_SHARE = 0.8
"""Of the free memory, that calls may take."""
WARM_STEPS, STEPS = 3, 9
HEARING_FRAMES = (6, 50, 250)
"""How long a model gets to answer noise unlike silence; most need a few frames."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Slots that fit, and what was measured. note: says in a line why there are fewer than asked, if so."""

    conversations: Conversations
    slots: int
    tick_seconds: float
    note: str | None


def admit(
    release: Release,
    asked: int,
    warm: SessionSettings,
    *,
    not_realtime: bool = False,
    past_window: PastWindow = "forget",
) -> Admission:
    """Makes as many slots as were asked for, or as many as memory and the time of a tick allow.

    warm: a conversation as most callers will want it; its prompt is kept for them.
    Raises: UserError if no call fits, one alone takes more than 80 ms a frame and `not_realtime` is not given, or the
    model does not hear its caller.
    """
    slots = min(asked, slots_by_memory(release))
    note = f"{slots} sessions, not {asked}: more do not fit into memory" if slots < asked else None
    if slots < 1:
        raise UserError(
            "no call fits into the memory that is left: take a smaller model or free some", code="no-device"
        )
    while True:
        conversations = Conversations(release, slots, most=MOST, past_window=past_window)
        tick = measure_tick(conversations, warm)
        if tick <= BUDGET_SECONDS or slots == 1 or not_realtime:
            break
        fewer = max(1, min(slots - 1, int(slots * BUDGET_SECONDS / tick)))
        note = f"{fewer} sessions, not {asked}: with {slots} a tick takes {tick * 1e3:.0f} of 80 ms"
        slots = fewer
    if tick > TICK_SECONDS and not not_realtime:
        raise UserError(
            f"one call takes {tick * 1e3:.0f} ms for a frame of 80 ms here: take a smaller model or a faster device, "
            "or add --not-realtime to serve it anyway, with sound that stutters",
            code="no-device",
        )
    check_hearing(conversations)
    return Admission(conversations=conversations, slots=slots, tick_seconds=tick, note=note)


def measure_tick(conversations: Conversations, warm: SessionSettings) -> float:
    """The median time of a frame of all slots, in seconds, with windows as full as in a long call."""
    session = conversations.join(warm)
    conversations.prompt(session)
    conversations.leave(session)
    empty = SessionSettings(sampling=warm.sampling, seed=0)
    sessions = [conversations.join(empty) for _ in conversations.sessions]
    silence_S = np.zeros(FRAME_SAMPLES, np.float32)
    times = []
    for number in range(2 * WARM_STEPS + STEPS):
        if number == WARM_STEPS:  # What a model is fed at its beginning lies behind it.
            conversations.state.cache.pretend_full()
        began = time.perf_counter()
        conversations.step(dict.fromkeys(sessions, silence_S))
        times.append(time.perf_counter() - began)
    for each in sessions:
        conversations.leave(each)
    return float(np.median(times[2 * WARM_STEPS :]))


def slots_by_memory(release: Release) -> int:
    """Calls whose keys and values fit into the memory that is free now."""
    return int(
        MEMORY_SHARE * free_bytes(release.device) / slot_bytes(release.lm.config, release.lm.text_emb.weight.dtype)
    )


def check_hearing(conversations: Conversations) -> None:
    """Lets the model talk to noise and to silence, with equal random numbers.

    Raises: UserError if it says the same to both: models whose user streams are wired wrongly speak, and never hear.
    """
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (HEARING_FRAMES[-1], FRAME_SAMPLES)).astype(np.float32)
    for frames in HEARING_FRAMES:
        answers = []
        for heard in (noise, np.zeros_like(noise)):
            session = conversations.join(SessionSettings(seed=0))
            answers.append([conversations.step({session: frame_S})[session].tokens for frame_S in heard[:frames]])
            conversations.leave(session)
        if answers[0] != answers[1]:
            return
    raise UserError(
        f"the model says the same to noise and to silence for {HEARING_FRAMES[-1]} frames, so it does not hear its "
        "caller: export it again, and look at n_q and dep_q of its configuration",
        code="bad-weights",
    )
