"""What is drawn for a service script before a model writes it: cast, probes and manners.

The names come from the writer's tables, because models prefer a few names far too much; companies are drawn within the
split. The probes (the kinds of user behaviour that an evaluation asks for) are drawn for each script.
"""

from dataclasses import dataclass
from random import Random

from data_pipelines.records.split import drawn_in_split
from data_pipelines.writer.llm_scenarios import Levels, Scenario
from data_pipelines.writer.service import company_name
from data_pipelines.writer.tables import service_domains, table

AGENT_GREETS, BARGES_IN = 0.88, 0.25
"""The chances that the agent speaks first, and that the user cuts in."""
LONGEST = 110.0
"""Seconds; the limit where none is asked for."""
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
class ServicePlan:
    """What is drawn for one script before the model writes it; the model calls the user "customer"."""

    name: str
    split: str
    scenario: Scenario
    company: str
    business: str
    agent: str
    user: str
    """First and last names."""
    probes: tuple[str, ...]
    """Kinds of probes, sorted."""
    mood: str
    agent_greets: bool
    barges_in: bool
    """Whether the user interrupts the agent once."""
    limit: float
    """Longest estimated length in seconds."""
    target: float
    """The length in seconds that the model is asked for."""

    def text(self) -> str:
        """The plan as the model reads it."""
        s = self.scenario
        cuts = "One customer turn interrupts the agent." if self.barges_in else "Nobody interrupts."
        lines = [
            f"Company: {self.company}, a {self.business}",
            f"Agent: {self.agent}",
            f"Customer: {self.user}, {self.mood}",
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


def domain_texts() -> dict[str, str]:
    """How the prompts describe each domain of the tables."""
    return {
        domain: f"Line of business: {domain.replace('_', ' ')} ("
        + ", ".join(row["business"] for row in rows["businesses"].values())
        + ")"
        for domain, rows in service_domains().items()
    }


def draw_plan(
    name: str, rng: Random, split: str, heldout: float, scenario: Scenario, limit: float | None
) -> ServicePlan:
    """Cast, probes and manners of one script; the company's name lies in the split."""
    business = rng.choice(list(service_domains()[scenario.domain]["businesses"].values()))
    names = {kind: text.split() for kind, text in table("names").items()}
    first, last = rng.sample(names["first"], 2), rng.sample(names["last"], 3)
    most = LONGEST if limit is None else limit
    return ServicePlan(
        name=name,
        split=split,
        scenario=scenario,
        company=drawn_in_split(lambda: company_name(rng, last[2], business["nouns"]), "company", heldout, split),
        business=business["business"],
        agent=f"{first[0]} {last[0]}",
        user=f"{first[1]} {last[1]}",
        probes=tuple(sorted(rng.sample(list(PROBES), rng.choice((2, 3, 3) if most > 40 else (1,))))),
        mood=rng.choice(MOODS),
        agent_greets=rng.random() < AGENT_GREETS,
        barges_in=rng.random() < BARGES_IN,
        limit=most,
        target=rng.uniform(0.6, 0.8) * min(most, 80.0),
    )
