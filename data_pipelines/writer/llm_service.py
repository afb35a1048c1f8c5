"""Service scripts by a model: the transcript of a drawn plan, then the role that fits the transcript."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Literal

from data_pipelines.llm.answers import Question
from data_pipelines.llm.client import Client
from data_pipelines.records.schema import Fact, Probe, Script, Turn
from data_pipelines.text.rules import contacts
from data_pipelines.writer.conversation import with_backchannels
from data_pipelines.writer.llm_scenarios import question_seed
from data_pipelines.writer.llm_service_plan import PROBES, ServicePlan
from data_pipelines.writer.llm_text import array_of, object_schema, plain_record, turn_problems
from data_pipelines.writer.problems import unsupported
from data_pipelines.writer.service_call import PROMPT
from data_pipelines.writer.stats import fact_is_said
from data_pipelines.writer.wording import estimated_seconds, mentions

MIN_TURNS, MAX_TURNS, SHORTEST_SECONDS = 5, 24, 15.0
MIN_FACTS, MAX_FACTS, MAX_FACT_WORDS, MAX_PROMPT_WORDS, MAX_UNUSED = 3, 5, 25, 110, 2
FACT_TYPES = ("money", "time", "date", "number", "id", "name", "phrase")
TRANSCRIPT_SCHEMA = object_schema(
    turns=array_of(
        speaker={"type": "string", "enum": ["agent", "customer"]},
        text="string",
        interrupts="boolean",
        probe={"type": "string", "enum": ["none", *PROBES]},
    )
)
ROLE_SCHEMA = object_schema(
    company="string",
    business="string",
    agent_name="string",
    facts=array_of(
        sentence="string",
        values=array_of(type={"type": "string", "enum": list(FACT_TYPES)}, text="string", label="string"),
    ),
)
TRANSCRIPT_SYSTEM = """You write telephone calls between a customer and the agent of a company, word for word, as people
talk: short turns, everyday words, hesitations now and then. Answer in JSON with turns; each has speaker, text,
interrupts and probe.
- Speakers take turns: never two turns of the same speaker in a row, and nobody says the same thing twice.
- Give exact values: prices like $8.50, times like 4:30 PM, dates like April 12th, numbers and codes like B-472.
- Plain text only: no stage directions, brackets, quotation marks, lists or symbols but $ and %.
- In its first turn the agent says the company's name or its own.
- interrupts is true only for a customer turn that cuts into the agent's turn before it.
- probe is none, except for the customer turn that does what is asked for below.
- No telephone numbers, street addresses, e-mail addresses, web sites, cards or social-security numbers."""
ROLE_SYSTEM = """You write what an agent of customer service had to know beforehand, from the transcript of a call.
Answer in JSON with company, business, agent_name and facts. Each fact is a short sentence and the values in it, each
with its type (money, time, date, number, id, name, or phrase for anything else), its text exactly as it stands in
the sentence, and a label of one or two words.
- 3 to 5 facts: all that the agent states in the call, and one or two related ones that nobody mentions.
- Every number and every name that the agent says and the customer did not say before must be in a fact, written the
  same way. Say also what the company does not offer, if the agent says so.
- No telephone numbers, addresses, e-mail addresses or web sites."""


@dataclass(kw_only=True, frozen=True)
class WrittenTurn:
    """One turn as TRANSCRIPT_SCHEMA asks for it; the model calls the user "customer"."""

    speaker: Literal["agent", "customer"]
    text: str
    interrupts: bool
    probe: str
    """The kind of the probe that the turn asks, or "none"."""

    def turn(self) -> Turn:
        """The turn as scripts hold it."""
        speaker: Literal["agent", "user"] = "agent" if self.speaker == "agent" else "user"
        return Turn(speaker=speaker, text=self.text, kind="barge_in" if self.interrupts else "normal")


@dataclass(kw_only=True, frozen=True)
class WrittenCall:
    """A transcript as TRANSCRIPT_SCHEMA asks for it."""

    turns: tuple[WrittenTurn, ...]


@dataclass(kw_only=True, frozen=True)
class RoleFact:
    """A sentence that the agent knew beforehand, and the values in it."""

    sentence: str
    values: tuple[Fact, ...]


@dataclass(kw_only=True, frozen=True)
class WrittenRole:
    """A role as ROLE_SCHEMA asks for it."""

    company: str
    business: str
    agent_name: str
    facts: tuple[RoleFact, ...]


def write_service(client: Client, plan: ServicePlan, draw: str, rng: Random) -> Script:
    """The script of a plan; `draw` makes the seeds of this attempt.

    Raises: NoAnswer if no answer of the model keeps the rules.
    """
    transcript = Question(
        name="transcript",
        system=TRANSCRIPT_SYSTEM,
        user=plan.text(),
        schema=TRANSCRIPT_SCHEMA,
        seed=question_seed("transcript", draw),
        read=plain_record(WrittenCall),
        check=lambda call: transcript_problems(call.turns, plan),
    )
    rows = client.ask(transcript).turns
    said = "\n".join(f"{row.speaker.capitalize()}: {row.text}" for row in rows)
    role = Question(
        name="role",
        system=ROLE_SYSTEM,
        user=f"{plan.text().split('About ')[0]}\nTranscript:\n{said}",
        schema=ROLE_SCHEMA,
        seed=question_seed("role", draw),
        read=plain_record(WrittenRole),
        check=partial(role_problems, rows=rows, plan=plan),
    )
    return script_of(rows, client.ask(role), plan, rng)


def transcript_problems(rows: Sequence[WrittenTurn], plan: ServicePlan) -> list[str]:
    """What is wrong with a transcript, in words for the model; [] for a good one."""
    turns = [row.turn() for row in rows]
    found = turn_problems(turns)
    if not MIN_TURNS <= len(turns) <= MAX_TURNS:
        found.append(f"{len(turns)} turns: write {MIN_TURNS} to {MAX_TURNS}")
    seconds = estimated_seconds(turns)
    if not (least := min(SHORTEST_SECONDS, plan.limit / 2)) <= seconds <= plan.limit:
        found.append(f"it would take {seconds:.0f} s to say: write for {least:.0f} to {plan.limit:.0f} s")
    if turns and (turns[0].speaker == "agent") != plan.agent_greets:
        found.append(f"the {'agent' if plan.agent_greets else 'customer'} must speak first")
    if not _says_a_name(next((turn.text for turn in turns if turn.speaker == "agent"), ""), plan):
        found.append(f"in its first turn the agent must say {plan.company} or {plan.agent}")
    if any(row.interrupts and row.speaker == "agent" for row in rows):
        found.append("the agent must not interrupt")
    if any(row.interrupts for row in rows) != plan.barges_in:
        wanted = "one customer turn must have interrupts true" if plan.barges_in else "nobody may interrupt"
        found.append(f"{wanted}, as the plan says")
    return found + _probe_problems(rows, plan)


def _says_a_name(text: str, plan: ServicePlan) -> bool:
    """True if a text holds the company's name, or the agent's full or first name."""
    return any(mentions(text, name) for name in (plan.company, plan.agent, plan.agent.split()[0]))


def _probe_problems(rows: Sequence[WrittenTurn], plan: ServicePlan) -> list[str]:
    asked = [row.probe for row in rows if row.probe != "none"]
    found = []
    if sorted(asked) != list(plan.probes):
        found.append(f"mark one customer turn each with the probes {', '.join(plan.probes)} and no other")
    for n, row in enumerate(rows):
        if row.probe == "none":
            continue
        answered = n + 1 < len(rows) and rows[n + 1].speaker == "agent"
        if row.speaker == "agent" or not answered:
            found.append(f"probe {row.probe} must be a customer turn that the agent answers")
        elif row.probe == "Q0" and not _says_a_name(rows[n + 1].text, plan):
            found.append("after Q0 the agent must say the company's name or its own")
    return found


def role_problems(role: WrittenRole, rows: Sequence[WrittenTurn], plan: ServicePlan) -> list[str]:
    """What is wrong with a role for a transcript, in words for the model; [] for a good one."""
    pairs = (("company", role.company, plan.company), ("business", role.business, plan.business))
    found = [
        f"{name} must be {planned!r}"
        for name, given, planned in (*pairs, ("agent_name", role.agent_name, plan.agent))
        if given != planned
    ]
    if not MIN_FACTS <= len(role.facts) <= MAX_FACTS:
        found.append(f"{len(role.facts)} facts: give {MIN_FACTS} to {MAX_FACTS}")
    for fact in role.facts:
        found += _fact_problems(fact)
    script = script_of(rows, role, plan, None)
    if len(script.role_prompt.split()) > MAX_PROMPT_WORDS:
        found.append(f"the facts are too long: at most {MAX_PROMPT_WORDS} words in all")
    found += [f"the facts hold {kind}: leave it out" for kind in contacts(script.role_prompt)]
    missing = list(dict.fromkeys(unsupported(script)))
    found += [f"the agent says {term!r}, but no fact does, nor the customer before" for term in missing]
    unused = sum(not any(fact_is_said(value, script) for value in fact.values) for fact in role.facts)
    if not 1 <= unused <= MAX_UNUSED:
        found.append(f"{unused} facts are not mentioned in the call: give 1 or {MAX_UNUSED} of these")
    found += [
        f"no fact holds the value in {probe.answer!r}"
        for probe in script.probes
        if probe.kind in ("Q1", "Q2") and not probe.facts
    ]
    return found


def _fact_problems(fact: RoleFact) -> list[str]:
    sentence, found = fact.sentence, []
    if not sentence.isascii() or not sentence.endswith(".") or not 2 <= len(sentence.split()) <= MAX_FACT_WORDS:
        found.append(f"each fact is one plain sentence of up to {MAX_FACT_WORDS} words with a full stop: {sentence!r}")
    if not fact.values:
        found.append(f"name the values in {sentence!r}")
    for value in fact.values:
        if not value.text or not mentions(sentence, value.text):
            found.append(f"{value.text!r} does not stand in {sentence!r}")
        if not value.label:
            found.append(f"{value.text!r} needs a label")
    return found


def script_of(rows: Sequence[WrittenTurn], role: WrittenRole, plan: ServicePlan, rng: Random | None) -> Script:
    """The script of a transcript and a role; `rng` draws backchannels of the listener, None adds none."""
    turns = [row.turn() for row in rows]
    script = Script(
        id=plan.name,
        source="service",
        split=plan.split,
        scenario=f"service/{plan.scenario.id}",
        role_prompt=PROMPT.format(
            company=plan.company,
            business=plan.business,
            agent=plan.agent,
            facts=" ".join(fact.sentence for fact in role.facts),
        ),
        turns=tuple(turns),
        provenance={
            "generator": "service model 1",
            **plan.scenario.record(),
            "role": {"company": plan.company, "business": plan.business, "agent": plan.agent},
            "behaviours": [*plan.probes, *["barge_in"] * any(row.interrupts for row in rows)],
        },
    )
    facts = _facts(role, script)
    spoken = with_backchannels(turns, rng) if rng else turns
    places = [n for n, turn in enumerate(spoken) if turn.kind != "backchannel"]
    probes = [
        Probe(
            kind=row.probe,
            turn=places[n],
            question=row.text,
            facts=tuple(label for label, fact in facts.items() if _states(answer, fact)),
            answer=answer,
        )
        for n, row in enumerate(rows)
        if row.probe != "none"
        for answer in [rows[n + 1].text if n + 1 < len(rows) else ""]
    ]
    return replace(script, turns=tuple(spoken), facts=tuple(facts.values()), probes=tuple(probes))


def _facts(role: WrittenRole, script: Script) -> dict[str, Fact]:
    """The values of all facts by their labels: each text once, and a number where a label comes again."""
    found: dict[str, Fact] = {}
    for value in (value for fact in role.facts for value in fact.values):
        if any(fact.text == value.text for fact in found.values()):
            continue
        label = "_".join((value.label or "").lower().split())
        label = next(name for n in range(1, 100) if (name := label if n == 1 else f"{label}_{n}") not in found)
        found[label] = replace(value, label=label, used="yes" if fact_is_said(value, script) else "no")
    return found


def _states(text: str, fact: Fact) -> bool:
    """True if an answer states a fact: its value, or most of the long words of a phrase."""
    if mentions(text, fact.text):
        return True
    words = [word for word in fact.text.split() if len(word) > 3]
    return fact.type == "phrase" and sum(mentions(text, word) for word in words) * 2 > len(words)
