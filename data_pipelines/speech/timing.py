"""When each turn of a script is spoken: gaps, overlaps, barge-ins, backchannels. Pure arithmetic on durations.

All times are drawn from tables of quantiles. `ppx-data timing` fits them to calls; those of the default are choices,
as the published work states no distribution.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import dropwhile
from pathlib import Path
from statistics import NormalDist
from typing import Any

from data_pipelines.files import digest
from data_pipelines.records.schema import Event, Turn
from model.errors import UserError

SIDE_OF = {"agent": "left", "user": "right"}


@dataclass(frozen=True)
class Table:
    """A distribution as its quantiles at evenly spaced probabilities from 0 to 1, linear in between.

    `count` is the number of events it was fitted to; 0 for a choice.
    """

    quantiles: tuple[float, ...]
    count: int = 0

    def draw(self, rng: random.Random) -> float:
        """One value; takes one number from `rng`."""
        at = rng.random() * (len(self.quantiles) - 1)
        low = int(at)
        high = min(low + 1, len(self.quantiles) - 1)
        return self.quantiles[low] + (at - low) * (self.quantiles[high] - self.quantiles[low])

    @staticmethod
    def uniform(low: float, high: float) -> "Table":
        """Returns a uniform distribution."""
        return Table((low, high))

    @staticmethod
    def normal(mean: float, deviation: float, low: float, high: float, num: int = 401) -> "Table":
        """Returns a normal distribution, its values clipped to low..high."""
        bell = NormalDist(mean, deviation)
        inner = (min(max(bell.inv_cdf(n / (num - 1)), low), high) for n in range(1, num - 1))
        return Table((low, *(round(value, 6) for value in inner), high))


@dataclass(kw_only=True, frozen=True)
class Timing:
    """Turn taking of one run. Times in seconds, rates in events a second."""

    name: str = "default"
    gap: Table = Table.normal(0.25, 0.35, -0.4, 1.5)
    """The gap between speakers, in seconds; below zero the turns overlap and nobody stops."""
    same_speaker_gap: float = 0.2
    """The least pause between two turns of one speaker, in seconds."""
    pause: Table = Table.uniform(0.2, 0.2)
    pause_rate: float = 0.0
    """Pauses in a second of a speaker's own turn; 0 leaves the pauses that the voice makes."""
    backchannel_rate: float = 0.0
    """Backchannels in a second of the other side's turn; 0 leaves those of the script."""
    backchannel_at: Table = Table.uniform(0.2, 0.8)
    """The share of the other side's turn at which a backchannel starts."""
    backchannel_seconds: Table = Table.uniform(0.3, 0.7)
    """The length of a backchannel, which decides which words are said."""
    barge_in_at: Table = Table.uniform(0.4, 1.0)
    """The share of the interrupted turn at which a barge-in starts."""
    stop_after: Table = Table.uniform(0.2, 0.7)
    """How long the interrupted speaker continues."""
    fade: Table = Table.uniform(0.04, 0.15)
    user_silence_share: float = 0.05
    """Share of user turns before which the user stays silent for a while."""
    user_silence: Table = Table.uniform(2.0, 6.0)
    lead_in: Table = Table.uniform(0.1, 0.6)
    lead_out: Table = Table.uniform(0.3, 1.0)

    @property
    def sha256(self) -> str:
        """Identity of all its numbers."""
        return digest(json.dumps(asdict(self), sort_keys=True))


LIMITS: dict[str, tuple[float, float]] = {
    "gap": (-2.0, 8.0),
    "same_speaker_gap": (0.0, 5.0),
    "pause": (0.0, 8.0),
    "pause_rate": (0.0, 2.0),
    "backchannel_rate": (0.0, 2.0),
    "backchannel_at": (0.0, 1.0),
    "backchannel_seconds": (0.0, 5.0),
    "barge_in_at": (0.0, 1.0),
    "stop_after": (0.0, 5.0),
    "fade": (0.001, 0.5),
    "user_silence_share": (0.0, 1.0),
    "user_silence": (0.0, 30.0),
    "lead_in": (0.0, 10.0),
    "lead_out": (0.0, 10.0),
}
"""What a file may hold: beyond it a dialogue would fail its gates or make no sense."""


def load_timing(name: str | Path) -> Timing:
    """`default`, or a file from `ppx-data timing`. Raises UserError naming the file and what is wrong in it."""
    if str(name) == "default":
        return Timing()
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--timing {path}: no such file: fit one with `ppx-data timing`, or use default", code="not-found"
        )
    try:
        raw = json.loads(path.read_text("utf-8"))["timing"]
        known = {field.name for field in fields(Timing)}
        if unknown := sorted(set(raw) - known):
            raise UserError(f"{path}: unknown key {unknown[0]!r}: use {', '.join(sorted(known))}", code="bad-record")
        return Timing(**{key: value if key == "name" else _parsed(path, key, value) for key, value in raw.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        if isinstance(why, UserError):
            raise
        raise UserError(
            f"{path}: not a timing file ({why}): fit one with `ppx-data timing`",
            code="unreadable" if isinstance(why, (json.JSONDecodeError, UnicodeDecodeError)) else "bad-record",
        ) from why


def _parsed(path: Path, key: str, value: Any) -> Any:
    """One table or number of a file, within its limits."""
    is_table = isinstance(getattr(Timing(), key), Table)
    values = tuple(map(float, value["quantiles"])) if is_table else (float(value),)
    low, high = LIMITS[key]
    if len(values) < 1 + is_table or list(values) != sorted(values) or not low <= values[0] <= values[-1] <= high:
        raise UserError(
            f"{path}: {key} must be {'rising quantiles' if is_table else 'a number'} in {low:g}..{high:g}",
            code="bad-record",
        )
    return Table(values, int(value.get("count", 0))) if is_table else values[0]


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
        """Whether the turn ends before its natural end."""
        return self.fade > 0


@dataclass(kw_only=True, frozen=True)
class Schedule:
    """All slots in the order of the turns, the events among them, and the length of the dialogue."""

    slots: tuple[Slot, ...]
    events: tuple[Event, ...]
    seconds: float


def place(turns: Sequence[Turn], seconds: Sequence[float], rng: random.Random, timing: Timing) -> Schedule:
    """Places turns that last `seconds` each. Two turns of one side never overlap.

    A barge-in or backchannel refers to the last turn before it that is no backchannel; that turn must be the other
    side's. Raises: UserError if it is not.
    """
    slots: list[Slot] = []
    events: list[Event] = []
    free = {"left": 0.0, "right": 0.0}  # Times at which each side falls silent.
    floor: int | None = None  # The slot whose speaker has the floor.
    shares: list[float] = []  # The shares of that slot at which its backchannels start.
    for n, (turn, length) in enumerate(zip(turns, seconds, strict=True)):
        side = SIDE_OF[turn.speaker]
        if floor is None:
            if turn.kind != "normal":
                raise UserError(
                    f"turn {n} is a {turn.kind} with no turn before it: start with a normal turn", code="bad-record"
                )
            start = timing.lead_in.draw(rng)
        elif turn.kind == "normal":
            start = _after(slots[floor], turns[floor].kind, side, free, turn, rng, timing, events)
        else:
            if slots[floor].side == side:
                raise UserError(
                    f"turn {n} is a {turn.kind} of the {turn.speaker} on the {turn.speaker}'s own turn",
                    code="bad-record",
                )
            share = timing.barge_in_at.draw(rng) if turn.kind == "barge_in" else shares.pop(0)
            start = max(slots[floor].start + share * (slots[floor].stop - slots[floor].start), free[side] + 0.05)
        start = round(start, 4)  # Word times are stored with four decimals, too.
        if turn.kind == "barge_in" and floor is not None and start < slots[floor].stop:
            slots[floor] = _stopped(slots[floor], start, rng, timing)
            free[slots[floor].side] = slots[floor].stop
            events.append(_event("barge_in", side, start, start + length, stop=round(slots[floor].stop, 4)))
        elif turn.kind == "backchannel":
            events.append(_event("backchannel", side, start, start + length))
        slots.append(Slot(turn=n, side=side, start=start, stop=start + length))
        free[side] = start + length
        if turn.kind != "backchannel":
            floor, shares = n, _backchannel_shares(turns[n + 1 :], rng, timing)
    stop = max(free.values()) + timing.lead_out.draw(rng)
    return Schedule(slots=tuple(slots), events=tuple(events), seconds=stop)


def _event(kind: str, side: str, start: float, end: float, stop: float | None = None) -> Event:
    return Event(kind=kind, side=side, start=round(start, 4), end=round(end, 4), stop=stop)


def _after(
    floor: Slot,
    floor_kind: str,
    side: str,
    free: dict[str, float],
    turn: Turn,
    rng: random.Random,
    timing: Timing,
    events: list[Event],
) -> float:
    """Start of a normal turn that follows the floor turn."""
    gap = timing.gap.draw(rng)
    if side == floor.side:
        gap = max(gap, timing.same_speaker_gap)
    elif floor_kind == "barge_in":  # The one who was interrupted lets the other finish.
        gap = max(gap, 0.0)
    else:  # Nobody talks over a one-word turn from its first sound on.
        gap = max(gap, -0.5 * (floor.stop - floor.start))
    if turn.speaker == "user" and rng.random() < timing.user_silence_share:
        silence = timing.user_silence.draw(rng)
        begin = max(free.values())
        events.append(_event("user_silence", side, begin, begin + silence))
        return begin + silence
    return max(floor.stop + gap, free[side] + 0.05)


def _backchannel_shares(following: Sequence[Turn], rng: random.Random, timing: Timing) -> list[float]:
    """Returns where the next backchannels of the script start, as shares of the turn that they accompany."""
    rest = list(dropwhile(lambda turn: turn.kind == "backchannel", following))
    shares = sorted(timing.backchannel_at.draw(rng) for _ in range(len(following) - len(rest)))
    if rest and rest[0].kind == "barge_in":  # The backchannels leave room for the barge-in.
        shares = [0.4 * share for share in shares]
    return shares


def _stopped(slot: Slot, barge_in: float, rng: random.Random, timing: Timing) -> Slot:
    """The interrupted turn: it stops a reaction time after the barge-in, unless it ends by then anyway."""
    stop, fade = round(barge_in + timing.stop_after.draw(rng), 4), timing.fade.draw(rng)
    return replace(slot, stop=stop, fade=fade) if stop < slot.stop - 0.02 else slot
