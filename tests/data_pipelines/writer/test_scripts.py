"""What the written scripts say: grounded in their prompts, speakable, and as people talk."""

import itertools
import re
from collections import Counter
from dataclasses import replace

from data_pipelines.records.schema import Script, Turn
from data_pipelines.writer.assistant import KINDS
from data_pipelines.writer.problems import problems
from data_pipelines.writer.synth import write_scripts
from data_pipelines.writer.tables import table
from tests.data_pipelines.writer.figures import figures_of

TEACHER = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
MONTHS = "January February March April May June July August September October November December".split()


def test_service_prompts_have_the_published_form(service: list[Script]) -> None:
    form = re.compile(r"You work for (.+?) which is a (.+?) and your name is (\S+ \S+)\. Information: (.+\.)")
    for script in service:
        match = form.fullmatch(script.role_prompt)
        assert match, script.role_prompt
        assert match.groups()[:3] == tuple(script.provenance["role"][key] for key in ("company", "business", "agent"))
    assert any("which is a internet provider" in script.role_prompt for script in service)  # the article never changes


def test_the_assistant_always_has_the_teacher_prompt(assistant: list[Script]) -> None:
    assert {script.role_prompt for script in assistant} == {TEACHER}


def test_every_number_and_name_the_agent_says_is_in_the_prompt_or_the_users_words(service: list[Script]) -> None:
    # This is written apart from data_pipelines.writer.problems on purpose.
    people = set(table("names")["first"].split()) | set(table("names")["last"].split())
    for script in service:
        heard = script.role_prompt.lower()
        for turn in script.turns:
            if turn.speaker == "user":
                heard += "\n" + turn.text.lower()
                continue
            tokens = [token.strip(".,?!$%").removesuffix("'s") for token in turn.text.replace("May I", "").split()]
            for token in tokens:
                is_name = token in people or token in MONTHS or (token.endswith("day") and token[0].isupper())
                if is_name or any(c.isdigit() for c in token):
                    assert re.search(rf"(?<![a-z0-9]){re.escape(token.lower())}(?![a-z0-9])", heard), (token, script)


def test_the_agent_says_its_company_or_its_name(service: list[Script]) -> None:
    for script in service:
        said = " ".join(turn.text for turn in script.turns if turn.speaker == "agent")
        role = script.provenance["role"]
        assert role["company"] in said or role["agent"].split()[0] in said, script


def test_nearly_all_used_facts_are_said_and_some_facts_are_unused(service: list[Script]) -> None:
    assert figures_of(service)["fact_coverage"] > 0.93
    for script in service:
        typed = Counter(fact.used for fact in script.facts)
        assert typed["yes"] >= 1 and typed["no"] >= 1, script
        assert all(
            fact.text in script.role_prompt or fact.text.capitalize() in script.role_prompt for fact in script.facts
        )
        assert {fact.type for fact in script.facts} <= {"money", "time", "date", "number", "id", "name", "phrase"}


def test_all_seven_behaviours_occur(service: list[Script]) -> None:
    seen = Counter(what for script in service for what in script.provenance["behaviours"])
    assert min(seen[f"Q{n}"] for n in range(7)) >= 10
    assert 0.1 < seen["barge_in"] / len(service) < 0.4


def test_speakers_alternate_and_overlaps_answer_the_other_side(service: list[Script], assistant: list[Script]) -> None:
    for script in service + assistant:
        spoken = [turn for turn in script.turns if turn.kind != "backchannel"]
        assert all(a.speaker != b.speaker for a, b in itertools.pairwise(spoken)), script
        for before, turn in zip(script.turns, script.turns[1:], strict=False):
            if turn.kind != "normal":
                assert before.speaker != turn.speaker and before.kind == "normal", script
        assert script.turns[0].kind == "normal"


def test_most_service_calls_open_with_the_agent(service: list[Script]) -> None:
    share = sum(script.turns[0].speaker == "agent" for script in service) / len(service)
    assert 0.8 < share < 0.95


def test_half_of_the_second_questions_cut_in(assistant: list[Script]) -> None:
    share = sum(any(turn.kind == "barge_in" for turn in script.turns) for script in assistant) / len(assistant)
    assert 0.4 < share < 0.6
    kinds = Counter(script.provenance["behaviours"][0] for script in assistant)
    assert set(kinds) == set(KINDS)
    assert all(
        0.5 < count / len(assistant) / (KINDS[kind] / sum(KINDS.values())) < 1.5 for kind, count in kinds.items()
    )


def test_text_is_plain_ascii_that_can_be_spoken(service: list[Script], assistant: list[Script]) -> None:
    for script in service + assistant:
        for turn in script.turns:
            assert re.fullmatch(r"[A-Za-z0-9 .,?!'$%:-]+", turn.text), turn.text
            assert "  " not in turn.text and ".." not in turn.text and " ." not in turn.text, turn.text
        assert script.role_prompt.isascii() and not re.search(r"[{}<>*_#]", script.role_prompt)


def test_articles_follow_the_sound_of_the_next_word(service: list[Script]) -> None:
    for script in service:
        for turn in script.turns:
            assert not re.search(r"\b[Aa] (e|i|o|a)\w+", turn.text), turn.text
            assert not re.search(r"\b[Aa]n [bcdfgjklmnpqrstvwxyz]\w+", turn.text), turn.text


def test_a_made_up_number_is_reported() -> None:
    script = write_scripts("service", num=1, seed=0)[0]
    turns = (*script.turns, Turn(speaker="user" if script.turns[-1].speaker == "agent" else "agent", text="Ask Zelda."))
    lie = Turn(speaker="agent", text="That will be $987.")
    broken = replace(script, turns=(turns[0], Turn(speaker="user", text="How much?"), lie))
    assert not problems(script)
    assert any("987" in problem for problem in problems(broken))


def test_every_probe_is_asked_where_it_says_and_answered_next(service: list[Script]) -> None:
    kinds = Counter(probe.kind for script in service for probe in script.probes)
    assert set(kinds) == {f"Q{n}" for n in range(7)} and min(kinds.values()) >= 10
    for script in service:
        labels = {fact.label for fact in script.facts if fact.used == "yes"} | {"agent", "company"}
        for probe in script.probes:
            assert probe.turn is not None and probe.question and probe.answer and probe.facts is not None
            asked = script.turns[probe.turn]
            assert asked.speaker == "user" and probe.question[1:] in asked.text, (probe, script)
            answered = next(turn for turn in script.turns[probe.turn + 1 :] if turn.kind == "normal")
            assert answered.speaker == "agent" and probe.answer[1:].rstrip(".") in answered.text, (probe, script)
            assert set(probe.facts) <= labels, (probe, script)
            assert bool(probe.facts) == (probe.kind in ("Q0", "Q1", "Q2", "Q3"))
        assert sorted(probe.kind for probe in script.probes) == sorted(
            what for what in script.provenance["behaviours"] if what.startswith("Q")
        )


def test_people_greet_once_and_wish_back_only_what_was_wished(service: list[Script]) -> None:
    seen: Counter[str] = Counter()
    for script in service:
        turns = [turn for turn in script.turns if turn.kind != "backchannel"]
        if turns[0].speaker == "user":
            seen["user first"] += 1
            assert not re.match(r"(Yeah, )?(hi|hello)\b", turns[2].text, re.IGNORECASE), turns[2]
        if re.search(r"\b(you too|same to you)\b", turns[-1].text, re.IGNORECASE):
            seen["wished back"] += 1
            assert re.search(r"have a|wish|enjoy|take care|all the best", turns[-2].text, re.IGNORECASE), turns[-2]
    assert min(seen["user first"], seen["wished back"]) > 10


def test_nobody_says_a_sentence_twice_unless_asked_to(service: list[Script], assistant: list[Script]) -> None:
    for script in service + assistant:
        if "repeat" in script.provenance["behaviours"]:
            continue
        for side in ("agent", "user"):
            turns = [turn for turn in script.turns if turn.speaker == side and turn.kind != "backchannel"]
            said = [text for turn in turns for text in re.split(r"(?<=[.?!])\s+", turn.text) if len(text.split()) > 3]
            assert len(said) == len(set(said)), script


def test_whoever_was_rude_is_not_delighted_afterwards(service: list[Script]) -> None:
    for script in service:
        rude = [probe.turn for probe in script.probes if probe.kind == "Q4"]
        if rude and rude[0] is not None:
            later = " ".join(turn.text for turn in script.turns[rude[0] + 1 :] if turn.speaker == "user")
            assert not re.search(r"Lovely|Wonderful|Fantastic|Perfect|kind|helpful|a great help", later), script


def test_a_single_question_gets_no_backchannel(service: list[Script]) -> None:
    answered = [
        turns for s in service for turns in zip(s.turns, s.turns[1:], strict=False) if turns[1].kind[:4] == "back"
    ]
    assert len(answered) > 100
    for turn, hum in answered:
        assert not turn.text.endswith("?") or re.search(r"[.!?] ", turn.text), (turn, hum)
