"""Every measure of the audit: what it is called, its limits, what real calls show, and what to do about a breach."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data_pipelines.quality.teaching.lesson import Value

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "audit"
"""Where the shipped limits are, in a checkout as well as in a wheel."""

Range = list[float | None] | None
"""The least and the most that hold; None for no limit."""

FAILS = "FAILS"
FISHER = "Fisher, by the Moshi paper"
RECALLED = "recalled, not looked up"


@dataclass(frozen=True)
class Measure:
    """How a value is shown, and what to do where it is beyond its limit."""

    title: str
    remedy: str = ""
    real: str = ""
    """What real calls show, with the source; "" where it is not known or means nothing."""
    is_share: bool = False

    def shown(self, value: float) -> str:
        """The value as the table prints it."""
        return f"{value:.1%}" if self.is_share else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _measure(title: str, remedy: str = "", real: str = "", is_share: bool = False) -> Any:
    return field(default=None, metadata={"measure": Measure(title, remedy, real, is_share)})


def _share(title: str, remedy: str = "", real: str = "") -> Any:
    return _measure(title, remedy, real, is_share=True)


_TIMING = "give `ppx-data speak --timing` a file fitted to real calls"
_HOLD = "let the user pause inside turns (pause_rate of the timing), so that silence alone does not mean a change"
_KINDS = "let the writer ask every kind of question about equally often"
_NEW = "keep whole domains, names and phrasings for the held-out scripts alone"
_LONGER = "write longer turns beside the short ones"
_MONOLOGUES = "write some turns of 25 to 80 words and a few monologues"
_PROMPTS = "write prompts of 15 to 300 words"


@dataclass(kw_only=True, frozen=True)
class AuditLimits:
    """The least and the most of every measure, as [least, most]; null, also inside, stands for no limit.

    The values are in configs/audit/default.yaml. The order is that of the table.
    """

    order_rule: Range = _share(
        "blind reader over chance: the first unsaid fact", "shuffle the facts of the prompt, the unused ones included"
    )
    type_rule: Range = _share(
        "blind reader over chance: a fact of the type asked for", "state another unsaid fact of the same type"
    )
    question_rule: Range = _share(
        "blind reader over chance: class of the answer by the question's words",
        "ask the same questions where the fact is present, absent, denied and changed",
    )
    answer_entropy: Range = _measure(
        "H(answer class | wording), bits",
        "ask the same questions where the fact is present, absent, denied and changed",
    )
    unanswered: Range = _share("questions that the prompt leaves open", "ask more for what the prompt does not say")
    declined: Range = _share("offers declined", "let users decline about a quarter of the offers")
    mismatching: Range = _share(
        "names and ids given that are not the prompt's",
        "let a tenth of the users give a name or id that does not match",
    )
    q0: Range = _share("scripts with Q0, a name recalled", _KINDS)
    q1: Range = _share("scripts with Q1, a detail", _KINDS)
    q2: Range = _share("scripts with Q2, a detail", _KINDS)
    q3: Range = _share("scripts with Q3, a request that cannot be met", _KINDS)
    q4: Range = _share("scripts with Q4, a rude user", _KINDS)
    q5: Range = _share("scripts with Q5, left open", _KINDS)
    q6: Range = _share("scripts with Q6, unrelated", _KINDS)
    takeover_all_0_2: Range = _share("agent takes the floor | user silent 0.2 s")
    takeover_all_0_4: Range = _share("agent takes the floor | user silent 0.4 s")
    takeover_all_0_5: Range = _share("agent takes the floor | user silent 0.5 s", _HOLD)
    takeover_all_0_8: Range = _share("agent takes the floor | user silent 0.8 s")
    takeover_all_1_2: Range = _share("agent takes the floor | user silent 1.2 s")
    takeover_all_2: Range = _share("agent takes the floor | user silent 2 s")
    takeover_complete_0_2: Range = _share("- after a complete clause, 0.2 s")
    takeover_complete_0_4: Range = _share("- after a complete clause, 0.4 s")
    takeover_complete_0_5: Range = _share("- after a complete clause, 0.5 s")
    takeover_complete_0_8: Range = _share("- after a complete clause, 0.8 s")
    takeover_complete_1_2: Range = _share("- after a complete clause, 1.2 s")
    takeover_complete_2: Range = _share("- after a complete clause, 2 s")
    takeover_incomplete_0_2: Range = _share("- after an incomplete clause, 0.2 s")
    takeover_incomplete_0_4: Range = _share("- after an incomplete clause, 0.4 s")
    takeover_incomplete_0_5: Range = _share(
        "- after an incomplete clause, 0.5 s", "let the agent wait wherever the user's clause goes on"
    )
    takeover_incomplete_0_8: Range = _share("- after an incomplete clause, 0.8 s")
    takeover_incomplete_1_2: Range = _share("- after an incomplete clause, 1.2 s")
    takeover_incomplete_2: Range = _share("- after an incomplete clause, 2 s")
    pause: Range = _measure("pauses, s/min", _TIMING, f"5.5 ({FISHER})")
    gap: Range = _measure("gaps, s/min", _TIMING, f"4.4 ({FISHER})")
    overlap: Range = _measure("overlap, s/min", _TIMING, f"3.6 ({FISHER})")
    backchannels: Range = _measure(
        "backchannels a minute, both sides", "raise backchannel_rate of the timing", "about 16 (CANDOR)"
    )
    backchannels_agent: Range = _measure("backchannels a minute, agent")
    backchannels_user: Range = _measure("backchannels a minute, user")
    turn_words_user: Range = _measure("words a turn, user", _LONGER, f"10 ({RECALLED})")
    longest_turn_user: Range = _measure(
        "words of the longest turn, user",
        _MONOLOGUES,
        f"100+ ({RECALLED})",
    )
    turn_words_agent: Range = _measure("words a turn, agent", _LONGER, f"10 ({RECALLED})")
    longest_turn_agent: Range = _measure("words of the longest turn, agent", _MONOLOGUES, f"100+ ({RECALLED})")
    hesitations_user: Range = _measure(
        "um, uh per 100 words, user", "let users hesitate anywhere in a turn", f"2 to 4 ({RECALLED})"
    )
    hesitations_agent: Range = _measure("um, uh per 100 words, agent", "", f"2 to 4 ({RECALLED})")
    contested: Range = _share(
        "barge-ins about a value nobody had said", "place barge-ins that check a value after it was said"
    )
    cut_together: Range = _share(
        "cut turns whose words and sound end within a frame", "cut at the end of a word, or keep the word that is cut"
    )
    lag_mean: Range = _measure("text lag, frames, mean")
    lag_95: Range = _measure("text lag, frames, 95 %", "slow the speech down, or take a tokenizer with longer pieces")
    lag_longest: Range = _measure("text lag, frames, longest", "gate dialogues with `ppx-data gate --tokenizer`")
    word_end_padding: Range = _share("text frames that are EPAD")
    pieces: Range = _share("text frames that are pieces of words")
    overflow: Range = _share(
        "words with more pieces than frames", "slow the speech down, or take a tokenizer with longer pieces"
    )
    prompt_shortest: Range = _measure("words of the shortest role prompt", _PROMPTS)
    prompt_median: Range = _measure("words of the median role prompt")
    prompt_longest: Range = _measure("words of the longest role prompt", _PROMPTS)
    prompt_styles: Range = _measure("styles of role prompts", "write prompts in several styles")
    facts: Range = _measure("facts a prompt", "state more facts, distractors included")
    repeated: Range = _share("sentences whose wording occurs more than 10 times", "use a language model as the writer")
    distinct_1: Range = _measure("distinct-1")
    distinct_2: Range = _measure("distinct-2")
    known_questions: Range = _share("held-out questions whose wording is in training", _NEW)
    known_sentences: Range = _share("held-out agent sentences whose wording is in training", _NEW)
    known_names: Range = _share("held-out names that are in training", _NEW)
    known_domains: Range = _share("held-out talk whose domain is in training", _NEW)

    def __post_init__(self) -> None:
        """Raises: ValueError for a range without two ends, or whose ends are the wrong way round."""
        for name in MEASURES:
            limit = getattr(self, name)
            if limit is not None and (len(limit) != 2 or (None not in limit and limit[0] > limit[1])):
                raise ValueError(f"{name}: {list(limit)} is no range: write [least, most], null for no limit")


MEASURES: dict[str, Measure] = {f.name: f.metadata["measure"] for f in fields(AuditLimits)}
"""Every measure by name, in the order of the table."""


def holds(value: float, limit: Range) -> bool:
    """Whether a value lies within [least, most]."""
    low, high = limit or (None, None)
    return (low is None or value >= low) and (high is None or value <= high)


def breaches(values: Mapping[str, Value], limits: AuditLimits) -> list[str]:
    """One line for each measure beyond its limit: its name, value and limit, and the remedy."""
    lines = []
    for name, measure in MEASURES.items():
        limit, found = getattr(limits, name), values.get(name)
        if found is not None and found.value is not None and not holds(found.value, limit):
            lines.append(
                f"{name} is {measure.shown(found.value)}, {limit_text(measure, limit)} holds: {measure.remedy}"
            )
    return lines


def cell(name: str, value: Value, limits: AuditLimits) -> str:
    """A value with its interval and verdict, e.g. "35.2% +-1.6% FAILS"; "-" if it was not measured."""
    if value.value is None:
        return "-"
    measure, limit = MEASURES[name], getattr(limits, name)
    verdict = "" if limit is None else " ok" if holds(value.value, limit) else f" {FAILS}"
    margin = f" +-{measure.shown(value.margin)}" if value.margin is not None else ""
    return measure.shown(value.value) + margin + verdict


def limit_text(measure: Measure, limit: Range) -> str:
    """A limit in words: "at most 5.0%", "4.12 to 6.88"; "" without one."""
    low, high = (None if bound is None else measure.shown(bound) for bound in limit or (None, None))
    if low is None or high is None:
        return f"at most {high}" if high else f"at least {low}" if low else ""
    return f"{low} to {high}"
