"""One service call while it is written: its tables and slots, what has been said of its facts, and the role."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from data_pipelines.records.schema import Fact
from data_pipelines.writer.conversation import TurnList
from data_pipelines.writer.slots import Slots, slots_of
from data_pipelines.writer.tables import service_domains, table
from data_pipelines.writer.wording import fill, fitting, pick

PROMPT = "You work for {company} which is a {business} and your name is {agent}. Information: {facts}"
MAX_FACTS, MAX_USED = 5, 4
SHORTEST, LONGEST = 32.0, 66.0
"""Bounds of the length aimed at, in seconds by the estimate, which is on the slow side."""
BRIEF = 40.0
"""Seconds; a limit below this asks for short lines and no formalities."""


@dataclass(kw_only=True, frozen=True)
class Asked:
    """A question of the user and its answer, as they were said, and the labels of the facts that it is about."""

    question: str
    answer: str
    facts: tuple[str, ...] = ()


class NothingLeft(Exception):
    """No fact is left that suits this exchange."""


@dataclass
class ServiceCall:
    """What the parts of a call share; `cast` must be called before anything is said."""

    scenario: str
    """ "domain/business/kind"."""
    rng: Random
    limit: float | None
    """Longest estimated length in seconds; None for no limit."""
    used: list[str] = field(default_factory=list)
    """Names of the facts that the transcript uses."""
    leads: list[str] = field(default_factory=list)
    """Words before a line that were used, as in the tables."""
    behaviours: list[str] = field(default_factory=list)
    """What happened beside the request: kinds of probes, and "barge_in"."""
    probes: list[tuple[str, int, Asked]] = field(default_factory=list)
    """What can be asked again: the kind, the index of the turn that asks (backchannels not counted), and the words."""
    knows_name: bool = False
    """Whether the user gave a name, so that the agent may use it in its last words."""

    def __post_init__(self) -> None:
        domain, business, kind = self.scenario.split("/")
        self.domain = service_domains()[domain]
        self.business = self.domain["businesses"][business]
        self.kind = self.domain["scenarios"][kind]
        self.phrases = table("phrases")
        self.steps = self.phrases["steps"] | self.domain["steps"]
        self.facts: dict[str, dict[str, Any]] = self.domain["facts"] | self.domain.get("scenario_facts", {})
        self.facts["verify"] = self.steps["verify"]["fact"]
        self.facts |= {f"not_offered_{n}": row for n, row in enumerate(self.domain["cannot"])}
        self.brief = self.limit is not None and self.limit < BRIEF
        self.target = self.rng.uniform(SHORTEST, LONGEST)
        if self.limit is not None:
            self.target = self.limit if self.brief else min(self.target, self.limit)

    def cast(self, company: str, *, agent_last: str, user_last: str) -> None:
        """Names the agent and the user, and opens the slots; the tables call the user "customer"."""
        agent, user = self.rng.sample(table("names")["first"].split(), 2)
        fixed = {
            "company": company,
            "business": self.business["business"],
            "agent": f"{agent} {agent_last}",
            "agent_first": agent,
            "customer": f"{user} {user_last}",
            "customer_first": user,
        }
        lists = {key: value for key, value in self.business.items() if isinstance(value, list)}
        self.slots = Slots(self.rng, self.domain["slots"] | self.business.get("slots", {}), lists, fixed)

    def line(self, options: list[str]) -> str:
        """One of the options, filled."""
        return fill(pick(self.rng, options, self.brief), self.slots)

    def lead(self, kind: str) -> str:
        """The words before a line, or ""; never the same words of the tables twice in a call."""
        lead = self.rng.choice([lead for lead in self.phrases[kind] if not lead or lead not in self.leads])
        self.leads.append(lead)
        return pick(self.rng, [lead])

    def fact(self) -> dict[str, Any]:
        """Draws a fact that was not used yet and fits the request, and marks it as used. Raises: NothingLeft."""
        allowed = self.kind.get("asks", list(self.domain["facts"]))
        free = [name for name in allowed if name not in self.used]
        if not free:
            raise NothingLeft
        self.used.append(self.rng.choice(free))
        return self.facts[self.used[-1]]

    def question(self, row: dict[str, Any]) -> tuple[str, str]:
        """A question and an answer that fits it: "how much" is not answered by "yes"."""
        ask = self.line(row["ask"])
        return ask, fitting(ask, self.line(row["answer"]))

    def is_curt(self) -> bool:
        """True if the user was rude, and so does not say "lovely" a moment later."""
        return "Q4" in self.behaviours

    def role(self) -> tuple[str, list[Fact]]:
        """The role prompt with all used facts and one or two unused ones, and the values of these facts."""
        stated = {slot for name in self.used for slot in slots_of(self.facts[name]["prompt"])}
        optional = [name for name in self.facts if name in self.domain["facts"] or "not_offered" in name]
        rest = [name for name in optional if name not in self.used and not self._only_repeats(name, stated)]
        spare = self.rng.choice([1, 2]) if len(self.used) < MAX_USED else 1
        spare = max(spare, 3 - len(self.used))
        names = self.used + self.rng.sample(rest, min(spare, MAX_FACTS - len(self.used)))
        names.sort(key=lambda name: (name != "verify", name.startswith("not_offered")))
        sentences = [fill(self.facts[name]["prompt"], self.slots) for name in names]
        typed: dict[str, Fact] = {}
        for name, sentence in zip(names, sentences, strict=True):
            state = "yes" if name in self.used else "no"
            for slot in slots_of(self.facts[name]["prompt"]):
                if slot not in typed or typed[slot].used == "no":
                    typed[slot] = Fact(type=self.slots.types[slot], text=self.slots[slot], label=slot, used=state)
            if not slots_of(self.facts[name]["prompt"]):
                typed[name] = Fact(type="phrase", text=sentence.rstrip("."), label=name, used=state)
        return PROMPT.format_map(self.slots | {"facts": " ".join(sentences)}), list(typed.values())

    def _only_repeats(self, name: str, stated: set[str]) -> bool:
        """True if the fact has no value beyond the slots in `stated`, so that it could not count as unused."""
        slots = set(slots_of(self.facts[name]["prompt"]))
        return bool(slots) and slots <= stated

    def stages(self) -> dict[str, Any]:
        """What each stage of the hierarchy decided, for the provenance."""
        domain, business, kind = self.scenario.split("/")
        return {
            "generator": "service templates 2",
            "scenario": {"domain": domain, "business": business, "kind": kind, "title": self.kind["title"]},
            "description": {
                "summary": fill(self.kind["summary"], self.slots),
                "customer_goal": fill(self.kind["goal"], self.slots),
                "complication": ", ".join(self.behaviours),
            },
            "role": {key: self.slots[key] for key in ("company", "business", "agent")},
            "behaviours": self.behaviours,
        }


def asked_at(talk: TurnList, question: str) -> int:
    """Index of the last turn of the user that asks `question`, whose capital is lost after a lead-in."""
    turns = enumerate(talk.turns)
    return max(n for n, turn in turns if turn.speaker == "user" and turn.text.endswith(question[1:]))
