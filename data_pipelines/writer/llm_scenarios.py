"""The upper levels of the hierarchy: the scenarios of a domain, each with a description, written by a model.

A domain's scenarios are drawn one after the other until there are enough; one that resembles an earlier one is drawn
again. They depend on the domain, the seed and the settings alone, whichever script needs them first.
"""

import re
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from data_pipelines.files import digest
from data_pipelines.llm.answers import Question
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.text.rules import contacts
from data_pipelines.writer.llm_text import object_schema, plain_value

SIMILAR_DESCRIPTIONS, SHINGLE_WORDS = 0.5, 3
"""Two descriptions are similar if they share half of all their runs of three words."""
DRAWS, SHOWN = 3, 40
"""Draws for each scenario wanted, and how many of the titles so far the model is shown."""
MIN_SCENARIOS = 2
"""One for each side of the split."""
SCENARIO = object_schema(kind="string", title="string")
DESCRIPTION = object_schema(summary="string", customer_goal="string", complication="string")
STOP_WORDS = frozenset("a an and at for from in into is of on or the to with".split())


@dataclass(kw_only=True, frozen=True)
class Scenario:
    """One scenario with its description."""

    id: str
    """ "domain/title-in-lower-case"."""
    domain: str
    kind: str
    title: str
    summary: str
    goal: str
    """What the user wants."""
    complication: str
    """What makes it difficult; "" if nothing does."""

    def record(self) -> dict[str, dict[str, str]]:
        """The two levels as the model gave them, for the provenance."""
        return {
            "scenario": {"domain": self.domain, "kind": self.kind, "title": self.title},
            "description": {
                "summary": self.summary,
                "customer_goal": self.goal,
                "complication": self.complication,
            },
        }


@dataclass(kw_only=True, frozen=True)
class Levels:
    """The instructions to the model at the two levels."""

    scenario: str
    description: str
    kinds: tuple[str, ...]
    """The kinds of scenarios, which are asked for in turn."""


def question_seed(*parts: object) -> int:
    """A seed for a question; it is a multiple of 64, so that further attempts do not meet the seeds of others."""
    return int(digest(*map(str, parts))[:6], 16) * 64


class Scenarios:
    """The scenarios of all domains, each domain written when it is first needed. Threads may share it."""

    def __init__(self, client: Client, levels: Levels, seed: int, size: int) -> None:
        """`size` is the number of scenarios of each domain."""
        self._client, self._levels, self._seed, self._size = client, levels, seed, size
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._known: dict[str, tuple[Scenario, ...]] = {}
        self.redrawn: Counter[str] = Counter()
        """How often scenarios were drawn again, by reason."""

    def of(self, domain: str, setting: str) -> tuple[Scenario, ...]:
        """All scenarios of a domain, at least two; `setting` describes the domain to the model.

        Raises: NoAnswer if the model gives fewer.
        """
        with self._lock:
            lock = self._locks.setdefault(domain, threading.Lock())
        with lock:
            if domain not in self._known:
                self._known[domain] = self._write(domain, setting)
            return self._known[domain]

    def _write(self, domain: str, setting: str) -> tuple[Scenario, ...]:
        found: list[Scenario] = []
        last = NoAnswer("rules", "every scenario was like another one")
        for draw in range(self._size * DRAWS):
            if len(found) == self._size:
                break
            try:
                scenario = self._draw(domain, setting, found, draw)
            except NoAnswer as why:
                if not why.lasting:
                    raise
                last = why
                self._count(why.fault)
                continue
            if resembles(scenario, found):
                self._count("near-duplicate")
            else:
                found.append(scenario)
        if len(found) < MIN_SCENARIOS:
            raise NoAnswer(last.fault, f"{domain}: {len(found)} scenarios: {last}")
        return tuple(found)

    def _count(self, reason: str) -> None:
        with self._lock:
            self.redrawn[reason] += 1

    def _draw(self, domain: str, setting: str, found: list[Scenario], draw: int) -> Scenario:
        seen = "\n".join(f"- {scenario.title}" for scenario in found[-SHOWN:])
        user = f"{setting}\nKind: {self._levels.kinds[draw % len(self._levels.kinds)]}"
        user += f"\nThese exist already, write a different one:\n{seen}" if seen else ""
        first = self._ask("scenario", self._levels.scenario, user, SCENARIO, domain, draw)
        about = f"{setting}\nKind: {first['kind']}\nScenario: {first['title']}"
        second = self._ask("description", self._levels.description, about, DESCRIPTION, domain, draw)
        return Scenario(
            id=f"{domain}/{slug(first['title'])}",
            domain=domain,
            kind=first["kind"],
            title=first["title"],
            summary=second["summary"],
            goal=second["customer_goal"],
            complication=second["complication"],
        )

    def _ask(self, name: str, system: str, user: str, schema: dict[str, Any], domain: str, draw: int) -> dict[str, str]:
        """The texts of one level by the properties of its schema."""
        seed = question_seed(self._seed, name, domain, draw)
        question: Question[dict[str, str]] = Question(
            name=name, system=system, user=user, schema=schema, seed=seed, read=plain_value, check=_problems
        )
        return self._client.ask(question)


def _problems(value: dict[str, str]) -> list[str]:
    """What is wrong with a scenario or description: its length, a title without words, ways to reach a person."""
    found = []
    for name, text in value.items():
        words = len(text.split())
        low, high = {"title": (2, 12), "kind": (1, 5), "complication": (0, 40)}.get(name, (4, 60))
        if not low <= words <= high:
            found.append(f"{name} must have {low} to {high} words, not {words}")
        found += [f"{name} holds {kind}: leave it out" for kind in contacts(text)]
    if "title" in value and not slug(value["title"]):
        found.append("title must have words in it")
    return found


def slug(title: str) -> str:
    """A title as part of an id: "Wrong dish, again!" becomes "wrong-dish-again"."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].rstrip("-")


def resembles(scenario: Scenario, others: list[Scenario]) -> bool:
    """True if a scenario has the title of another one, in any order of words, or a similar description."""
    title, shingles = _title_words(scenario), _shingles(scenario)
    for other in others:
        theirs = _shingles(other)
        similar = len(shingles & theirs) >= SIMILAR_DESCRIPTIONS * max(1, len(shingles | theirs))
        if similar or title == _title_words(other) or scenario.id == other.id:
            return True
    return False


def _title_words(scenario: Scenario) -> frozenset[str]:
    words = re.findall(r"[a-z0-9]+", scenario.title.lower())
    return frozenset(word.removesuffix("s") for word in words if word not in STOP_WORDS)


def _shingles(scenario: Scenario) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", f"{scenario.summary} {scenario.goal}".lower())
    return {tuple(words[n : n + SHINGLE_WORDS]) for n in range(len(words) - SHINGLE_WORDS + 1)}
