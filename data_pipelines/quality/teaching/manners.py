"""Does the user sometimes say no, and sometimes give a name or number that is not the one in the prompt?"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from data_pipelines.quality.teaching.lesson import Lesson, Value, share_of
from data_pipelines.text.claims import NUMBER, claims
from data_pipelines.writer.problems import people
from data_pipelines.writer.wording import SENTENCE

OFFER = re.compile(
    r"\b(would you like|would you care|do you want|want me to|(shall|should|may|can|could) (i|we) "
    r"(put|add|book|sign|set|send|offer|reserve|schedule|hold|order|correct|fix|move|change|take|cancel|block|interest)"
    r"|(does|would|will|is) (that|this|it) (work|suit|be|okay|all right|fine|good)|how about|interested in)\b",
    re.IGNORECASE,
)
"""Yes-or-no questions of an agent that propose something."""
NO_OFFER = re.compile(
    r"^(what|which|when|where|who|why|how (?!about))|\b(anything|something|what) else\b|\bname\b|\bnumber\b",
    re.IGNORECASE,
)
"""Questions that look like offers: open ones, the last one of a call, and requests for a name."""
DECLINE = re.compile(
    r"^((um|uh|er|well|oh|hmm|hm|actually|sorry|thanks|thank you)\W+)*"
    r"(no\b|nope|nah|not |i'd rather not|i'd rather|i don't|i can't|never mind|maybe later|maybe not|i'll pass|i'm good"
    r"|that's too|rather not|don't|that doesn't|that won't|neither)",
    re.IGNORECASE,
)
NAME_ASKED = re.compile(r"\bname\b|\bspeaking with\b|\bwho (am|do|should) i\b|\bon the line\b", re.IGNORECASE)
NUMBER_ASKED = re.compile(r"\b(numbers?|code|digits|id|reference|confirm)\b", re.IGNORECASE)


def offers(talk: Lesson) -> list[bool]:
    """For each offer of the agent that the user answers, whether it is declined; by words alone."""
    found = []
    for before, after in pairwise(talk.turns):
        question = SENTENCE.split(before.text)[-1]
        is_offer = question.endswith("?") and OFFER.search(question) and not NO_OFFER.search(question)
        if before.speaker == "agent" and after.speaker == "user" and is_offer:
            found.append(DECLINE.match(after.text) is not None)
    return found


def verifications(talk: Lesson) -> list[bool]:
    """For each name or id of the prompt that the user is asked for and gives, whether it is another one."""
    return [not match for match in _matches(talk)]


def _matches(talk: Lesson) -> Iterator[bool]:
    stated = {kind: [fact for fact in talk.script.facts if fact.type == kind] for kind in ("name", "id")}
    for before, after in pairwise(talk.turns):
        if before.speaker != "agent" or after.speaker != "user" or "?" not in before.text:
            continue
        question = SENTENCE.split(before.text)[-1]
        if stated["name"] and NAME_ASKED.search(question):
            given = {word.lower() for word in claims(after.text, people()) if word.isalpha()}
            if given:
                yield any(given & {part.lower() for part in fact.text.split()} for fact in stated["name"])
        elif stated["id"] and NUMBER_ASKED.search(question):
            numbers = {_digits(token) for token in NUMBER.findall(after.text)} - {""}
            if numbers:
                yield bool(numbers & {_digits(fact.text) for fact in stated["id"]})


def _digits(text: str) -> str:
    return "".join(re.findall(r"\d", text))


@dataclass
class Manners:
    """Collects offers and verifications of many talks."""

    declined: list[bool] = field(default_factory=list)
    mismatching: list[bool] = field(default_factory=list)

    def add(self, talk: Lesson) -> None:
        """Adds one talk."""
        self.declined += offers(talk)
        self.mismatching += verifications(talk)

    def values(self) -> Mapping[str, Value]:
        """The measures, by name."""
        return {
            "declined": share_of(self.declined, "offers"),
            "mismatching": share_of(self.mismatching, "verifications"),
        }
