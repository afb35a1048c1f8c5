"""Scenarios by a model: they differ from each other, and a model with one idea only makes none."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.writer import llm_service_plan
from data_pipelines.writer.llm_scenarios import Scenario, Scenarios, resembles
from tests.data_pipelines.llm_author import author
from tests.data_pipelines.llm_server import Body, LLMServer

pytest.importorskip("openai")
pytest.importorskip("jsonschema")


def scenario(title: str, summary: str, goal: str = "To have it done.") -> Scenario:
    return Scenario(id=f"d/{title}", domain="d", kind="k", title=title, summary=summary, goal=goal, complication="")


@pytest.mark.parametrize(
    "title, summary, like",
    [
        ("Refund for a late order", "Quite another story about a parcel that came far too late.", True),
        ("late orders: refund", "Quite another story about a parcel that came far too late.", True),
        ("change of address", "The customer asks for money back because the meal came cold and late.", True),
        ("change of address", "The customer has moved and asks where the next bill will be sent.", False),
    ],
)
def test_scenarios_differ_in_title_and_description(title: str, summary: str, like: bool) -> None:
    known = [scenario("Refund for late order", "The customer asks for money back because the meal came cold and late.")]
    assert resembles(scenario(title, summary), known) is like


def test_near_duplicate_scenarios_are_drawn_again(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def reply(body: Body) -> dict[str, Any]:
        name = body["response_format"]["json_schema"]["name"]
        asked[name] += 1
        if name == "scenario" and asked[name] == 2:
            return {"kind": "problem", "title": "a card is lost"}
        if name == "scenario" and asked[name] == 1:
            return {"kind": "problem", "title": "card is lost"}
        return author(body)

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url), tmp_path)
        found = Scenarios(client, llm_service_plan.LEVELS, 0, 3)
        known = found.of("bank", "Line of business: bank")
    assert len(known) == 3 and asked["scenario"] == 4
    assert found.redrawn == {"near-duplicate": 1}
    shown = [body["messages"][1]["content"] for body in server.bodies if "These exist already" in str(body)]
    assert "- card is lost" in shown[0]


@pytest.mark.parametrize("value, problem", [
    ({"kind": "problem", "title": "lost"}, "title must have 2 to 12 words, not 1"),
    ({"kind": "a very long kind of thing", "title": "a lost card"}, "kind must have 1 to 5 words"),
    ({"kind": "problem", "title": "??? !!!"}, "title must have words in it"),
    ({"kind": "problem", "title": "call 555-0199 now"}, "title holds a telephone number"),
])  # fmt: skip
def test_a_scenario_that_cannot_be_used_is_asked_for_again(tmp_path: Path, value: Any, problem: str) -> None:
    def reply(body: Body) -> dict[str, Any]:
        return value if body["response_format"]["json_schema"]["name"] == "scenario" else author(body)

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, tries=2), tmp_path)
        with pytest.raises(NoAnswer, match="0 scenarios"):
            Scenarios(client, llm_service_plan.LEVELS, 0, 2).of("bank", "Line of business: bank")
    assert any(problem in body["messages"][-1]["content"] for body in server.bodies)
