"""The rules for what a model writes, one by one: transcripts, roles and exchanges with the teacher."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from data_pipelines.records.schema import Turn
from data_pipelines.writer.llm_assistant import Exchange, draw_plan, exchange_problems
from data_pipelines.writer.llm_scenarios import Scenario
from data_pipelines.writer.llm_service import role_problems, transcript_problems
from data_pipelines.writer.llm_text import plain, turn_problems
from tests.data_pipelines.writer.planned import Rows, a_plan, a_role, a_transcript


def test_the_author_of_these_tests_keeps_the_rules() -> None:
    plan = a_plan()
    rows = a_transcript(plan)
    assert transcript_problems(rows, plan) == []
    assert role_problems(a_role(plan, rows), rows, plan) == []


def edit(n: int, **changes: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[n].update(changes)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda rows: rows.insert(2, dict(rows[1], text="And another thing.")), "user speaks twice in a row"),
        (lambda rows: rows.insert(3, dict(rows[2])), "agent speaks twice in a row"),
        (edit(6, text="Of course. That costs $8 and takes 5 days"), None),
        (lambda rows: rows[6].update(text=rows[2]["text"]), "turn 6 repeats turn 2"),
        (lambda rows: rows[6].update(text=rows[2]["text"].replace("Of course", "Sure")), "turn 6 repeats turn 2"),
        (lambda rows: rows.__delitem__(slice(3, None)), "3 turns: write 5 to 24"),
        (lambda rows: rows[3].update(text="yes " * 90), "turn 3 has 90 words"),
        (lambda rows: [row.update(text=row["text"] + " and so on" * 20) for row in rows], "s to say: write for"),
        (edit(0, text="Thank you for calling, how can I help?"), "in its first turn the agent must say"),
        (lambda rows: rows.pop(0), "the agent must speak first"),
        (edit(2, interrupts=True), "the agent must not interrupt"),
        (edit(3, interrupts=True), "nobody may interrupt"),
        (edit(1, text="Call me on 555-0199, please."), "turn 1 holds a telephone number"),
        (edit(1, text="Write to me at joe at gmail dot com."), "turn 1 holds an e-mail address"),
        (edit(1, text="My number is 078-05-1120."), "a social-security number"),
        (edit(1, text="It's four one five five five five oh one two three."), "a number spelled digit by digit"),
        (edit(1, text="[sighs] I lost my card."), "without '[]'"),
        (edit(1, text=""), "turn 1 is empty"),
        (edit(5, probe="none"), "mark one customer turn each with the probes Q0, Q1"),
        (edit(3, probe="Q6"), "mark one customer turn each"),
        (lambda rows: (rows[5].update(probe="none"), rows[6].update(probe="Q0")), "must be a customer turn"),
        (edit(6, text="I would rather not say."), "after Q0 the agent must say"),
    ],
)
def test_what_breaks_a_transcript(change: Callable[[Rows], object], problem: str | None) -> None:
    plan = a_plan()
    found = transcript_problems(a_transcript(plan, change), plan)
    assert any(problem in text for text in found) if problem else found != [], found


def test_a_planned_interruption_must_be_there() -> None:
    plan = a_plan(barges_in=True)
    assert transcript_problems(a_transcript(plan), plan) == []
    found = transcript_problems(a_transcript(plan, edit(3, interrupts=False)), plan)
    assert "one customer turn must have interrupts true" in found[0]


def facts(change: Callable[[Rows], object]) -> Callable[[dict[str, Any]], object]:
    return lambda role: change(role["facts"])


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda role: role.update(company="Other Bank"), "company must be"),
        (lambda role: role.update(agent_name="Bob"), "agent_name must be"),
        (facts(lambda f: f.pop(0)), "but no fact does, nor the customer before"),
        (facts(lambda f: f.pop()), "0 facts are not mentioned"),
        (facts(lambda f: f.extend([f[-1]] * 3)), "6 facts: give 3 to 5"),
        (facts(lambda f: f[0].update(values=[])), "name the values in"),
        (facts(lambda f: f[0]["values"][0].update(text="$99")), "'$99' does not stand in"),
        (facts(lambda f: f[0]["values"][0].update(label="")), "needs a label"),
        (facts(lambda f: f[0].update(sentence="No full stop here")), "with a full stop"),
        (facts(lambda f: f[0].update(sentence=f[0]["sentence"] + " Mail us at a@b.com.")), "an e-mail address"),
        (facts(lambda f: f[1].update(sentence="One thing is cheap.", values=[])), "no fact holds the value in"),
    ],
)
def test_what_breaks_a_role(change: Callable[[dict[str, Any]], object], problem: str) -> None:
    plan = a_plan()
    rows = a_transcript(plan)
    found = role_problems(a_role(plan, rows, change), rows, plan)
    assert any(problem in text for text in found), found


def test_two_agent_turns_in_a_row_with_nearly_the_same_words_are_refused() -> None:
    """Seen from a small model whose answer fits the schema."""
    turns = [
        Turn(speaker="user", text="Can you help me with the card that I lost?"),
        Turn(speaker="agent", text="Sure, I can help you with that card right now."),
        Turn(speaker="agent", text="Sure, I can help you with that card right away now."),
    ]
    found = turn_problems(turns)
    assert any("agent speaks twice in a row" in text for text in found)
    assert any("turn 2 repeats turn 1" in text for text in found)


def test_typography_becomes_plain_text() -> None:
    assert plain("It\u2019s \u201cfine\u201d \u2014 really\u2026 ; ok") == "It's fine, really..., ok"


@pytest.mark.parametrize(
    "question, answer, problem",
    [
        ("How do clouds form?", "Water rises as vapor, cools down high above us, and gathers in tiny drops.", None),
        ("How?", "Water rises as vapor, cools down high above us, and gathers in tiny drops.", "question has 1 words"),
        ("How do clouds form?", "They just do.", "answer has 3 words"),
        ("How do clouds form?", "Well, " + "water rises and it cools " * 20, "answer has 101 words"),
        ("How do clouds form?", "Rivers are born in the hills, where rain gathers and flows down.", "repeats turn 1"),
        ("How do clouds form?", "1) Water rises. 2) It cools. 3) It gathers in tiny drops up there.", "without ')'"),
    ],
)
def test_what_breaks_an_exchange(question: str, answer: str, problem: str | None) -> None:
    topic = Scenario(id="w/x", domain="w", kind="how", title="clouds", summary="s", goal="g", complication="")
    plan = draw_plan("assistant-0-000001", Random(1), "train", topic, None)
    before = (
        Turn(speaker="user", text="Where do rivers begin?"),
        Turn(speaker="agent", text="Rivers are born in the hills, where rain gathers and flows down."),
    )
    found = exchange_problems(Exchange(question=question, answer=answer), plan, before, 2)
    assert any(problem in text for text in found) if problem else found == [], found
