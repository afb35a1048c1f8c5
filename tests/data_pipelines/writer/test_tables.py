"""The tables of the writer, line by line, and the small rules that make English of their lines."""

import re
from random import Random

import pytest

from data_pipelines.records.schema import Turn
from data_pipelines.writer.assistant import topics
from data_pipelines.writer.service import scenarios
from data_pipelines.writer.slots import clock, money, ordinal
from data_pipelines.writer.synth import write_scripts
from data_pipelines.writer.tables import service_domains, table
from data_pipelines.writer.wording import LOWERED, chosen, estimated_seconds, fill, fitting, joined, mentions


def test_the_length_estimate_counts_digits_and_gaps() -> None:
    turns = [Turn(speaker="agent", text="It costs $12 today."), Turn(speaker="user", text="Mm-hm.", kind="backchannel")]
    assert estimated_seconds(turns) == pytest.approx(6 / 2.6 + 0.25)  # Three words, "$" and two digits.


def test_tables_are_as_rich_as_promised() -> None:
    assert len(service_domains()) >= 40 and len(topics()) >= 160
    assert len(set(table("names")["first"].split())) > 300 and len(set(table("names")["last"].split())) > 300
    assert all(len(topic["ask"]) >= 3 and len(topic["more"]) >= 2 for topic in topics().values())


def test_every_line_of_the_service_tables_can_be_filled() -> None:
    # Without this test a slot that nothing defines would surface only when its template is drawn.
    shared = {"company", "business", "agent", "agent_first", "customer", "customer_first", "topic", "value"}
    for domain, rows in service_domains().items():
        for name, business in rows["businesses"].items():
            known = shared | set(rows["slots"]) | {key for key, value in business.items() if isinstance(value, list)}
            used = {
                re.sub(r"\d+$", "", slot) if slot not in known else slot for slot in re.findall(r"{(\w+)}", str(rows))
            }
            assert used <= known, (domain, name, used - known)
        facts = set(rows["facts"]) | set(rows.get("scenario_facts", {})) | {"verify"}
        for kind, scenario in rows["scenarios"].items():
            assert set(scenario["needs"]) <= facts and set(scenario.get("asks", ())) <= set(rows["facts"]), (
                domain,
                kind,
            )
            assert set(scenario["steps"]) <= set(rows["steps"]) | {"name", "verify"}, (domain, kind)


def test_what_follows_a_lead_in_begins_in_lower_case_unless_it_is_a_name() -> None:
    proper = set("Apollo Caesar DNA English Gutenberg's I I'd India Neil Rome".split())
    for topic in topics().values():
        lines = [*topic["ask"], topic["answer"][0], topic["simple"], *(more["ask"] for more in topic["more"])]
        for line in lines:
            after = joined("In short,", line).split()[2]
            assert after[0].islower() or after.rstrip(",.?") in proper, line
    for rows in service_domains().values():
        lines = [line for row in (*rows["facts"].values(), *rows["cannot"]) for line in [*row["ask"], *row["answer"]]]
        for line in lines + [line for row in rows["unspecified"] for line in row["ask"]]:
            first = line.split()[0].strip(",.?")
            assert first in LOWERED or first[0] == "{" or re.match(r"(I|Sorry)\b", first), line
    assert not LOWERED & set(table("names")["first"].split()) | LOWERED & set(table("names")["last"].split())


def test_small_wording_rules() -> None:
    assert (money(8.5), money(12), clock(16.5), clock(12), clock(9)) == ("$8.50", "$12", "4:30 PM", "12 PM", "9 AM")
    assert [
        ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23)
    ] == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd".split()
    assert fill("a {x} for a {n} day trip. it is a hour.", {"x": "ocean view", "n": "8"}) == (
        "An ocean view for an 8 day trip. It is an hour."
    )
    assert joined("By the way,", "The soup is hot.") == "By the way, the soup is hot."
    assert joined("By the way,", "Sven is free.") == "By the way, Sven is free."
    assert joined("Okay.", "The soup is hot.") == "Okay. The soup is hot."
    assert joined("Okay, and", "And for tea?") == "Okay, and for tea?"
    assert joined("Um,", "Hello? Is this the shop?") == "Um, hello? Is this the shop?"
    assert joined("One more thing,", "And the soup?") == "And the soup?"
    assert joined("Just so you know,", "Check-in starts late.") == "Just so you know, check-in starts late."
    assert mentions("It is $5.50, at 5 PM.", "5 PM") and not mentions("It is $5.50, at 15:30.", "5")
    assert fitting("How much is it?", "Yes, it's $5.") == "It's $5."
    assert fitting("Do you deliver?", "Yes, for $5.") == "Yes, for $5."


def test_lines_of_the_tables_end_as_they_begin() -> None:
    every = [*table("phrases").values(), table("assistant")["phrases"], *service_domains().values()]
    for row in every:
        for line in re.findall(r"""['"]([A-Z[][^'"]*[?])['"]""", str(row)):
            for n in range(6):  # These draw every alternative of the last bracket.
                last = re.split(r"(?<=[.!?])\s+", chosen(Random(n), line))[-1]
                assert not re.match(r"(Let's|Tell me|I can|I could)\b", last) or last[-1] != "?", line


def test_a_scenario_may_fit_some_businesses_only() -> None:
    assert "vet/vet/worry" in scenarios()
    assert "vet/groom/worry" not in scenarios() and "vet/boarding/worry" not in scenarios()
    for rows in service_domains().values():
        for kind in rows["scenarios"].values():
            assert set(kind.get("businesses", ())) <= set(rows["businesses"])


def test_a_season_costs_less_than_its_visits_one_by_one() -> None:
    scripts = [s for s in write_scripts("service", num=1500, seed=1, heldout=0.0) if "lawn_care" in s.scenario]
    plans = [re.search(r"Price for [^:]+: \$(\d+)\b.*plan \$(\d+) for (\d+) visits", s.role_prompt) for s in scripts]
    found = [tuple(map(int, match.groups())) for match in plans if match]
    assert len(found) > 5
    assert all(price < season < price * visits for price, season, visits in found)


def test_there_are_at_least_forty_domains_and_every_bracket_is_closed() -> None:
    assert len(service_domains()) >= 40
    for script in write_scripts("service", num=300, seed=5):
        assert not any(c in turn.text for turn in script.turns for c in "[]|")
