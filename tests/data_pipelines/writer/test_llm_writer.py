"""`ppx-data synth --writer llm`: whole runs against a model that does its work, and against one that does not."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_pipelines import verbs
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.records.schema import Script, read_scripts
from data_pipelines.records.split import bucket
from data_pipelines.writer import llm_assistant, llm_service
from data_pipelines.writer.problems import problems
from tests.data_pipelines.kill import kill_everywhere
from tests.data_pipelines.llm_author import author, field
from tests.data_pipelines.llm_kill import killed_and_resumed
from tests.data_pipelines.llm_server import Body, LLMServer, say, status
from tests.data_pipelines.writer.planned import a_plan
from tests.refusals import refused

pytest.importorskip("openai")
pytest.importorskip("jsonschema")
pytest.importorskip("num2words")

Run = tuple[list[Script], Path, list[Body]]
"""Scripts, the folder they are in, and what the model was asked."""


def synth(out: Path, server: LLMServer, source: str = "service", num: int = 12, **options: Any) -> list[Script]:
    chosen: dict[str, Any] = {"llm_model": "m", "llm_url": server.url, "scenarios": 4, "llm_retries": 0} | options
    words = [str(w) for name, value in chosen.items() for w in ("--" + name.replace("_", "-"), value) if w != "on"]
    verbs.main(["synth", source, "--num", str(num), "--writer", "llm", "--out", str(out), *words])
    return read_scripts(out)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Sixty calls."""
    folder = tmp_path_factory.mktemp("service")
    with LLMServer(author) as server:
        scripts = synth(folder / "s.jsonl", server, num=60, heldout=0.3)
    return scripts, folder, server.bodies


def test_every_script_keeps_the_rules_of_the_template_writer(calls: Run) -> None:
    scripts, _, _ = calls
    assert len(scripts) == 60
    assert [problem for script in scripts for problem in problems(script)] == []


def test_the_agent_states_no_number_that_it_was_not_given(calls: Run) -> None:
    """This is the same rule by other means: digits as a plain substring search."""
    for script in calls[0]:
        known = script.role_prompt
        for turn in script.turns:
            if turn.speaker == "agent":
                assert all(number in known for number in re.findall(r"\d[\d.]*\d|\d", turn.text)), turn.text
            known += turn.text


def test_all_seven_probes_occur_and_point_at_their_questions_and_facts(calls: Run) -> None:
    counts: Counter[str] = Counter()
    for script in calls[0]:
        labels = {fact.label: fact.text for fact in script.facts}
        assert len(labels) == len(script.facts)
        for probe in script.probes:
            assert probe.turn is not None and probe.question and probe.answer and probe.facts is not None
            counts[probe.kind] += 1
            turn = script.turns[probe.turn]
            assert (turn.speaker, turn.text) == ("user", probe.question)
            following = [t.text for t in script.turns[probe.turn + 1 :] if t.speaker == "agent"]
            assert probe.answer == following[0] or probe.answer == following[1]
            assert all(labels[name].split()[-1] in probe.answer for name in probe.facts)
            assert probe.facts or probe.kind not in ("Q1", "Q2")
    assert set(counts) == {f"Q{n}" for n in range(7)} and min(counts.values()) >= 8


def test_the_role_has_the_words_of_the_public_template(calls: Run) -> None:
    pattern = r"You work for [\w' ]+ which is a [\w' -]+ and your name is \w+ \w+\. Information: .+\."
    for script in calls[0]:
        assert re.fullmatch(pattern, script.role_prompt), script.role_prompt
        role = script.provenance["role"]
        assert (
            f"{role['company']} which is a {role['business']} and your name is {role['agent']}." in script.role_prompt
        )
        assert any(fact.used == "no" for fact in script.facts) and any(fact.used == "yes" for fact in script.facts)
        said = " ".join(turn.text for turn in script.turns)
        assert all((fact.text in said) == (fact.used == "yes") for fact in script.facts)


def test_the_split_goes_by_scenario_and_company(calls: Run) -> None:
    sides = {split: [s for s in calls[0] if s.split == split] for split in ("train", "heldout")}
    assert all(sides.values())
    for of in (lambda s: s.scenario, lambda s: s.provenance["role"]["company"]):
        assert not {of(s) for s in sides["train"]} & {of(s) for s in sides["heldout"]}
    for script in calls[0]:
        held = bucket(f"company/{script.provenance['role']['company']}") < 0.3
        assert held == (script.split == "heldout")


def test_each_level_is_a_question_of_its_own_that_knows_the_levels_above(calls: Run) -> None:
    scripts, _, bodies = calls
    names = Counter(body["response_format"]["json_schema"]["name"] for body in bodies)
    assert names["transcript"] == names["role"] == 60 and names["scenario"] == names["description"] > 20
    by_name = {body["response_format"]["json_schema"]["name"]: body["messages"][1]["content"] for body in bodies}
    assert "Line of business: " in by_name["scenario"]
    assert "Scenario: " in by_name["description"] and "Line of business: " in by_name["description"]
    assert all(line in by_name["transcript"] for line in ("Company: ", "Summary: ", "The customer wants: "))
    assert "Transcript:\n" in by_name["role"] and "Summary: " in by_name["role"]
    assert scripts[0].provenance["description"]["summary"] in "\n".join(b["messages"][1]["content"] for b in bodies)
    assert len({body["seed"] for body in bodies}) == len(bodies)


def test_statistics_and_costs_stand_beside_the_scripts(calls: Run) -> None:
    _, folder, bodies = calls
    stats = json.loads((folder / "s.stats.json").read_text("utf-8"))
    assert stats["agent_claims_supported"] == 1.0 and stats["fact_coverage"] == 1.0
    assert stats["settings"]["writer"] == "llm" and stats["settings"]["llm"]["model"] == "m"
    usage = json.loads((folder / "s.llm" / "report.json").read_text("utf-8"))["usage"]
    assert usage["answers"] == len(bodies) and usage["prompt_tokens"] == 100 * len(bodies)
    assert len(list((folder / "s.llm" / "cache").rglob("*.json"))) == len(bodies)


def test_the_next_run_is_free_and_gives_the_same_bytes(
    calls: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, _bodies = calls
    with LLMServer([status(500)]) as down:
        synth(folder / "s.jsonl", down, num=60, heldout=0.3)
        assert "already there, unchanged" in capsys.readouterr().out
        synth(tmp_path / "again.jsonl", down, num=60, heldout=0.3, llm_cache=folder / "s.llm" / "cache")
        fewer = synth(tmp_path / "fewer.jsonl", down, num=20, heldout=0.3, llm_cache=folder / "s.llm" / "cache")
        with refused("other-settings", folder / "s.jsonl", "llm.model 'm', not 'n'"):
            synth(folder / "s.jsonl", down, num=60, heldout=0.3, llm_model="n")
    assert down.bodies == []
    assert (tmp_path / "again.jsonl").read_bytes() == (folder / "s.jsonl").read_bytes()
    assert fewer == calls[0][:20]


def test_width_does_not_change_a_byte(tmp_path: Path) -> None:
    for width in (1, 9):
        with LLMServer(author) as server:
            synth(tmp_path / f"{width}.jsonl", server, llm_concurrency=width)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "9.jsonl").read_bytes()


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> list[Script]:
    with LLMServer(author) as server:
        return synth(tmp_path_factory.mktemp("qa") / "a.jsonl", server, source="assistant", num=40, heldout=0.3)


def test_assistant_scripts_are_exchanges_with_the_teacher(lessons: list[Script]) -> None:
    assert len(lessons) == 40
    assert [problem for script in lessons for problem in problems(script)] == []
    for script in lessons:
        assert script.role_prompt.startswith("You are a wise and friendly teacher.")
        spoken = [turn for turn in script.turns if turn.kind != "backchannel"]
        assert len(spoken) in (4, 6, 8) and spoken[0].speaker == "user" and spoken[-1].speaker == "agent"


def test_second_questions_are_of_all_kinds_and_half_of_them_cut_in(lessons: list[Script]) -> None:
    kinds = Counter(script.provenance["behaviours"][0] for script in lessons)
    assert set(kinds) == set(llm_assistant.KINDS)
    cuts = [script for script in lessons if "barge_in" in script.provenance["behaviours"]]
    assert 10 <= len(cuts) <= 30
    for script in lessons:
        spoken = [turn for turn in script.turns if turn.kind != "backchannel"]
        assert [turn.kind for turn in spoken].count("barge_in") == (script in cuts)
        assert (spoken[2].kind == "barge_in") == (script in cuts)


def test_a_change_of_topic_stays_within_the_split(lessons: list[Script]) -> None:
    first = {split: {s.provenance["topics"][0] for s in lessons if s.split == split} for split in ("train", "heldout")}
    assert not first["train"] & first["heldout"]
    changed = [s for s in lessons if "topic_change" in s.provenance["behaviours"]]
    assert changed
    for script in changed:
        assert len(set(script.provenance["topics"])) == 2
        other = "heldout" if script.split == "train" else "train"
        assert script.provenance["topics"][1] not in first[other]


@pytest.mark.parametrize("source, limit", [("service", 60), ("assistant", 25)])
def test_no_script_exceeds_the_limit(tmp_path: Path, source: str, limit: int) -> None:
    with LLMServer(author) as server:
        scripts = synth(tmp_path / "s.jsonl", server, source=source, num=8, max_seconds=limit)
    assert scripts and max(script.provenance["estimated_seconds"] for script in scripts) <= limit


def test_a_model_with_one_idea_only_makes_no_scripts(tmp_path: Path) -> None:
    def reply(body: Body) -> Any:
        one = {"kind": "problem", "title": "a card is lost"}
        return one if "kind" in str(body["response_format"]) else author(body)

    with LLMServer(reply) as server, refused("no-data", "none of 2 scripts", "every scenario was like"):
        synth(tmp_path / "s.jsonl", server, num=2)
    assert not (tmp_path / "s.jsonl").exists()


def test_rejected_scripts_are_counted_by_kind_and_the_others_are_written(tmp_path: Path) -> None:
    """Prose for the roles of some scripts, invented prices in others."""

    def reply(body: Body) -> Any:
        value = author(body)
        if body["response_format"]["json_schema"]["name"] == "transcript":
            agent = field(body["messages"][1]["content"], "Agent")
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


def flaky(body: Body) -> Any:
    """Fails for all transcripts of agents in the second half of the alphabet."""
    agent = re.search(r"^Agent: (\w)", body["messages"][1]["content"], re.MULTILINE)
    return status(503) if agent and agent[1] > "M" else author(body)


def test_without_an_answer_the_run_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    with LLMServer(flaky) as server, refused("unreachable", "no answer (HTTP 503", "--skip-unanswered"):
        synth(tmp_path / "s.jsonl", server)
    assert not (tmp_path / "s.jsonl").exists()
    report = json.loads((tmp_path / "s.llm" / "report.json").read_text("utf-8"))
    assert report["usage"]["answers"] > 0
    with LLMServer(author) as server:
        assert len(synth(tmp_path / "s.jsonl", server)) == 12


def test_on_request_scripts_without_an_answer_are_left_out(tmp_path: Path) -> None:
    with LLMServer(flaky) as server:
        scripts = synth(tmp_path / "s.jsonl", server, skip_unanswered="on", llm_concurrency=1)
    reasons = json.loads((tmp_path / "s.stats.json").read_text("utf-8"))["writing"]["rejected"]["reasons"]
    assert 0 < len(scripts) < 12 and reasons == {"HTTP 503": 12 - len(scripts)}


def test_a_run_killed_in_the_middle_goes_on_for_free_and_ends_the_same(tmp_path: Path) -> None:
    with LLMServer(author) as server:
        synth(tmp_path / "calm.jsonl", server, num=4)
        calm = len(server.bodies)

    def command(url: str) -> list[str]:
        words = ["synth", "service", "--num", "4", "--writer", "llm", "--out", str(tmp_path / "killed.jsonl")]
        words += ["--llm-model", "m", "--llm-url", url, "--scenarios", "4", "--llm-retries", "0"]
        return [*words, "--llm-concurrency", "1"]

    first, second = killed_and_resumed(command, author, held_at=calm * 2 // 3)
    assert len(first) == calm * 2 // 3
    assert len(first) + len(second) == len({*first, *second}) == calm
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()


def test_stopped_before_any_change_on_the_disk_it_ends_with_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with LLMServer(author) as server:
        words = ["synth", "assistant", "--num", "2", "--writer", "llm", "--out", "out/s.jsonl", "--scenarios", "2"]
        words += ["--llm-model", "m", "--llm-url", server.url, "--llm-concurrency", "1"]
        assert kill_everywhere(tmp_path, words) > 20


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    words = ["synth", "service", "--num", "2", "--writer", "llm", "--out", str(tmp_path / "s.jsonl")]
    with refused("missing-option", "--llm-model"):
        verbs.main(words)
    with refused("bad-value", "--scenarios 1"):
        verbs.main([*words, "--llm-model", "m", "--scenarios", "1"])
    with refused("bad-combination", "--llm-model", "--writer llm"):
        verbs.main([*words[:4], *words[6:], "--llm-model", "m"])
    (tmp_path / "s.llm").mkdir()
    (tmp_path / "s.llm" / "mine.txt").write_text("x")
    with refused("other-settings", tmp_path / "s.llm", "`ppx-data synth`"):
        verbs.main([*words, "--llm-model", "m", "--llm-url", "http://127.0.0.1:9/v1"])


def test_a_plan_fails_as_a_whole_when_its_role_cannot_be_written(tmp_path: Path) -> None:
    plan = a_plan()

    def reply(body: Body) -> Any:
        return say("no", finish="length") if body["response_format"]["json_schema"]["name"] == "role" else author(body)

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, tries=1), tmp_path)
        with pytest.raises(NoAnswer, match="length"):
            llm_service.write_service(client, plan, "x/0", Random(0))
