"""Whether an agent is plainly broken: silent, never stopping, noisy or looping. No other model judges; all is counted.

Each fault has a closed definition, with the limits below. They find what is broken, and say nothing about what is good.
"""

# Shapes: A agent streams, S samples (at 24 kHz), T frames

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.text import SPECIAL_NAMES
from ppx_train.inference.loops import longest_code_loop, repeated_phrase
from ppx_train.inference.offline import AgentSide
from ppx_train.inference.sound_faults import CLIPPED_LEVEL, flatness, longest_steady
from ppx_train.inference.speaking import Frames, frames_of, seconds, speaking, stretches
from ppx_train.inference.timeline import AgentWord

TURN_SECONDS = 1.0
"""A silence of the user of this length ends a turn."""
REPLY_SECONDS, SPOKEN_SECONDS = 5.0, 0.3
"""A turn is answered if the agent speaks for SPOKEN_SECONDS within REPLY_SECONDS after it, before the user goes on."""
MOST_UNANSWERED = 0.5
"""An agent is silent that leaves this share of the user's turns unanswered."""
MOST_OVERLAP = 0.5
"""An agent never stops that speaks during more than this share of the user's speech."""
LONGEST_STRETCH = 20.0
"""... or for more than this number of seconds without a pause."""
MOST_CLIPPED = 0.001
"""An agent is noisy if more than this share of its samples is clipped."""
LONGEST_STEADY = 2.0
"""... if its sound keeps its level for this long, in seconds, as neither speech nor singing does."""
MOST_FLAT = 0.2
"""... if the spectrum of its sound is flatter than this, where 1 is white noise."""
LONGEST_WORDLESS = 3.0
"""... or if it sounds for longer than this, in seconds, between two pieces of text."""
LONGEST_LOOP = 2.0
"""An agent is looping if the first codebook repeats itself for this long, in seconds, or text does (see `loops`)."""

State = Literal["ok", "fails", "not judged"]
NAMES = ("silent", "never stops", "noisy", "looping")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, whether the agent has it, and by which figures."""

    name: str
    state: State
    why: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was measured in one conversation, and the faults in the order of NAMES.

    Units: what ends in seconds is seconds, shares are of 1. reply_seconds: the median time from the end of a turn to
    the agent's next word; None without an answered turn.
    """

    user_seconds: float
    agent_seconds: float
    turns: int
    """Turns of the user that can be judged: answered ones, and those after which the user waits for long enough."""
    unanswered: int
    reply_seconds: float | None
    overlap_share: float
    longest_stretch_seconds: float
    clipped_share: float
    steady_seconds: float
    flatness: float
    wordless_seconds: float
    phrase: str
    """What is said most often in a row; "" if nothing is said twice."""
    phrase_count: int
    loop_seconds: float
    faults: tuple[Fault, ...]

    @property
    def failed(self) -> list[Fault]:
        """The faults that the agent has."""
        return [fault for fault in self.faults if fault.state == "fails"]

    def __str__(self) -> str:
        """One line for the terminal."""
        left = [fault.name for fault in self.faults if fault.state == "not judged"]
        found = "; ".join(f"{fault.name} ({fault.why})" for fault in self.failed)
        return (f"fails: {found}" if found else "ok") + (f", not judged: {', '.join(left)}" if left else "")


def judge(agent: AgentSide, words: Sequence[AgentWord]) -> Judgement:
    """Measures a conversation and judges it. words: of the agent, in order."""
    user_T, agent_T = speaking(agent.user_S), speaking(agent.agent_S)
    turns, unanswered, replies = _turns(user_T, agent_T)
    overlap_share = float((user_T & agent_T).sum() / max(1, user_T.sum()))
    stretch = seconds(max((stop - start for start, stop in stretches(agent_T)), default=0))
    clipped = float(np.mean(np.abs(agent.agent_S) >= CLIPPED_LEVEL))
    steady, flat = seconds(longest_steady(agent.agent_S, agent_T)), flatness(agent.agent_S, agent_T)
    has_text_T = np.array([i >= len(SPECIAL_NAMES) for i in agent.text_ids])
    wordless = seconds(_wordless(agent_T, has_text_T))
    phrase = repeated_phrase([word.text for word in words])
    loop = seconds(longest_code_loop(agent.codes_AT[1].numpy(), agent_T))
    faults = (
        _silent(turns, unanswered, seconds(int(agent_T.sum()))),
        _never_stops(seconds(int(user_T.sum())), overlap_share, stretch),
        _noisy(clipped, steady, flat, wordless),
        _looping(phrase.text, phrase.count, phrase.is_loop, loop),
    )
    return Judgement(
        user_seconds=seconds(int(user_T.sum())),
        agent_seconds=seconds(int(agent_T.sum())),
        turns=turns,
        unanswered=unanswered,
        reply_seconds=float(np.median(replies)) if replies else None,
        overlap_share=round(overlap_share, 4),
        longest_stretch_seconds=stretch,
        clipped_share=round(clipped, 6),
        steady_seconds=steady,
        flatness=round(flat, 4),
        wordless_seconds=wordless,
        phrase=phrase.text,
        phrase_count=phrase.count,
        loop_seconds=loop,
        faults=faults,
    )


def _turns(user_T: Frames, agent_T: Frames) -> tuple[int, int, list[float]]:
    """How many turns can be judged, how many of them are unanswered, and after how long the others are answered."""
    edges = [*stretches(user_T), (len(user_T), len(user_T))]
    judged, unanswered, replies = 0, 0, []
    for (_, stop), (following, _) in itertools.pairwise(edges):
        is_last = following == len(user_T)
        if following - stop < frames_of(TURN_SECONDS) and not is_last:
            continue  # The user pauses within a turn.
        window = agent_T[stop : min(following, stop + frames_of(REPLY_SECONDS))]
        if window.sum() >= frames_of(SPOKEN_SECONDS):
            judged += 1
            replies.append(seconds(int(np.flatnonzero(window)[0])))
        elif len(window) == frames_of(REPLY_SECONDS):
            judged, unanswered = judged + 1, unanswered + 1
    return judged, unanswered, replies


def _wordless(agent_T: Frames, has_text_T: Frames) -> int:
    """The most frames that sound between two frames with text, or before the first, or after the last one."""
    bounds = [0, *np.flatnonzero(has_text_T).tolist(), len(agent_T)]
    return max(int(agent_T[a:b].sum()) for a, b in itertools.pairwise(bounds))


def _fault(name: str, whys: Sequence[str], otherwise: str) -> Fault:
    return Fault(name=name, state="fails" if whys else "ok", why=", ".join(whys) or otherwise)


def _silent(turns: int, unanswered: int, spoken: float) -> Fault:
    whys = []
    if spoken < SPOKEN_SECONDS:
        whys.append(f"{spoken:.1f} s of speech")
    elif turns and unanswered >= MOST_UNANSWERED * turns:
        whys.append(f"{unanswered} of {turns} turns without an answer")
    return _fault("silent", whys, f"{spoken:.1f} s of speech, {turns - unanswered} of {turns} turns answered")


def _never_stops(user_spoken: float, overlap_share: float, stretch: float) -> Fault:
    whys = []
    if user_spoken >= TURN_SECONDS and overlap_share > MOST_OVERLAP:
        whys.append(f"speaks during {overlap_share:.0%} of the user's speech")
    if stretch > LONGEST_STRETCH:
        whys.append(f"{stretch:.1f} s without a pause")
    if not whys and user_spoken < TURN_SECONDS:
        return Fault(name="never stops", state="not judged", why=f"the user speaks for {user_spoken:.1f} s")
    return _fault("never stops", whys, f"{overlap_share:.0%} overlap, at most {stretch:.1f} s without a pause")


def _noisy(clipped: float, steady: float, flat: float, wordless: float) -> Fault:
    whys = []
    if clipped > MOST_CLIPPED:
        whys.append(f"{clipped:.1%} of the samples clipped")
    if steady >= LONGEST_STEADY:
        whys.append(f"{steady:.1f} s at a constant level")
    if flat > MOST_FLAT:
        whys.append(f"a spectrum like noise, flatness {flat:.2f}")
    if wordless > LONGEST_WORDLESS:
        whys.append(f"{wordless:.1f} s of sound without a word")
    return _fault("noisy", whys, f"at most {wordless:.1f} s of sound without a word")


def _looping(phrase: str, count: int, is_loop: bool, loop: float) -> Fault:
    whys = []
    if is_loop:
        whys.append(f'"{phrase}" {count} times in a row')
    if loop >= LONGEST_LOOP:
        whys.append(f"the same codes again and again for {loop:.1f} s")
    return _fault("looping", whys, f'"{phrase}" {count} times in a row' if count > 1 else "no phrase twice in a row")
