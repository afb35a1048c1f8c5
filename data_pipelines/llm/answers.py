"""Questions to a model and the judgement of its answers: complete, JSON, of the schema, by the rules, without loops?"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from model.extras import require

T = TypeVar("T")

REFUSAL = re.compile(
    r"\W*(I'?m (very )?sorry|I (cannot|can't|can not|won't)|Sorry,|As an AI|I am unable)", re.IGNORECASE
)
LONGEST_LOOP, LOOP_REPEATS, LOOP_WORDS = 24, 5, 15
MAX_PROBLEMS = 6
"""At most this many problems of an answer are named to the model."""


@dataclass(kw_only=True, frozen=True)
class Question(Generic[T]):
    """What a model is asked, and how its answer becomes a record."""

    name: str
    """The name of the schema."""
    system: str
    user: str
    schema: dict[str, Any]
    """The JSON schema of the object that the model returns."""
    seed: int
    """Makes the answer reproducible where the server honours it, and keeps equal questions apart in the cache."""
    read: Callable[[dict[str, Any]], T]
    """Makes the record out of an object that fits the schema."""
    check: Callable[[T], list[str]] = lambda value: []
    """The rules that a schema cannot state: returns what is wrong, in words meant for the model, or []."""


@dataclass(kw_only=True, frozen=True)
class Answer:
    """What is kept of a chat completion; counts are None where the server states none."""

    content: str | None
    refusal: str | None
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    answer_tokens: int | None


@dataclass(kw_only=True, frozen=True)
class Verdict(Generic[T]):
    """The record of a valid answer, or the kind of fault ("prose", "schema", ...) and the problems in words."""

    value: T | None = None
    fault: str = ""
    problems: tuple[str, ...] = ()


def judge(answer: Answer, question: Question[T], answer_format: str) -> Verdict[T]:
    """Reads an answer, or finds its first kind of fault. `answer_format` is one of `settings.FORMATS`."""
    text = (answer.content or "").strip()
    if answer.refusal or answer.finish_reason == "content_filter" or REFUSAL.match(text):
        return Verdict(fault="refusal", problems=(f"the model refused: {shortened(answer.refusal or text)}",))
    if repeats_itself(text):
        return Verdict(fault="repeats", problems=("the answer repeats itself",))
    if answer.finish_reason == "length":
        return Verdict(fault="length", problems=("the answer was cut at the limit of tokens: answer more briefly",))
    validator = require("jsonschema", extra="llm").Draft202012Validator(question.schema)
    try:
        value = json.loads(_object_in(text) if answer_format == "text" else text, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could not be written to a file
        errors = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
    except (ValueError, RecursionError) as why:
        fault = "malformed JSON" if text[:1] in "{[" and text else "prose"
        return Verdict(fault=fault, problems=(f"the answer is not a JSON object ({why}): {shortened(text)}",))
    if errors:
        found = [f"{error.json_path}: {shortened(error.message)}" for error in errors]
        return Verdict(fault="schema", problems=tuple(found[:MAX_PROBLEMS]))
    record = question.read(value)
    if found := question.check(record):
        return Verdict(fault="rules", problems=tuple(found[:MAX_PROBLEMS]))
    return Verdict(value=record)


def shortened(text: str, length: int = 160) -> str:
    """A text as one line of at most `length` characters; "..." stands for the rest."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def repeats_itself(text: str) -> bool:
    """True for a loop: a run of up to 24 words comes five times or more in a row, and at least 15 words long."""
    words = re.findall(r"[\w']+", text.lower())
    for period in range(1, LONGEST_LOOP + 1):
        run = 0
        for n in range(period, len(words)):
            run = run + 1 if words[n] == words[n - period] else 0
            if run + period >= max(LOOP_REPEATS * period, LOOP_WORDS):
                return True
    return False


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object_in(text: str) -> str:
    """The JSON object within plain text, after what a reasoning model writes before its answer."""
    text = text.rpartition("</think>")[2]
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text
