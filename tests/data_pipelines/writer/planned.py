"""One plan of a service call, and what a model that does its work makes of it."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from data_pipelines.writer.llm_scenarios import Scenario
from data_pipelines.writer.llm_service import WrittenCall, WrittenRole, WrittenTurn
from data_pipelines.writer.llm_service_plan import ServicePlan, draw_plan
from data_pipelines.writer.llm_text import plain_record
from tests.data_pipelines.llm_author import author

Rows = list[dict[str, Any]]
"""The turns of a transcript as the model writes them."""


def a_plan(**changes: Any) -> ServicePlan:
    scenario = Scenario(
        id="bank/x", domain="bank", kind="problem", title="a card is lost", summary="s", goal="g", complication=""
    )
    plan = draw_plan("service-0-000001", Random(3), "train", 0.1, scenario, None)
    usual: dict[str, Any] = {"probes": ("Q0", "Q1"), "agent_greets": True, "barges_in": False}
    return replace(plan, **(usual | changes))


def _written(name: str, text: str) -> dict[str, Any]:
    return author({"seed": 5, "messages": [{}, {"content": text}], "response_format": {"json_schema": {"name": name}}})


def a_transcript(plan: ServicePlan, change: Callable[[Rows], object] = list) -> tuple[WrittenTurn, ...]:
    """The transcript of a plan; `change` edits the model's JSON."""
    written = _written("transcript", plan.text())
    change(written["turns"])
    return plain_record(WrittenCall)(written).turns


def a_role(
    plan: ServicePlan, rows: tuple[WrittenTurn, ...], change: Callable[[dict[str, Any]], object] = dict
) -> WrittenRole:
    """The role for a transcript; `change` edits the model's JSON."""
    said = "\n".join(f"{row.speaker}: {row.text}" for row in rows)
    written = _written("role", f"{plan.text()}\n{said}")
    change(written)
    return plain_record(WrittenRole)(written)
