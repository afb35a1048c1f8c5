"""Customer-service scripts: domain -> scenario -> description -> transcript -> role, as in the PersonaPlex paper.

The agent works for an invented company and knows 3 to 5 facts; all numbers and names it says come from its role
prompt or from the user. `service_talk` holds the course of a call, `service_extras` what may happen in it.
"""

from functools import lru_cache
from random import Random

from data_pipelines.records.schema import Probe, Script
from data_pipelines.records.split import drawn_in_split, members
from data_pipelines.writer.conversation import with_backchannels, with_fillers
from data_pipelines.writer.service_call import ServiceCall
from data_pipelines.writer.service_talk import transcript
from data_pipelines.writer.tables import service_domains, table


@lru_cache(maxsize=1)
def scenarios() -> tuple[str, ...]:
    """All scenario ids: "domain/business/kind". A kind may name the businesses that it fits."""
    return tuple(
        f"{domain}/{business}/{kind}"
        for domain, rows in service_domains().items()
        for business in rows["businesses"]
        for kind, row in rows["scenarios"].items()
        if business in row.get("businesses", rows["businesses"])
    )


def request_of(scenario: str) -> str:
    """The "domain/kind" of a scenario, which decides its split, so that a held-out request is worded anew."""
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
    """One script named `name`. Its length may exceed `limit` seconds; the caller then draws again."""
    request = rng.choice(members(tuple(by_request()), heldout, split))
    call = ServiceCall(rng.choice(by_request()[request]), rng, limit)
    last, last2, owner = rng.sample(table("names")["last"].split(), 3)
    nouns = call.business["nouns"]
    company = drawn_in_split(lambda: company_name(rng, owner, nouns), "company", heldout, split)
    call.cast(company, agent_last=last, user_last=last2)
    turns = with_backchannels(with_fillers(transcript(call).turns, rng), rng)
    places = [n for n, turn in enumerate(turns) if turn.kind != "backchannel"]
    prompt, facts = call.role()
    return Script(
        id=name,
        source="service",
        split=split,
        scenario=f"service/{call.scenario}",
        role_prompt=prompt,
        turns=tuple(turns),
        facts=tuple(facts),
        probes=tuple(
            Probe(kind=kind, turn=places[turn], question=asked.question, facts=asked.facts, answer=asked.answer)
            for kind, turn, asked in call.probes
        ),
        provenance=call.stages(),
    )


def company_name(rng: Random, owner: str, nouns: list[str]) -> str:
    """An invented name such as "Silver Harbor Pizzeria"; `owner` is a last name that may be in it."""
    words = table("companies")
    adjective, thing = rng.choice(words["adjectives"].split()), rng.choice(words["things"].split())
    stems = [f"{adjective} {thing}", f"{adjective} {thing}", thing, f"{owner}'s", owner, f"{adjective} {thing}"]
    noun = rng.choice(nouns)
    return " ".join(dict.fromkeys(f"{rng.choice(stems)} {noun}".split()))  # There is no "Bay Bay Resort".
