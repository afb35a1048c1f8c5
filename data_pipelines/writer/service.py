"""Customer-service scripts: domain -> scenario -> description -> transcript -> role, as in the PersonaPlex paper.

The agent works for an invented company and knows 3-5 facts; all numbers and names it says come from its role
prompt or from the customer. Besides the customer's main request a script may hold any of these behaviours:

    Q0 recall (name of agent or company), Q1 and Q2 details of the facts, Q3 a request that cannot be met,
    Q4 a rude customer, Q5 a question in the domain that the facts leave open, Q6 an unrelated question
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from string import Formatter
from typing import Any

from data_pipelines.schema import Script
from data_pipelines.writer.conversation import Conversation, with_backchannels, with_fillers
from data_pipelines.writer.slots import Slots
from data_pipelines.writer.split import drawn_in_split, members
from data_pipelines.writer.tables import service_domains, table
from data_pipelines.writer.wording import fill, joined, mentions, pick

PROMPT = "You work for {company} which is a {business} and your name is {agent}. Information: {facts}"
MAX_FACTS, MAX_USED, MAX_TURNS = 5, 4, 11
SHORTEST, LONGEST = 32.0, 66.0  # target seconds by the estimate, which is on the slow side
BRIEF = 40.0  # a limit below this asks for short lines and no formalities
AGENT_GREETS, BARGES_IN, CHECKS, DROPS_NAME = 0.88, 0.35, 0.15, 0.4
# How often each behaviour is considered; the target length decides how many of them fit
SHARES = {"Q0": 0.25, "Q3": 0.5, "Q4": 0.15, "Q5": 0.35, "Q6": 0.15}
WH_QUESTION = re.compile(r"\b(how|what|what's|when|when's|which|who|who's|where|any)\b", re.I)
BAD_NEWS = re.compile(r"\b(sorry|afraid|apologize|unfortunately|cancelled|don't|can't|isn't|understand|wrong)\b", re.I)
YES_OPENING = re.compile(r"(Yes, |Yes\. |We do[.,] |We can[.,] |You can\. |It is\. |No, )")
# An answer that opens like this needs its question and cannot be offered unasked
NEEDS_QUESTION = re.compile(
    r"(Yes|No|We do|We can|You can|It|That|Sure|From|Any|Up|Weekdays|Just|Plan|About|Bring|Please|Unfortunately|I'm"
    r"|Sorry)\b"
)


@lru_cache(maxsize=1)
def scenarios() -> tuple[str, ...]:
    """All scenario ids: "domain/business/kind"."""
    return tuple(
        f"{domain}/{business}/{kind}"
        for domain, rows in service_domains().items()
        for business in rows["businesses"]
        for kind in rows["scenarios"]
    )


def request_of(scenario: str) -> str:
    """ "domain/kind": what the split goes by, so that the wording of a held-out request is new to the model."""
    domain, _, kind = scenario.split("/")
    return f"{domain}/{kind}"


@lru_cache(maxsize=1)
def by_request() -> dict[str, list[str]]:
    """The scenario ids of each request."""
    grouped: dict[str, list[str]] = {}
    for scenario in scenarios():
        grouped.setdefault(request_of(scenario), []).append(scenario)
    return grouped


def write_service(name: str, rng: Random, split: str, heldout: float, limit: float | None) -> Script:
    """One script named `name`. Its length may exceed `limit` seconds: the caller draws again then."""
    request = rng.choice(members(tuple(by_request()), heldout, split))
    scenario = rng.choice(by_request()[request])
    writer = _Writer(scenario, rng, limit)
    writer.cast(lambda draw: drawn_in_split(draw, "company", heldout, split))
    turns = with_backchannels(with_fillers(writer.transcript().turns, rng), rng)
    places = [n for n, turn in enumerate(turns) if turn.kind != "backchannel"]
    prompt, facts = writer.role()
    return Script(
        id=name,
        source="service",
        split=split,
        scenario=f"service/{scenario}",
        role_prompt=prompt,
        turns=tuple(turns),
        facts=tuple(facts),
        probes=tuple(probe | {"turn": places[probe["turn"]]} for probe in writer.probes),
        provenance=writer.stages(),
    )


def company_name(rng: Random, owner: str, nouns: list[str]) -> str:
    """An invented name such as "Silver Harbor Pizzeria"; `owner` is a last name that may be in it."""
    words = table("companies")
    adjective, thing = rng.choice(words["adjectives"].split()), rng.choice(words["things"].split())
    stems = [f"{adjective} {thing}", f"{adjective} {thing}", thing, f"{owner}'s", owner, f"{adjective} {thing}"]
    noun = rng.choice(nouns)
    return " ".join(dict.fromkeys(f"{rng.choice(stems)} {noun}".split()))  # no "Bay Bay Resort"


Probe = dict[str, Any]


def _asked(talk: Conversation, question: str) -> int:
    """The last turn of the user that asks `question`; a word before it may have taken its capital."""
    turns = enumerate(talk.turns)
    return max(n for n, turn in turns if turn.speaker == "user" and turn.text.endswith(question[1:]))


class _NothingLeft(Exception):
    """No fact is left that would suit this exchange."""


@dataclass
class _Writer:
    scenario: str
    rng: Random
    limit: float | None
    used: list[str] = field(default_factory=list)
    behaviours: list[str] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    """As in Script.probes; `turn` does not count backchannels yet."""
    knows_name: bool = False
    """Whether the customer gave a name, so that the agent may use it in its last words."""

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

    def cast(self, company_in_split: Callable[[Callable[[], str]], str]) -> None:
        """Names the company, the agent and the customer, and opens the slots."""
        names = {kind: text.split() for kind, text in table("names").items()}
        agent, customer = self.rng.sample(names["first"], 2)
        last, last2, owner = self.rng.sample(names["last"], 3)
        fixed = {
            "company": company_in_split(lambda: company_name(self.rng, owner, self.business["nouns"])),
            "business": self.business["business"],
            "agent": f"{agent} {last}",
            "agent_first": agent,
            "customer": f"{customer} {last2}",
            "customer_first": customer,
        }
        lists = {key: value for key, value in self.business.items() if isinstance(value, list)}
        self.slots = Slots(self.rng, self.domain["slots"] | self.business.get("slots", {}), lists, fixed)

    def line(self, options: list[str]) -> str:
        return fill(pick(self.rng, options, self.brief), self.slots)

    def transcript(self) -> Conversation:
        talk = Conversation()
        self._open(talk)
        self._check_value(talk)
        dropped = self._dropped_steps()
        self.used += [name for name in self.kind["needs"] if name not in dropped]
        for name in self.kind["steps"]:
            if name in dropped:
                continue
            step = self.steps[name]
            talk.agent(self.line(step["ask"]))
            talk.user(self.line(step["give"]))
            talk.agent(self.line(step["ack"]))
        for tag, extra in self._extras():
            longer, used = talk.copy(), list(self.used)
            try:
                probe = extra(longer)
                fits = longer.seconds + (4.0 if self.brief else 5.5) <= self.target
            except _NothingLeft:
                fits = False
            if fits and len(longer.turns) <= MAX_TURNS and len(self.used) <= MAX_USED:
                talk = longer
                self.behaviours.append(tag)
                if probe:
                    self.probes.append({"kind": tag, "turn": _asked(talk, probe["question"]), **probe})
            else:
                self.used = used
        self._close(talk)
        return talk

    def _check_value(self, talk: Conversation) -> None:
        """Now and then the user cuts into the first answer to make sure of a value in it."""
        values = [
            self.slots[slot]
            for name in self.kind["needs"]
            for slot in slots_of(self.facts[name]["prompt"])
            if mentions(talk.turns[-1].text, self.slots[slot]) and self.slots.types[slot] not in ("phrase", "name")
        ]
        if values and self.rng.random() < CHECKS:
            self.behaviours.append("barge_in")
            self._clarify(talk, values[0])

    def _clarify(self, talk: Conversation, value: str) -> None:
        self.slots["value"] = value
        row = self.rng.choice(self.phrases["clarify"])
        talk.user(self.line(row["ask"]), barges_in=True)
        talk.agent(self.line(row["answer"]))

    def _dropped_steps(self) -> set[str]:
        """Not every agent asks for a name, and a short call has no time for it."""
        drops = self.brief or self.rng.random() < DROPS_NAME
        dropped = {"name", "verify"} if self.brief else {"name"} if drops else set()
        self.knows_name = bool(({"name", "verify"} - dropped) & set(self.kind["steps"]))
        return dropped

    def _open(self, talk: Conversation) -> None:
        phrases = self.phrases
        agent = {"agent": self.rng.choice([self.slots["agent"], self.slots["agent_first"]])}
        if self.rng.random() < AGENT_GREETS:
            talk.agent(fill(pick(self.rng, phrases["greet"], self.brief), self.slots | agent))
        else:
            talk.user(self.line(phrases["hello"]))
            talk.agent(fill(pick(self.rng, phrases["greet_back"], self.brief), self.slots | agent))
        request = self.line(self.kind["open"])
        talk.user(request)
        talk.agent(fitting(request, self.line(self.kind["reply"])))

    def _close(self, talk: Conversation) -> None:
        phrases, rng = self.phrases, self.rng
        ends_on_wrap = self.brief and len(talk.turns) >= 5 and rng.random() < 0.6
        if rng.random() < 0.5 and not self.brief:
            talk.agent(self.line(phrases["anything_else"]))
            talk.user(self.line(phrases["user_done"]))
        elif not ends_on_wrap:
            talk.user(self.line(phrases["user_thanks"]))
        if not ends_on_wrap:
            talk.agent(self.line(phrases["welcome"]))
        wrap = self.line([text for text in self.kind["wrap"] if self.knows_name or "{customer" not in text])
        talk.agent(wrap)
        if not self.brief:
            talk.agent(self.line([text for text in phrases["goodbye"] if text.split()[0] not in wrap]))
        if rng.random() < 0.4 and not self.brief:
            talk.user(self.line(phrases["user_bye"]))

    def _extras(self) -> Iterator[tuple[str, Callable[[Conversation], Probe | None]]]:
        """Further exchanges in random order, each with the name of its behaviour; details fill what time is left.

        Those of the seven kinds answer what can be asked again: question, answer and labels of facts.
        """
        rng = self.rng
        chosen = [tag for tag, share in SHARES.items() if rng.random() < share]
        chosen += ["Q1", "Q2"]
        rng.shuffle(chosen)
        if "Q4" in chosen:  # people are rude early, while they still have something to be angry about
            chosen.remove("Q4")
            chosen.insert(0, "Q4")
        barge = rng.choice([self._clarified, self._interrupted, self._offered])
        if rng.random() < BARGES_IN and "barge_in" not in self.behaviours:
            yield "barge_in", barge
        makers = {
            "Q0": self._recall,
            "Q1": self._detail,
            "Q2": self._detail,
            "Q3": self._refusal,
            "Q4": self._rude,
            "Q5": self._open_question,
            "Q6": self._unrelated,
        }
        for tag in chosen:
            yield tag, makers[tag]

    def _exchange(self, talk: Conversation, ask: str, answer: str) -> None:
        """The user asks, after a word on what was said before, and the agent answers."""
        last = talk.turns[-1]
        kind = "user_next_plain" if BAD_NEWS.search(last.text) else "user_next"
        talk.user(joined(self._lead(kind, talk) if last.speaker == "agent" else "", ask))
        talk.agent(answer)

    def _lead(self, kind: str, talk: Conversation) -> str:
        spoken = " ".join(turn.text for turn in talk.turns)
        return pick(self.rng, [lead for lead in self.phrases[kind] if not lead or lead not in spoken])

    def _fact(self) -> dict[str, Any]:
        allowed = self.kind.get("asks", list(self.domain["facts"]))
        free = [name for name in allowed if name not in self.used]
        if not free:
            raise _NothingLeft
        self.used.append(self.rng.choice(free))
        return self.facts[self.used[-1]]

    def _question(self, row: dict[str, Any]) -> tuple[str, str]:
        """A question and an answer that fits it: no "yes" to "how much"."""
        ask = self.line(row["ask"])
        return ask, fitting(ask, self.line(row["answer"]))

    def _detail(self, talk: Conversation) -> Probe:
        row = self._fact()
        ask, answer = self._question(row)
        opens = re.match(r"(Yes|No|Sorry|I'm|Unfortunately|We do|We can|You can)\b", answer)
        self._exchange(talk, ask, joined("" if opens else self._lead("agent_lead", talk), answer))
        return {"question": ask, "facts": slots_of(row["prompt"]) or [self.used[-1]], "answer": answer}

    def _refusal(self, talk: Conversation) -> Probe:
        kind = self.scenario.split("/")[2]
        names = [
            name for name, row in self.facts.items() if "not_offered" in name and kind not in row.get("not_in", ())
        ]
        if not names:
            raise _NothingLeft
        name = self.rng.choice(names)
        self.used.append(name)
        row = self.facts[name]
        ask, answer = self.line(row["ask"]), self.line(row["answer"])
        self._exchange(talk, ask, answer)
        return {"question": ask, "facts": slots_of(row["prompt"]) or [name], "answer": answer}

    def _rude(self, talk: Conversation) -> Probe:
        ask, answer = self.line(self.phrases["rude"]), self.line(self.phrases["rude_answer"])
        talk.user(ask)
        talk.agent(answer)
        return {"question": ask, "facts": [], "answer": answer}

    def _open_question(self, talk: Conversation) -> Probe:
        row = self.rng.choice(self.domain["unspecified"])
        self.slots["topic"] = fill(row["topic"], self.slots)[:1].lower() + fill(row["topic"], self.slots)[1:]
        ask, answer = self.line(row["ask"]), self.line(self.phrases["unspecified_answer"])
        self._exchange(talk, ask, answer)
        talk.user(self.line(self.phrases["user_accepts"]))
        return {"question": ask, "facts": [], "answer": answer}

    def _unrelated(self, talk: Conversation) -> Probe:
        row = self.rng.choice(self.phrases["unrelated"])
        self.slots["topic"] = row["topic"]
        ask = joined(self.line(self.phrases["aside"]), self.line([row["ask"]]))
        answer = self.line(self.phrases["unrelated_answer"])
        talk.user(ask)
        talk.agent(answer)
        return {"question": ask, "facts": [], "answer": answer}

    def _recall(self, talk: Conversation) -> Probe:
        row = self.rng.choice(self.phrases["recall"])
        ask, answer = self.line(row["ask"]), self.line(row["answer"])
        talk.user(ask)
        talk.agent(answer)
        return {"question": ask, "facts": row["facts"], "answer": answer}

    def _long_answer(self, talk: Conversation, row: dict[str, Any]) -> None:
        ask, answer = self._question(row)
        tail = self._lead("tails", talk)
        self._exchange(talk, ask, f"{answer.rstrip('.')}, {tail}.")

    def _clarified(self, talk: Conversation) -> None:
        """The user cuts in to check a value just heard."""
        row = self._fact()
        self._long_answer(talk, row)
        told = [self.slots[slot] for slot in slots_of(row["prompt"])]
        values = [text for text in told if mentions(talk.turns[-1].text, text)]
        if not values:
            raise _NothingLeft
        self._clarify(talk, values[-1])

    def _interrupted(self, talk: Conversation) -> None:
        """The user cuts in with the next question."""
        self._long_answer(talk, self._fact())
        ask, answer = self._question(self._fact())
        talk.user(joined(self._lead("interrupt", talk), ask), barges_in=True)
        talk.agent(answer)

    def _offered(self, talk: Conversation) -> None:
        """The agent offers what nobody asked for, and the user stops it."""
        row = self._fact()
        texts = [text for text in row["answer"] if not NEEDS_QUESTION.match(text)]
        if not texts:
            raise _NothingLeft
        talk.agent(joined(self._lead("offer_lead", talk), self.line(texts)))
        talk.user(self.line(self.phrases["offer_stop"]), barges_in=True)
        talk.agent(self.line(self.phrases["offer_ok"]))

    def role(self) -> tuple[str, list[dict[str, str]]]:
        """The role prompt with all used facts and 1-2 unused ones, and those facts typed."""
        told = {slot for name in self.used for slot in slots_of(self.facts[name]["prompt"])}
        tellable = [name for name in self.facts if name in self.domain["facts"] or "not_offered" in name]
        rest = [name for name in tellable if name not in self.used and not self._only_repeats(name, told)]
        spare = self.rng.choice([1, 2]) if len(self.used) < MAX_USED else 1
        spare = max(spare, 3 - len(self.used))
        names = self.used + self.rng.sample(rest, min(spare, MAX_FACTS - len(self.used)))
        names.sort(key=lambda name: (name != "verify", name.startswith("not_offered")))
        sentences = [fill(self.facts[name]["prompt"], self.slots) for name in names]
        typed: dict[str, dict[str, str]] = {}
        for name, sentence in zip(names, sentences, strict=True):
            state = "yes" if name in self.used else "no"
            for slot in slots_of(self.facts[name]["prompt"]):
                fact = {"type": self.slots.types[slot], "text": self.slots[slot], "label": slot, "used": state}
                if typed.get(slot, {"used": "no"})["used"] == "no":
                    typed[slot] = fact
            if not slots_of(self.facts[name]["prompt"]):
                typed[name] = {"type": "phrase", "text": sentence.rstrip("."), "label": name, "used": state}
        return PROMPT.format_map(self.slots | {"facts": " ".join(sentences)}), list(typed.values())

    def _only_repeats(self, name: str, told: set[str]) -> bool:
        """True if the fact states no value beyond those in `told`: it could not count as unused."""
        slots = set(slots_of(self.facts[name]["prompt"]))
        return bool(slots) and slots <= told

    def stages(self) -> dict[str, Any]:
        """What each stage of the hierarchy decided."""
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


def fitting(ask: str, answer: str) -> str:
    """The answer without its "yes" where the last thing asked was no yes-or-no question."""
    last = re.split(r"[.!?]\s", ask)[-1]
    if last.endswith("?") and not WH_QUESTION.search(" ".join(last.split()[:4])):
        return answer
    stripped = YES_OPENING.sub("", answer, count=1) if YES_OPENING.match(answer) else answer
    return (stripped or answer)[0].upper() + (stripped or answer)[1:]


def slots_of(template: str) -> list[str]:
    """The slot names of a template in order, each once."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))
