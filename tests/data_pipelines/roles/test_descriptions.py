"""What a model may say of a speaker: only what the speaker said, in plain sentences; and the levels that are drawn."""

from collections import Counter
from dataclasses import replace

import pytest

from data_pipelines.records.folder import load_dialogue
from data_pipelines.records.schema import Dialogue
from data_pipelines.roles.descriptions import (
    QuotedFact,
    SpeakerDescription,
    draw_levels,
    problems,
    question_text,
)
from tests.data_pipelines.roles.calls import call

pytest.importorskip("num2words")


def fact(sentence: str, *evidence: str) -> QuotedFact:
    return QuotedFact(sentence=sentence, evidence=evidence)


GOOD = SpeakerDescription(
    topic="eating at home",
    tone="casual",
    form="discussion",
    facts=(fact("You live in Boston.", "I live in Boston"),),
)


def with_fact(sentence: str, *evidence: str) -> SpeakerDescription:
    return replace(GOOD, facts=(fact(sentence, *evidence),))


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory: pytest.TempPathFactory) -> Dialogue:
    return load_dialogue(call(tmp_path_factory.mktemp("calls"), "x"))


def test_the_transcript_reads_as_turns_and_marks_the_side_asked_about(dialogue: Dialogue) -> None:
    assert question_text(dialogue, "right").splitlines() == [
        "The callers were asked to talk about: eating at home",
        "OTHER: so i live in boston and i have two dogs what about you",
        "ME: oh i grew up in texas",
        "OTHER: yeah i was a baker for twenty one years",
        "ME: you live in boston and my wife works for delta i don't like meetings",
    ]


@pytest.mark.parametrize(
    "description",
    [
        GOOD,
        replace(GOOD, facts=()),
        replace(GOOD, topic="dogs in Boston"),
        replace(GOOD, topic="eating at Home"),  # the title's word
        with_fact("You have 2 dogs.", "i have two dogs"),
        with_fact("You are a former baker with 21 years of work.", "I was a baker, for twenty-one years"),
        with_fact("You live in Boston.", "boston and I have"),
        with_fact("You enjoyed baking.", "i was a baker"),
    ],
)
def test_what_the_side_said_itself_is_accepted(dialogue: Dialogue, description: SpeakerDescription) -> None:
    assert problems(description, dialogue, "left") == []


@pytest.mark.parametrize(
    "description, problem",
    [
        (with_fact("You live in Chicago.", "i live in boston"), "'Chicago' is not in the evidence for"),
        (with_fact("You live in chicago.", "i live in boston"), "'Chicago' is not in the evidence for"),
        (with_fact("You live in new york.", "i live in boston"), "'New' is not in the evidence for"),
        (with_fact("You are Boston Baker.", "i live in boston", "i was a baker"), "'Boston Baker' is not in"),
        (with_fact("You grew up in Texas.", "i live in boston"), "'Texas' is not in the evidence for"),
        (with_fact("You have three dogs.", "i have two dogs"), "'three' is not in the evidence for"),
        (with_fact("You have 12 dogs.", "i have two dogs"), "'12' is not in the evidence for"),
        (with_fact("You were a baker for 2 years.", "i was a baker"), "'2' is not in the evidence"),  # two: the dogs
        (with_fact("You baked for twenty-two years.", "a baker for twenty one years"), "'twenty-two' is not in"),
        (with_fact("You live in a twenty-room house.", "i live in boston"), "'twenty' is not in the evidence"),
        (replace(GOOD, topic="life in denver"), "'Denver' is not in the words of ME"),
        (replace(GOOD, topic="the Boston Texas game"), "'Boston Texas' is not in the words of ME"),
        (replace(GOOD, topic="life in Denver"), "'Denver' is not in the words of ME"),
        (with_fact("You live in Boston.", "i grew up in texas"), "not a quotation of two words or more from ME"),
        (with_fact("You live in Boston.", "i live in old boston"), "not a quotation"),
        (with_fact("You live in Boston.", "boston"), "not a quotation"),
        (with_fact("You live in Boston."), "no evidence"),
        (with_fact("You ask questions.", "what about you"), "is about the other speaker"),
        (with_fact("You love skiing.", "i live in boston"), "the evidence says nothing of"),
        (with_fact("You have a happy home.", "and i have two"), "the evidence says nothing of"),
        (with_fact("He lives in Boston.", "i live in boston"), "begins with You"),
        (with_fact("You live in Boston", "i live in boston"), "ends with a full stop"),
        (with_fact("You live here. Boston is home.", "i live in boston"), "each fact is one sentence"),
        (with_fact("You are " + "very " * 30 + "happy.", "i live in boston"), "3 to 25 words"),
        (with_fact("You live at 555-0123.", "i live in boston"), "a telephone number"),
        (replace(GOOD, topic="mail to bob at gmail"), "an e-mail address"),
        (replace(GOOD, topic="eating. at home"), "topic must be"),
        (replace(GOOD, topic="word " * 15), "topic must be"),
        (replace(GOOD, tone="Very nice"), "one adjective"),
        (replace(GOOD, facts=GOOD.facts * 6), "at most 5 facts"),
    ],
)
def test_what_was_not_said_is_a_problem(dialogue: Dialogue, description: SpeakerDescription, problem: str) -> None:
    found = problems(description, dialogue, "left")
    assert any(problem in text for text in found), found


def test_a_fact_about_the_other_speaker_is_refused_though_this_side_said_it(dialogue: Dialogue) -> None:
    description = with_fact("You live in Boston.", "you live in boston")
    assert problems(description, dialogue, "right") == ["'you live in boston' is about the other speaker"]


def test_levels_have_a_third_each_on_both_sides_and_never_two_bare_sentences() -> None:
    draws = [draw_levels(0, f"call-{n}", ("left", "right")) for n in range(3000)]
    for side in ("left", "right"):
        counts = Counter(draw[side] for draw in draws)
        assert all(900 < counts[level] < 1100 for level in "abc"), counts
    assert not any(draw == {"left": "a", "right": "a"} for draw in draws)
    assert {tuple(draw_levels(seed, "x", ("left",))) for seed in range(20)} == {("left",)}
    assert {draw_levels(seed, "x", ("left",))["left"] for seed in range(20)} == set("abc")


def test_prompts_of_all_levels_come_from_one_description() -> None:
    bare, about = "You enjoy having a good conversation.", "Have a casual discussion about eating at home."
    assert [GOOD.prompt(level) for level in "abc"] == [bare, f"{bare} {about}", f"{bare} {about} You live in Boston."]
    assert replace(GOOD, tone="ironic").prompt("b") == f"{bare} Have an ironic discussion about eating at home."
    assert replace(GOOD, facts=()).prompt("c") == GOOD.prompt("b")
