"""Judging what a model said: is it whole, is it JSON, does it fit the schema and the rules, does it repeat itself?"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.extras import require

Check = Callable[[dict[str, Any]], list[str]]
"""Rules that a schema cannot say: answers what is wrong, in words meant for the model; empty for a good answer."""

REFUSAL = re.compile(
    r"\W*(I'?m (very )?sorry|I (cannot|can't|can not|won't)|Sorry,|As an AI|I am unable)", re.IGNORECASE
)
LONGEST_LOOP, LOOP_REPEATS, LOOP_WORDS = 24, 5, 15
MAX_PROBLEMS = 6


@dataclass(kw_only=True, frozen=True)
class Verdict:
    """The value of a valid answer, or the kind of fault ("prose", "schema", ...) and the problems in words."""

    value: dict[str, Any] | None = None
    fault: str = ""
    problems: tuple[str, ...] = ()


def judge(answer: dict[str, Any], schema: dict[str, Any], check: Check, answer_format: str) -> Verdict:
    """What is to be thought of an answer as stored in the cache."""
    text = (answer["content"] or "").strip()
    if answer["refusal"] or answer["finish_reason"] == "content_filter" or REFUSAL.match(text):
        return Verdict(fault="refusal", problems=(f"the model refused: {shortened(answer['refusal'] or text)}",))
    if repeats_itself(text):
        return Verdict(fault="repeats", problems=("the answer repeats itself",))
    if answer["finish_reason"] == "length":
        return Verdict(fault="length", problems=("the answer was cut at the limit of tokens: answer more briefly",))
    try:
        value = json.loads(_object_in(text) if answer_format == "text" else text)
    except ValueError as why:
        fault = "malformed JSON" if text[:1] in "{[" and text else "prose"
        return Verdict(fault=fault, problems=(f"the answer is not a JSON object ({why}): {shortened(text)}",))
    validator = require("jsonschema", extra="llm").Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
    if errors:
        found = [f"{error.json_path}: {shortened(error.message)}" for error in errors]
        return Verdict(fault="schema", problems=tuple(found[:MAX_PROBLEMS]))
    if found := check(value):
        return Verdict(fault="rules", problems=tuple(found[:MAX_PROBLEMS]))
    return Verdict(value=value)


def shortened(text: str, length: int = 160) -> str:
    """One line of a text, cut."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def repeats_itself(text: str) -> bool:
    """True if a run of up to 24 words comes five times or more in a row (15 words at least): a loop."""
    words = re.findall(r"[\w']+", text.lower())
    for period in range(1, LONGEST_LOOP + 1):
        run = 0
        for n in range(period, len(words)):
            run = run + 1 if words[n] == words[n - period] else 0
            if run + period >= max(LOOP_REPEATS * period, LOOP_WORDS):
                return True
    return False


def _object_in(text: str) -> str:
    """The JSON object in an answer in plain text, after what a reasoning model thinks aloud."""
    text = text.rpartition("</think>")[2]
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text
