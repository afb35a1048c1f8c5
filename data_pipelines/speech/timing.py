"""When each turn of a script is spoken: gaps, overlaps, barge-ins, backchannels. Pure arithmetic on durations.

The published work states none of these distributions; every number here is a choice and a setting.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipelines.schema import Turn
from model.errors import UserError

SIDE_OF = {"agent": "left", "user": "right"}


@dataclass(kw_only=True, frozen=True)
class Timing:
    """Turn-taking settings, in seconds."""

    gap_mean: float = 0.25
    gap_deviation: float = 0.35
    gap_range: tuple[float, float] = (-0.4, 1.5)
    """Gaps between speakers are normal, clipped to this range; below zero the turns overlap and nobody stops."""
    same_speaker_gap: float = 0.2
    """The least pause between two turns of one speaker."""
    barge_in_from: float = 0.4
    """A barge-in starts uniformly between this share of the interrupted turn and its end."""
    stop_after: tuple[float, float] = (0.2, 0.7)
    """How long the interrupted speaker goes on."""
    fade: tuple[float, float] = (0.04, 0.15)
    user_silence_share: float = 0.05
    """Share of user turns before which the user stays silent for a while."""
    user_silence: tuple[float, float] = (2.0, 6.0)
    lead_in: tuple[float, float] = (0.1, 0.6)
    lead_out: tuple[float, float] = (0.3, 1.0)


@dataclass(kw_only=True, frozen=True)
class Slot:
    """Where one turn lies: its side sounds from `start` to `stop`. A cut turn fades out before its natural end."""

    turn: int
    side: str
    start: float
    stop: float
    fade: float = 0.0
    """Length of the fade at a cut; 0 means the turn was not cut."""

    @property
    def is_cut(self) -> bool:
        return self.fade > 0


@dataclass(kw_only=True, frozen=True)
class Schedule:
    """All slots in the order of the turns, the events among them, and the length of the dialogue."""

    slots: tuple[Slot, ...]
    events: tuple[dict[str, Any], ...]
    seconds: float


def place(turns: Sequence[Turn], seconds: Sequence[float], rng: random.Random, timing: Timing) -> Schedule:
    """Places turns that last `seconds` each. Two turns of one side never overlap.

    A barge-in or backchannel refers to the last turn before it that is no backchannel; that turn must be the other
    side's. Raises: UserError if it is not.
    """
    slots: list[Slot] = []
    events: list[dict[str, Any]] = []
    free = {"left": 0.0, "right": 0.0}  # when each side falls silent
    floor: int | None = None  # the slot whose speaker has the floor
    for n, (turn, length) in enumerate(zip(turns, seconds, strict=True)):
        side = SIDE_OF[turn.speaker]
        if floor is None:
            if turn.kind != "normal":
                raise UserError(f"turn {n} is a {turn.kind} with no turn before it: start with a normal turn")
            start = rng.uniform(*timing.lead_in)
        elif turn.kind == "normal":
            start = _after(slots[floor], turns[floor].kind, side, free, turn, rng, timing, events)
        else:
            if slots[floor].side == side:
                raise UserError(f"turn {n} is a {turn.kind} of the {turn.speaker} on the {turn.speaker}'s own turn")
            is_stopped_next = n + 1 < len(turns) and turns[n + 1].kind == "barge_in"
            start = _inside(slots[floor], turn, free[side], is_stopped_next, rng, timing)
        start = round(start, 4)  # as word times are stored
        if turn.kind == "barge_in" and floor is not None and start < slots[floor].stop:
            slots[floor] = _stopped(slots[floor], start, rng, timing)
            free[slots[floor].side] = slots[floor].stop
            events.append(_event("barge_in", side, start, start + length) | {"stop": round(slots[floor].stop, 4)})
        elif turn.kind == "backchannel":
            events.append(_event("backchannel", side, start, start + length))
        slots.append(Slot(turn=n, side=side, start=start, stop=start + length))
        free[side] = start + length
        if turn.kind != "backchannel":
            floor = n
    return Schedule(
        slots=tuple(slots), events=tuple(events), seconds=max(free.values()) + rng.uniform(*timing.lead_out)
    )


def _event(kind: str, side: str, start: float, end: float) -> dict[str, Any]:
    return {"kind": kind, "side": side, "start": round(start, 4), "end": round(end, 4)}


def _after(
    floor: Slot,
    floor_kind: str,
    side: str,
    free: dict[str, float],
    turn: Turn,
    rng: random.Random,
    timing: Timing,
    events: list[dict[str, Any]],
) -> float:
    """Start of a normal turn that follows the floor turn."""
    gap = min(max(rng.gauss(timing.gap_mean, timing.gap_deviation), timing.gap_range[0]), timing.gap_range[1])
    if side == floor.side:
        gap = max(gap, timing.same_speaker_gap)
    elif floor_kind == "barge_in":  # who was interrupted hears the other out
        gap = max(gap, 0.0)
    else:  # a one-word turn is not talked over from its first sound
        gap = max(gap, -0.5 * (floor.stop - floor.start))
    if turn.speaker == "user" and rng.random() < timing.user_silence_share:
        silence = rng.uniform(*timing.user_silence)
        begin = max(free.values())
        events.append(_event("user_silence", side, begin, begin + silence))
        return begin + silence
    return max(floor.stop + gap, free[side] + 0.05)


def _inside(floor: Slot, turn: Turn, free: float, is_stopped_next: bool, rng: random.Random, timing: Timing) -> float:
    """Start of a barge-in or backchannel within the floor turn."""
    length = floor.stop - floor.start
    if turn.kind == "barge_in":
        share = rng.uniform(timing.barge_in_from, 1.0)
    else:
        # a backchannel leaves room for the barge-in that follows it on the same turn
        share = rng.uniform(0.1, 0.3) if is_stopped_next else rng.uniform(0.2, 0.8)
    return max(floor.start + share * length, free + 0.05)


def _stopped(slot: Slot, barge_in: float, rng: random.Random, timing: Timing) -> Slot:
    """The interrupted turn: it stops a reaction time after the barge-in, unless it ends by then anyway."""
    stop, fade = round(barge_in + rng.uniform(*timing.stop_after), 4), rng.uniform(*timing.fade)
    return replace(slot, stop=stop, fade=fade) if stop < slot.stop - 0.02 else slot
