import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from random import Random

import pytest

from data_pipelines import verbs
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.schema import Turn, read_scripts
from data_pipelines.writer import llm_assistant, llm_service, llm_service_plan
from data_pipelines.writer.check import problems
from data_pipelines.writer.llm_scenarios import Scenario, Scenarios, resembles
from data_pipelines.writer.llm_text import plain, turn_problems
from data_pipelines.writer.split import bucket
from model.errors import UserError
from tests.data_pipelines.kill import kill_everywhere
from tests.data_pipelines.llm_author import author
from tests.data_pipelines.llm_server import LLMServer, say, status

pytest.importorskip("openai")
pytest.importorskip("jsonschema")
pytest.importorskip("num2words")


def synth(out, server, source="service", num=12, **options):
    options = {"llm_model": "m", "llm_url": server.url, "scenarios": 4, "llm_retries": 0} | options
    words = [str(w) for name, value in options.items() for w in ("--" + name.replace("_", "-"), value) if w != "on"]
    verbs.main(["synth", source, "--num", str(num), "--writer", "llm", "--out", str(out), *words])
    return read_scripts(out)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Sixty scripts, the folder they are in, and what was asked."""
    folder = tmp_path_factory.mktemp("service")
    with LLMServer(author) as server:
        scripts = synth(folder / "s.jsonl", server, num=60, heldout=0.3)
    return scripts, folder, server.bodies


def test_every_script_keeps_the_rules_of_the_template_writer(service):
    scripts, _, _ = service
    assert len(scripts) == 60
    assert [problem for script in scripts for problem in problems(script)] == []


def test_the_agent_states_no_number_that_it_was_not_given(service):
    """The same rule by other means: digits as a plain substring search."""
    for script in service[0]:
        known = script.role_prompt
        for turn in script.turns:
            if turn.speaker == "agent":
                assert all(number in known for number in re.findall(r"\d[\d.]*\d|\d", turn.text)), turn.text
            known += turn.text


def test_all_seven_probes_occur_and_point_at_their_questions_and_facts(service):
    counts = Counter()
    for script in service[0]:
        labels = {fact["label"]: fact["text"] for fact in script.facts}
        assert len(labels) == len(script.facts)
        for probe in script.probes:
            counts[probe["kind"]] += 1
            turn = script.turns[probe["turn"]]
            assert (turn.speaker, turn.text) == ("user", probe["question"])
            following = [t.text for t in script.turns[probe["turn"] + 1 :] if t.speaker == "agent"]
            assert probe["answer"] == following[0] or probe["answer"] == following[1]
            assert all(labels[name].split()[-1] in probe["answer"] for name in probe["facts"])
            assert probe["facts"] or probe["kind"] not in ("Q1", "Q2")
    assert set(counts) == {f"Q{n}" for n in range(7)} and min(counts.values()) >= 8


def test_the_role_has_the_words_of_the_public_template(service):
    pattern = r"You work for [\w' ]+ which is a [\w' -]+ and your name is \w+ \w+\. Information: .+\."
    for script in service[0]:
        assert re.fullmatch(pattern, script.role_prompt), script.role_prompt
        role = script.provenance["role"]
        assert (
            f"{role['company']} which is a {role['business']} and your name is {role['agent']}." in script.role_prompt
        )
        assert any(fact["used"] == "no" for fact in script.facts) and any(
            fact["used"] == "yes" for fact in script.facts
        )
        said = " ".join(turn.text for turn in script.turns)
        assert all((fact["text"] in said) == (fact["used"] == "yes") for fact in script.facts)


def test_the_split_goes_by_scenario_and_company(service):
    sides = {split: [s for s in service[0] if s.split == split] for split in ("train", "heldout")}
    assert all(sides.values())
    for of in (lambda s: s.scenario, lambda s: s.provenance["role"]["company"]):
        assert not {of(s) for s in sides["train"]} & {of(s) for s in sides["heldout"]}
    for script in service[0]:
        held = bucket(f"company/{script.provenance['role']['company']}") < 0.3
        assert held == (script.split == "heldout")


def test_each_level_is_a_question_of_its_own_that_knows_the_levels_above(service):
    scripts, _, bodies = service
    names = Counter(body["response_format"]["json_schema"]["name"] for body in bodies)
    assert names["transcript"] == names["role"] == 60 and names["scenario"] == names["description"] > 20
    by_name = {body["response_format"]["json_schema"]["name"]: body["messages"][1]["content"] for body in bodies}
    assert "Line of business: " in by_name["scenario"]
    assert "Scenario: " in by_name["description"] and "Line of business: " in by_name["description"]
    assert all(line in by_name["transcript"] for line in ("Company: ", "Summary: ", "The customer wants: "))
    assert "Transcript:\n" in by_name["role"] and "Summary: " in by_name["role"]
    assert scripts[0].provenance["description"]["summary"] in "\n".join(b["messages"][1]["content"] for b in bodies)
    assert len({body["seed"] for body in bodies}) == len(bodies)


def test_statistics_and_costs_stand_beside_the_scripts(service):
    _, folder, bodies = service
    stats = json.loads((folder / "s.stats.json").read_text("utf-8"))
    assert stats["agent_claims_supported"] == 1.0 and stats["fact_coverage"] == 1.0
    assert stats["settings"]["writer"] == "llm" and stats["settings"]["llm"]["model"] == "m"
    usage = json.loads((folder / "s.llm" / "report.json").read_text("utf-8"))["usage"]
    assert usage["answers"] == len(bodies) and usage["prompt_tokens"] == 100 * len(bodies)
    assert len(list((folder / "s.llm" / "cache").rglob("*.json"))) == len(bodies)


def test_the_next_run_is_free_and_gives_the_same_bytes(service, tmp_path, capsys):
    _, folder, bodies = service
    with LLMServer([status(500)]) as down:
        synth(folder / "s.jsonl", down, num=60, heldout=0.3)
        assert "already there, unchanged" in capsys.readouterr().out
        synth(tmp_path / "again.jsonl", down, num=60, heldout=0.3, llm_cache=folder / "s.llm" / "cache")
        fewer = synth(tmp_path / "fewer.jsonl", down, num=20, heldout=0.3, llm_cache=folder / "s.llm" / "cache")
        with pytest.raises(UserError, match="was made with llm.model 'm', not 'n'"):
            synth(folder / "s.jsonl", down, num=60, heldout=0.3, llm_model="n")
    assert down.bodies == []
    assert (tmp_path / "again.jsonl").read_bytes() == (folder / "s.jsonl").read_bytes()
    assert fewer == service[0][:20]


def test_width_does_not_change_a_byte(tmp_path):
    for width in (1, 9):
        with LLMServer(author) as server:
            synth(tmp_path / f"{width}.jsonl", server, llm_concurrency=width)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "9.jsonl").read_bytes()


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    with LLMServer(author) as server:
        return synth(tmp_path_factory.mktemp("qa") / "a.jsonl", server, source="assistant", num=40, heldout=0.3)


def test_assistant_scripts_are_exchanges_with_the_teacher(assistant):
    assert len(assistant) == 40
    assert [problem for script in assistant for problem in problems(script)] == []
    for script in assistant:
        assert script.role_prompt.startswith("You are a wise and friendly teacher.")
        spoken = [turn for turn in script.turns if turn.kind != "backchannel"]
        assert len(spoken) in (4, 6, 8) and spoken[0].speaker == "user" and spoken[-1].speaker == "agent"


def test_second_questions_are_of_all_kinds_and_half_of_them_cut_in(assistant):
    kinds = Counter(script.provenance["behaviours"][0] for script in assistant)
    assert set(kinds) == set(llm_assistant.KINDS)
    cuts = [script for script in assistant if "barge_in" in script.provenance["behaviours"]]
    assert 10 <= len(cuts) <= 30
    for script in assistant:
        spoken = [turn for turn in script.turns if turn.kind != "backchannel"]
        assert [turn.kind for turn in spoken].count("barge_in") == (script in cuts)
        assert (spoken[2].kind == "barge_in") == (script in cuts)


def test_a_change_of_topic_stays_within_the_split(assistant):
    first = {
        split: {s.provenance["topics"][0] for s in assistant if s.split == split} for split in ("train", "heldout")
    }
    assert not first["train"] & first["heldout"]
    changed = [s for s in assistant if "topic_change" in s.provenance["behaviours"]]
    assert changed
    for script in changed:
        assert len(set(script.provenance["topics"])) == 2
        other = "heldout" if script.split == "train" else "train"
        assert script.provenance["topics"][1] not in first[other]


@pytest.mark.parametrize("source, limit", [("service", 60), ("assistant", 25)])
def test_no_script_exceeds_the_limit(tmp_path, source, limit):
    with LLMServer(author) as server:
        scripts = synth(tmp_path / "s.jsonl", server, source=source, num=8, max_seconds=limit)
    assert scripts and max(script.provenance["estimated_seconds"] for script in scripts) <= limit


# --- the rules, one by one


def a_plan(**changes):
    scenario = Scenario(
        id="bank/x", domain="bank", kind="problem", title="a card is lost", summary="s", goal="g", complication=""
    )
    plan = llm_service_plan.draw_plan("service-0-000001", Random(3), "train", 0.1, scenario, None)
    values = vars(plan) | {"probes": ("Q0", "Q1"), "agent_greets": True, "barges_in": False} | changes
    return llm_service_plan.Plan(**values)


def a_transcript(plan):
    return llm_service.plain_value(
        author(
            {
                "seed": 5,
                "messages": [{}, {"content": plan.text()}],
                "response_format": {"json_schema": {"name": "transcript"}},
            }
        )["turns"]
    )


def a_role(plan, rows):
    said = "\n".join(f"{row['speaker']}: {row['text']}" for row in rows)
    body = {"seed": 5, "messages": [{}, {"content": f"{plan.text()}\n{said}"}]}
    return author(body | {"response_format": {"json_schema": {"name": "role"}}})


def test_the_author_of_these_tests_keeps_the_rules():
    plan = a_plan()
    rows = a_transcript(plan)
    assert llm_service.transcript_problems(rows, plan) == []
    assert llm_service.role_problems(a_role(plan, rows), rows, plan) == []


def edit(n, **changes):
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
def test_what_breaks_a_transcript(change, problem):
    plan = a_plan()
    rows = copy.deepcopy(a_transcript(plan))
    change(rows)
    found = llm_service.transcript_problems(rows, plan)
    assert any(problem in text for text in found) if problem else found != [], found


def test_a_planned_interruption_must_be_there():
    plan = a_plan(barges_in=True)
    rows = copy.deepcopy(a_transcript(plan))
    assert llm_service.transcript_problems(rows, plan) == []
    rows[3].update(interrupts=False)
    assert "one customer turn must have interrupts true" in llm_service.transcript_problems(rows, plan)[0]


def facts(change):
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
def test_what_breaks_a_role(change, problem):
    plan = a_plan()
    rows = a_transcript(plan)
    role = copy.deepcopy(a_role(plan, rows))
    change(role)
    found = llm_service.role_problems(role, rows, plan)
    assert any(problem in text for text in found), found


def test_two_agent_turns_in_a_row_with_nearly_the_same_words_are_refused():
    """Seen from a small model whose answer fits the schema."""
    turns = [
        Turn(speaker="user", text="Can you help me with the card that I lost?"),
        Turn(speaker="agent", text="Sure, I can help you with that card right now."),
        Turn(speaker="agent", text="Sure, I can help you with that card right away now."),
    ]
    found = turn_problems(turns)
    assert any("agent speaks twice in a row" in text for text in found)
    assert any("turn 2 repeats turn 1" in text for text in found)


def test_typography_becomes_plain_text():
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
def test_what_breaks_an_exchange(question, answer, problem):
    topic = Scenario(id="w/x", domain="w", kind="how", title="clouds", summary="s", goal="g", complication="")
    plan = llm_assistant.draw_plan("assistant-0-000001", Random(1), "train", topic, None)
    before = (
        Turn(speaker="user", text="Where do rivers begin?"),
        Turn(speaker="agent", text="Rivers are born in the hills, where rain gathers and flows down."),
    )
    found = llm_assistant.exchange_problems({"question": question, "answer": answer}, plan, before, 2)
    assert any(problem in text for text in found) if problem else found == [], found


# --- scenarios


def scenario(title, summary="Somebody wants something done about a thing that matters.", goal="To have it done."):
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
def test_scenarios_are_told_apart_by_title_and_description(title, summary, like):
    known = [scenario("Refund for late order", "The customer asks for money back because the meal came cold and late.")]
    assert resembles(scenario(title, summary), known) is like


def test_near_duplicate_scenarios_are_drawn_again(tmp_path):
    asked = Counter()

    def reply(body):
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


def test_a_model_with_one_idea_only_makes_no_scripts(tmp_path):
    def reply(body):
        one = {"kind": "problem", "title": "a card is lost"}
        return one if "kind" in str(body["response_format"]) else author(body)

    with LLMServer(reply) as server, pytest.raises(UserError, match="none of 2 scripts .*every scenario was like"):
        synth(tmp_path / "s.jsonl", server, num=2)
    assert not (tmp_path / "s.jsonl").exists()


# --- faults


def test_rejected_scripts_are_counted_by_kind_and_the_others_are_written(tmp_path):
    """Prose for the roles of some scripts, invented prices in others."""

    def reply(body):
        value = author(body)
        if body["response_format"]["json_schema"]["name"] == "transcript":
            agent = re.search(r"^Agent: (\w+)", body["messages"][1]["content"], re.MULTILINE)[1]
            if agent[0] in "ABCDEF":
                return "Once upon a time."
            if agent[0] in "GHIJK":
                value["turns"][-1]["text"] += " It is only $7777."
        return value

    with LLMServer(reply) as server:
        scripts = synth(tmp_path / "s.jsonl", server, num=24, llm_tries=1)
    stats = json.loads((tmp_path / "s.stats.json").read_text("utf-8"))["writing"]
    reasons = stats["rejected"]["reasons"]
    assert set(reasons) == {"prose", "rules"}
    assert len(scripts) + sum(reasons.values()) == 24
    assert stats["rejected"]["count"] == len(stats["rejected_scripts"]) == sum(reasons.values())
    assert any("$7777" in item["reason"] or "'7777'" in item["reason"] for item in stats["rejected_scripts"])
    assert not any("7777" in turn.text for script in scripts for turn in script.turns)


def flaky(body):
    """Fails for all transcripts of agents in the second half of the alphabet."""
    agent = re.search(r"^Agent: (\w)", body["messages"][1]["content"], re.MULTILINE)
    return status(503) if agent and agent[1] > "M" else author(body)


def test_without_an_answer_the_run_stops_and_says_how_to_go_on(tmp_path):
    with LLMServer(flaky) as server, pytest.raises(UserError, match="no answer .HTTP 503.*run it again"):
        synth(tmp_path / "s.jsonl", server)
    assert not (tmp_path / "s.jsonl").exists()
    report = json.loads((tmp_path / "s.llm" / "report.json").read_text("utf-8"))
    assert report["usage"]["answers"] > 0
    with LLMServer(author) as server:
        assert len(synth(tmp_path / "s.jsonl", server)) == 12


def test_on_request_scripts_without_an_answer_are_left_out(tmp_path):
    with LLMServer(flaky) as server:
        scripts = synth(tmp_path / "s.jsonl", server, skip_unanswered="on", llm_concurrency=1)
    reasons = json.loads((tmp_path / "s.stats.json").read_text("utf-8"))["writing"]["rejected"]["reasons"]
    assert 0 < len(scripts) < 12 and reasons == {"HTTP 503": 12 - len(scripts)}


def test_a_run_killed_in_the_middle_goes_on_for_free_and_ends_the_same(tmp_path):
    with LLMServer(author) as server:
        synth(tmp_path / "calm.jsonl", server, num=4)
        calm = len(server.bodies)
    held, over, answered = threading.Event(), threading.Event(), []

    def reply(body):
        if len(answered) == calm * 2 // 3 and not held.is_set():
            held.set()
            over.wait()
            return author(body)
        answered.append(json.dumps(body))
        return author(body)

    with LLMServer(reply) as server:
        words = ["synth", "service", "--num", "4", "--writer", "llm", "--out", str(tmp_path / "killed.jsonl")]
        words += ["--llm-model", "m", "--llm-url", server.url, "--scenarios", "4", "--llm-retries", "0"]
        words += ["--llm-concurrency", "1"]
        code = f"from ppx_train.cli import data; import sys; sys.argv = ['ppx-data'] + {words!r}; data()"
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        assert held.wait(1200)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(600)
        first = set(answered)
        assert not (tmp_path / "killed.jsonl").exists()
        verbs.main(words)
    over.set()
    assert len(answered) == len(set(answered)) == calm and len(first) == calm * 2 // 3
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()


def test_stopped_before_any_change_on_the_disk_it_ends_with_the_same_files(tmp_path):
    (tmp_path / "before").mkdir()
    with LLMServer(author) as server:
        words = ["synth", "assistant", "--num", "2", "--writer", "llm", "--out", "out/s.jsonl", "--scenarios", "2"]
        words += ["--llm-model", "m", "--llm-url", server.url, "--llm-concurrency", "1"]
        assert kill_everywhere(tmp_path, words) > 20


def test_options_out_of_range_are_refused(tmp_path):
    words = ["synth", "service", "--num", "2", "--writer", "llm", "--out", str(tmp_path / "s.jsonl")]
    with pytest.raises(UserError, match="--llm-model is missing"):
        verbs.main(words)
    with pytest.raises(UserError, match="--scenarios 1: give 2 or more"):
        verbs.main([*words, "--llm-model", "m", "--scenarios", "1"])
    with pytest.raises(UserError, match="--llm-model has an effect with --writer llm only: add it, or leave --llm-mo"):
        verbs.main([*words[:4], *words[6:], "--llm-model", "m"])
    (tmp_path / "s.llm").mkdir()
    (tmp_path / "s.llm" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="s.llm exists and was not made by"):
        verbs.main([*words, "--llm-model", "m", "--llm-url", "http://127.0.0.1:9/v1"])


def test_a_plan_fails_as_a_whole_when_its_role_cannot_be_written(tmp_path):
    plan = a_plan()

    def reply(body):
        return say("no", finish="length") if body["response_format"]["json_schema"]["name"] == "role" else author(body)

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, tries=1), tmp_path)
        with pytest.raises(NoAnswer, match="length"):
            llm_service.write_service(client, plan, "x/0", Random(0))
