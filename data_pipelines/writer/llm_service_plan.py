"""What is drawn for a service script before a model writes it: cast, probes and manners.

The names come from the writer's tables, drawn within the split, because models like a few names all too much. The
probes of each script (the kinds of customer behaviour that an evaluation asks for) are drawn per script.
"""

from dataclasses import dataclass
from random import Random

from data_pipelines.records.split import drawn_in_split
from data_pipelines.writer.llm_scenarios import Levels, Scenario
from data_pipelines.writer.service import company_name
from data_pipelines.writer.tables import service_domains, table

AGENT_GREETS, BARGES_IN, LONGEST = 0.88, 0.25, 110.0
PROBES = {
    "Q0": "asks for a name again, the company's or the agent's; the agent says it",
    "Q1": "asks about a detail that the agent knows; the agent answers with the exact price, time, date or number",
    "Q2": "asks about another detail that the agent knows; the agent answers with the exact value",
    "Q3": "asks for something that the company does not do or have; the agent says so plainly",
    "Q4": "is rude to the agent; the agent stays calm and polite",
    "Q5": "asks something about the business that the agent has no information on; the agent says it does not know",
    "Q6": "asks something that has nothing to do with the business; the agent leads back to it",
}
MOODS = "friendly chatty hurried unsure annoyed curious tired cheerful sceptical formal".split()
LEVELS = Levels(
    scenario="""You invent reasons why people call customer service. Answer in JSON with kind (in one to four words)
and title (in three to ten words). The title is about the request alone: no names of people or companies.""",
    description="""You describe a telephone call to customer service before it is written. Answer in JSON with summary
(one or two sentences), customer_goal (one sentence) and complication (one short sentence; empty if there is none).
Use no names of people or companies.""",
    kinds=("request", "complaint", "information", "change or cancellation", "refund", "booking or order", "problem"),
)


@dataclass(kw_only=True, frozen=True)
class Plan:
    """What is drawn for one script before the model writes it."""

    name: str
    split: str
    scenario: Scenario
    company: str
    business: str
    agent: str
    customer: str
    probes: tuple[str, ...]
    mood: str
    agent_greets: bool
    barges_in: bool
    limit: float
    target: float

    def text(self) -> str:
        """The plan as the model reads it."""
        s = self.scenario
        cuts = "One customer turn interrupts the agent." if self.barges_in else "Nobody interrupts."
        lines = [
            f"Company: {self.company}, a {self.business}",
            f"Agent: {self.agent}",
            f"Customer: {self.customer}, {self.mood}",
            f"Scenario: {s.title} ({s.kind})",
            f"Summary: {s.summary}",
            f"The customer wants: {s.goal}",
            *([f"Complication: {s.complication}"] if s.complication else []),
            f"The {'agent' if self.agent_greets else 'customer'} speaks first. {cuts}",
            f"About {round(self.target * 2.4 / 10) * 10} words in all, 8 to 14 turns.",
            "In the course of the call the customer does each of these once, in a turn of its own:",
            *(f"- {kind}: {PROBES[kind]}" for kind in self.probes),
        ]
        return "\n".join(lines)


def settings() -> dict[str, str]:
    """What the model is told about each domain of the tables."""
    return {
        domain: f"Line of business: {domain.replace('_', ' ')} ("
        + ", ".join(row["business"] for row in rows["businesses"].values())
        + ")"
        for domain, rows in service_domains().items()
    }


def draw_plan(name: str, rng: Random, split: str, heldout: float, scenario: Scenario, limit: float | None) -> Plan:
    """Cast, probes and manners of one script; company names keep to the split."""
    business = rng.choice(list(service_domains()[scenario.domain]["businesses"].values()))
    names = {kind: text.split() for kind, text in table("names").items()}
    first, last = rng.sample(names["first"], 2), rng.sample(names["last"], 3)
    most = LONGEST if limit is None else limit
    return Plan(
        name=name,
        split=split,
        scenario=scenario,
        company=drawn_in_split(lambda: company_name(rng, last[2], business["nouns"]), "company", heldout, split),
        business=business["business"],
        agent=f"{first[0]} {last[0]}",
        customer=f"{first[1]} {last[1]}",
        probes=tuple(sorted(rng.sample(list(PROBES), rng.choice((2, 3, 3) if most > 40 else (1,))))),
        mood=rng.choice(MOODS),
        agent_greets=rng.random() < AGENT_GREETS,
        barges_in=rng.random() < BARGES_IN,
        limit=most,
        target=rng.uniform(0.6, 0.8) * min(most, 80.0),
    )
