"""Text from a model, made plain, and the rules that any dialogue written by a model must keep."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from data_pipelines.records.schema import Turn
from data_pipelines.records.typed import record_of
from data_pipelines.text.rules import contacts
from data_pipelines.writer.problems import alternation_problems
from data_pipelines.writer.wording import SPEAKABLE

T = TypeVar("T")

MAX_TURN_WORDS = 80
SIMILAR_TURNS, SIMILAR_WORDS = 0.8, 5
"""A turn of at least 5 different words repeats another one if they share 80 % of all their words."""
PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": "", "\u201d": "", '"': "", "\u2013": "-", "\u2011": "-", "\u2010": "-",
    "\u2014": ", ", "\u2026": "...", "\u00a0": " ", "\u202f": " ", ";": ",", "*": "", "&": " and ",
})  # fmt: skip


def object_schema(**properties: Any) -> dict[str, Any]:
    """JSON schema of an object with these properties, all required; each is a type by name or a whole schema."""
    whole = {name: {"type": value} if isinstance(value, str) else value for name, value in properties.items()}
    return {"type": "object", "properties": whole, "required": list(whole), "additionalProperties": False}


def array_of(**properties: Any) -> dict[str, Any]:
    """JSON schema of an array of such objects."""
    return {"type": "array", "items": object_schema(**properties)}


def plain(text: str) -> str:
    """A text in characters that every speech engine reads, as far as nothing is lost: "it\u2019s" becomes "it's"."""
    text = " ".join(text.translate(PLAIN).split())
    return re.sub(r"\s+([,.?!])", r"\1", text)


def plain_value(value: Any) -> Any:
    """A JSON value in which all texts are plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    return {name: plain_value(item) for name, item in value.items()} if isinstance(value, dict) else value


def plain_record(kind: type[T]) -> Callable[[dict[str, Any]], T]:
    """A function that makes a record of `kind` out of a model's JSON object, with plain texts."""
    return lambda value: record_of(kind, plain_value(value))


def turn_problems(turns: Sequence[Turn]) -> list[str]:
    """What is wrong with the turns of a dialogue, in words for the model; [] for good ones."""
    found = alternation_problems(turns)
    for n, turn in enumerate(turns):
        words = len(turn.text.split())
        if not SPEAKABLE.fullmatch(turn.text):
            odd = "".join(sorted(set(re.sub(SPEAKABLE.pattern, "", turn.text))))
            found.append(f"turn {n} must be plain speech, without {odd!r}" if odd else f"turn {n} is empty")
        if words > MAX_TURN_WORDS:
            found.append(f"turn {n} has {words} words: at most {MAX_TURN_WORDS}")
        found += [f"turn {n} holds {kind}: leave it out" for kind in contacts(turn.text)]
    return found + _repeats(turns)


def _repeats(turns: Sequence[Turn]) -> list[str]:
    """Turns of one speaker that say nearly the same as an earlier one."""
    found = []
    bags = [frozenset(re.findall(r"[a-z0-9']+", turn.text.lower())) for turn in turns]
    for n, turn in enumerate(turns):
        for k in range(n):
            both, either = len(bags[n] & bags[k]), len(bags[n] | bags[k])
            if turns[k].speaker == turn.speaker and len(bags[n]) >= SIMILAR_WORDS and both >= SIMILAR_TURNS * either:
                found.append(f"turn {n} repeats turn {k}: {turn.text!r}")
                break
    return found
