import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import pytest

from data_pipelines import verbs
from data_pipelines.folder import load_dialogue, signature
from data_pipelines.llm import annotate
from data_pipelines.llm.prompts import write_prompts
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.schema import Word
from data_pipelines.shards.encode import build_shards
from model.errors import UserError
from tests.data_pipelines.kill import kill_everywhere
from tests.data_pipelines.llm_server import LLMServer, say, status
from tests.data_pipelines.tiny_dialogues import TinyCodec, stored, write_dialogue

pytest.importorskip("openai")
pytest.importorskip("jsonschema")
pytest.importorskip("num2words")

LEFT = "so i live in boston and i have two dogs what about you | yeah i was a baker for twenty one years"
RIGHT = "oh i grew up in texas | you live in boston and my wife works for delta i don't like meetings"


def call(folder, id, left=LEFT, right=RIGHT, *, title="Eating at Home.", agents=("left", "right")):
    """A dialogue folder in which both sides speak in turns of one second, cut at "|"."""
    words = {}
    for side, offset in (("left", 0.0), ("right", 1.0)):
        said = left if side == "left" else right
        parts = [part.split() for part in said.split("|")]
        words[side] = tuple(
            Word(text=word, start=(start := offset + 2 * n + k / len(part)), end=start + 0.9 / len(part))
            for n, part in enumerate(parts)
            for k, word in enumerate(part)
        )
    place = write_dialogue(folder, id, source="fisher", seconds=8.0, agents=agents, words=words)
    meta = json.loads((place / "meta.json").read_text("utf-8"))
    meta["provenance"]["topic"] = title
    for side in agents:
        meta[side] |= {"role_prompt": f"You enjoy having a good conversation. Importer, {side}.", "prompt_level": "b"}
    (place / "meta.json").write_text(json.dumps(meta), "utf-8")
    return place


def listener(body):
    """A model that does its work: it reads the topic and what ME says of himself."""
    lines = body["messages"][1]["content"].splitlines()
    mine = " ".join(line.removeprefix("ME: ") for line in lines if line.startswith("ME:"))
    topic = lines[0].partition(": ")[2] if lines[0].startswith("The callers") else "this and that"
    facts = {
        r"i live in (boston)": "You live in Boston.",
        r"i was a baker for twenty one years": "You were a baker for 21 years.",
        r"i grew up in (texas)": "You grew up in Texas.",
        r"my wife works for delta": "Your wife works for Delta.",
        r"i don't like meetings": "You dislike meetings.",
    }
    found = [
        {"sentence": text, "evidence": [re.search(said, mine)[0]]}
        for said, text in facts.items()
        if re.search(said, mine) and text.startswith("You ")
    ]
    tone = "casual" if "dogs" in mine else "lively"
    return {"topic": topic, "tone": tone, "form": "discussion", "facts": found}


def annotate_all(tmp_path, server, *, seed=0, on_failure="keep", out="notes", **settings):
    settings = {"model": "m", "base_url": server.url, "retries": 0} | settings
    return write_prompts(
        [tmp_path / "calls"], tmp_path / out, LLMSettings(**settings), seed=seed, on_failure=on_failure
    )


def sidecars(tmp_path):
    return {path.parent.name: path.read_bytes() for path in sorted((tmp_path / "calls").glob("*/roles.json"))}


def test_every_level_comes_from_one_answer_for_each_side(tmp_path):
    for n in range(12):
        call(tmp_path / "calls", f"call-{n}")
    with LLMServer(listener) as server:
        report = annotate_all(tmp_path, server)
    assert len(server.bodies) == 24
    assert (report["sides"], report["failed"], sum(report["levels"].values())) == (24, [], 24)
    prompts = {
        "a": {"You enjoy having a good conversation."},
        "b": {
            "You enjoy having a good conversation. Have a casual discussion about eating at home.",
            "You enjoy having a good conversation. Have a lively discussion about eating at home.",
        },
        "c": {
            "You enjoy having a good conversation. Have a casual discussion about eating at home. You live in Boston. "
            "You were a baker for 21 years.",
            "You enjoy having a good conversation. Have a lively discussion about eating at home. "
            "You grew up in Texas. You dislike meetings.",
        },
    }
    seen = {level: set() for level in "abc"}
    for n in range(12):
        dialogue = load_dialogue(tmp_path / "calls" / f"call-{n}")
        assert dialogue.left.role_prompt != dialogue.right.role_prompt
        for side in (dialogue.left, dialogue.right):
            seen[side.prompt_level].add(side.role_prompt)
        assert dialogue.provenance["roles"]["answers"]["left"]["facts"][0]["evidence"] == ["i live in boston"]
    assert seen == prompts


def test_the_transcript_reads_as_turns_and_marks_the_side_asked_about(tmp_path):
    dialogue = load_dialogue(call(tmp_path, "x"))
    assert annotate.question_text(dialogue, "right").splitlines() == [
        "The callers were asked to talk about: eating at home",
        "OTHER: so i live in boston and i have two dogs what about you",
        "ME: oh i grew up in texas",
        "OTHER: yeah i was a baker for twenty one years",
        "ME: you live in boston and my wife works for delta i don't like meetings",
    ]


def good():
    return {
        "topic": "eating at home",
        "tone": "casual",
        "form": "discussion",
        "facts": [{"sentence": "You live in Boston.", "evidence": ["I live in Boston"]}],
    }


def with_fact(sentence, *evidence):
    return good() | {"facts": [{"sentence": sentence, "evidence": list(evidence)}]}


@pytest.mark.parametrize(
    "answer",
    [
        good(),
        good() | {"facts": []},
        good() | {"topic": "dogs in Boston"},
        good() | {"topic": "eating at Home"},  # the title's word
        with_fact("You have 2 dogs.", "i have two dogs"),
        with_fact("You are a former baker with 21 years of work.", "I was a baker, for twenty-one years"),
        with_fact("You live in Boston.", "boston and I have"),
        with_fact("You enjoyed baking.", "i was a baker"),
    ],
)
def test_what_the_side_said_itself_is_accepted(tmp_path, answer):
    assert annotate.problems(answer, load_dialogue(call(tmp_path, "x")), "left") == []


@pytest.mark.parametrize(
    "answer, problem",
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
        (good() | {"topic": "life in denver"}, "'Denver' is not in the words of ME"),
        (good() | {"topic": "the Boston Texas game"}, "'Boston Texas' is not in the words of ME"),
        (good() | {"topic": "life in Denver"}, "'Denver' is not in the words of ME"),
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
        (good() | {"topic": "mail to bob at gmail"}, "an e-mail address"),
        (good() | {"topic": "eating. at home"}, "topic must be"),
        (good() | {"topic": "word " * 15}, "topic must be"),
        (good() | {"tone": "Very nice"}, "one adjective"),
        (good() | {"facts": good()["facts"] * 6}, "at most 5 facts"),
    ],
)
def test_what_was_not_said_is_a_problem(tmp_path, answer, problem):
    found = annotate.problems(answer, load_dialogue(call(tmp_path, "x")), "left")
    assert any(problem in text for text in found), found


def test_a_fact_about_the_other_speaker_is_refused_though_this_side_said_it(tmp_path):
    dialogue = load_dialogue(call(tmp_path, "x"))
    answer = good() | {"facts": [{"sentence": "You live in Boston.", "evidence": ["you live in boston"]}]}
    assert annotate.problems(answer, dialogue, "right") == ["'you live in boston' is about the other speaker"]


def test_levels_have_a_third_each_on_both_sides_and_never_two_bare_sentences(tmp_path):
    dialogue = load_dialogue(call(tmp_path, "x"))
    draws = [annotate.draw_levels(0, replace(dialogue, id=f"call-{n}")) for n in range(3000)]
    for side in ("left", "right"):
        counts = Counter(draw[side] for draw in draws)
        assert all(900 < counts[level] < 1100 for level in "abc"), counts
    assert not any(draw == {"left": "a", "right": "a"} for draw in draws)
    alone = replace(dialogue, right=replace(dialogue.right, is_agent=False))
    assert {tuple(annotate.draw_levels(s, alone)) for s in range(20)} == {("left",)}
    assert {annotate.draw_levels(s, alone)["left"] for s in range(20)} == set("abc")


def test_the_same_answer_for_both_sides_is_asked_for_again(tmp_path):
    call(tmp_path / "calls", "x")
    plain = {"topic": "eating at home", "tone": "casual", "form": "discussion", "facts": []}
    with LLMServer([plain, plain, plain | {"tone": "dry"}]) as server:
        annotate_all(tmp_path, server, seed=seed_for("b", "b"))
    assert len(server.bodies) == 3
    assert "the other speaker has the same prompt" in server.bodies[2]["messages"][-1]["content"]
    dialogue = load_dialogue(tmp_path / "calls" / "x")
    assert (dialogue.left.prompt_level, dialogue.right.prompt_level) == ("b", "b")
    assert "casual" in dialogue.left.role_prompt and "dry" in dialogue.right.role_prompt


def seed_for(left, right, id="x"):
    """A seed that draws these levels."""

    class Stub:
        agent_sides = ("left", "right")

    Stub.id = id
    return next(seed for seed in range(200) if annotate.draw_levels(seed, Stub) == {"left": left, "right": right})


def test_a_biography_without_facts_is_level_b(tmp_path):
    call(tmp_path / "calls", "x", left="yeah | right", right="mm-hm | sure")
    with LLMServer([good() | {"facts": []}, good() | {"facts": [], "tone": "dry"}]) as server:
        report = annotate_all(tmp_path, server, seed=seed_for("c", "c"))
    assert report["levels"] == {"b": 2}
    assert load_dialogue(tmp_path / "calls" / "x").provenance["roles"]["drawn"] == {"left": "c", "right": "c"}


def test_a_side_that_keeps_failing_keeps_its_prompt_and_is_listed(tmp_path):
    call(tmp_path / "calls", "x")

    def reply(body):
        return "I'd rather talk." if "ME: oh i grew up" in str(body) else listener(body)

    with LLMServer(reply) as server:
        report = annotate_all(tmp_path, server, tries=2)
    dialogue = load_dialogue(tmp_path / "calls" / "x")
    assert dialogue.right.role_prompt == "You enjoy having a good conversation. Importer, right."
    assert dialogue.left.role_prompt != "You enjoy having a good conversation. Importer, left."
    assert report["sides"] == 1 and report["reasons"] == {"repeats": 1}
    (failed,) = report["failed"]
    assert (failed["id"], failed["side"]) == ("x", "right") and "I'd rather talk" in failed["reason"]
    stored = json.loads((tmp_path / "notes" / "report.json").read_text("utf-8"))
    assert stored == {name: value for name, value in report.items() if name != "skipped"}


def test_on_request_a_failing_side_is_no_agent_any_more(tmp_path, monkeypatch):
    for name in ("x", "y"):
        call(tmp_path / "calls", name)
    call(tmp_path / "calls", "z", agents=("right",))

    def reply(body):
        return "no" if "ME: oh i grew up" in str(body) else listener(body)

    with LLMServer(reply) as server:
        report = annotate_all(tmp_path, server, on_failure="reject", tries=1)
    assert (report["sides"], len(report["failed"])) == (2, 3)
    assert load_dialogue(tmp_path / "calls" / "x").agent_sides == ("left",)
    with pytest.raises(UserError, match="z: no side has a role prompt .prose: "):
        load_dialogue(tmp_path / "calls" / "z")
    build_shards([tmp_path / "calls"], TinyCodec(), tmp_path / "shards")
    rejected = json.loads((tmp_path / "shards" / "report.json").read_text("utf-8"))["rejected"]
    assert [item["id"] for item in rejected] == ["z"]
    _, members = stored(tmp_path / "shards" / "train", "x")
    assert "left.voice.npy" in members and "right.voice.npy" not in members


def test_shards_hold_the_new_prompts_and_a_new_annotation_makes_other_shards(tmp_path):
    place = call(tmp_path / "calls", "x")
    before = signature(place)
    with LLMServer(listener) as server:
        annotate_all(tmp_path, server, seed=seed_for("c", "b"))
    assert signature(place) != before
    build_shards([tmp_path / "calls"], TinyCodec(), tmp_path / "shards")
    _, members = stored(tmp_path / "shards" / "train", "x")
    record = json.loads(members["meta.json"])
    assert record["left"]["role_prompt"].endswith("You live in Boston. You were a baker for 21 years.")
    assert [record[side]["prompt_level"] for side in ("left", "right")] == ["c", "b"]


def test_a_second_run_asks_nothing_and_writes_nothing(tmp_path, capsys):
    for n in range(3):
        call(tmp_path / "calls", f"call-{n}")
    with LLMServer(listener) as server:
        annotate_all(tmp_path, server)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "calls").glob("*/*")}
        report = annotate_all(tmp_path, server)
        assert (report["skipped"], report["sides"], len(server.bodies)) == (3, 6, 6)
        for path in (tmp_path / "calls").glob("*/roles.json"):
            path.unlink()
        report = annotate_all(tmp_path, server)
    assert (report["skipped"], report["usage"]["answers"], len(server.bodies)) == (0, 6, 6)
    out = capsys.readouterr().out
    assert "3 dialogues were done before; tokens spent 0, saved 0: " in out
    assert "0 dialogues were done before; tokens spent 0, saved 720: " in out
    assert times.keys() == {path for path in (tmp_path / "calls").glob("*/*")}


def test_a_dialogue_that_changed_is_annotated_again(tmp_path):
    place = call(tmp_path / "calls", "x")
    with LLMServer(listener) as server:
        annotate_all(tmp_path, server)
        meta = (place / "meta.json").read_text("utf-8")
        (place / "meta.json").write_text(meta.replace("boston", "austin"), "utf-8")
        report = annotate_all(tmp_path, server)
    assert (report["skipped"], len(server.bodies)) == (0, 4)
    assert b"Boston" not in (place / "roles.json").read_bytes()


def test_other_settings_are_refused_before_anything_is_asked(tmp_path):
    place = call(tmp_path / "calls", "x")
    with LLMServer(listener) as server:
        annotate_all(tmp_path, server)
        asked = len(server.bodies)
        with pytest.raises(UserError, match="roles.json was made with seed 0, not 1"):
            annotate_all(tmp_path, server, seed=1)
        with pytest.raises(UserError, match="roles.json was made with model 'm', not 'n': delete these files"):
            annotate_all(tmp_path, server, model="n", out="other")
        (place / "roles.json").write_text('{"format": 1, "left": {"prompt": "Mine.", "level": "c"}}', "utf-8")
        with pytest.raises(UserError, match="roles.json was made with generator None"):
            annotate_all(tmp_path, server, out="third")
        assert len(server.bodies) == asked


def test_without_an_answer_nothing_is_written_and_the_next_run_goes_on(tmp_path):
    for n in range(3):
        call(tmp_path / "calls", f"call-{n}", left=LEFT + f" | number {n} here")
    down = {"on": True}

    def reply(body):
        return status(503) if "number 1" in str(body) and down["on"] else listener(body)

    with LLMServer(reply) as server:
        report = annotate_all(tmp_path, server)
        assert [item["id"] for item in report["unanswered"]] == ["call-1"]
        assert "HTTP 503" in report["unanswered"][0]["reason"]
        assert sorted(sidecars(tmp_path)) == ["call-0", "call-2"]
        down["on"] = False
        report = annotate_all(tmp_path, server)
    assert (report["skipped"], report["unanswered"], report["sides"]) == (2, [], 6)


def test_it_fails_only_if_no_side_got_a_prompt(tmp_path):
    call(tmp_path / "calls", "x")
    with LLMServer(["no"]) as server, pytest.raises(UserError, match="no side got a prompt, .*report.json; .*prose"):
        annotate_all(tmp_path, server, tries=1)


def test_a_broken_dialogue_is_listed_and_the_others_are_done(tmp_path):
    call(tmp_path / "calls", "x")
    (call(tmp_path / "calls", "y") / "meta.json").write_text("{", "utf-8")
    with LLMServer(listener) as server:
        report = annotate_all(tmp_path, server)
    assert [item["id"] for item in report["rejected"]] == ["y"]
    assert report["sides"] == 2


def test_width_does_not_change_a_byte(tmp_path):
    results = []
    for width in (1, 7):
        root = tmp_path / str(width)
        for n in range(10):
            call(root / "calls", f"call-{n}")
        with LLMServer(listener) as server:
            annotate_all(root, server, concurrency=width)
        results.append(sidecars(root))
    assert results[0] == results[1] and len(results[0]) == 10


def test_a_run_killed_in_the_middle_goes_on_for_free_and_ends_the_same(tmp_path):
    """Killed while it waits for its sixth answer: what was answered is not asked again."""
    roots = [tmp_path / "calm", tmp_path / "killed"]
    for root in roots:
        for n in range(5):
            call(root / "calls", f"call-{n}", left=LEFT + f" | number {n} here")
    with LLMServer(listener) as server:
        annotate_all(roots[0], server)
        calm = len(server.bodies)
    held, over, answered = threading.Event(), threading.Event(), []

    def reply(body):
        if len(answered) == 5 and not held.is_set():
            held.set()
            over.wait()
            return listener(body)
        answered.append(json.dumps(body))
        return listener(body)

    with LLMServer(reply) as server:
        words = ["prompts", "--dialogues", str(roots[1] / "calls"), "--out", str(roots[1] / "notes")]
        words += ["--llm-model", "m", "--llm-url", server.url, "--llm-concurrency", "1", "--llm-retries", "0"]
        code = f"from ppx_train.cli import data; import sys; sys.argv = ['ppx-data'] + {words!r}; data()"
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        assert held.wait(1200)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(600)
        first = list(answered)
        assert len(first) == 5 and len(sidecars(roots[1])) == 2
        verbs.main(words)
    over.set()
    assert len(first) == len(set(first))
    assert not set(first) & set(answered[len(first) :])
    assert len(set(answered)) == calm
    assert sidecars(roots[0]) == sidecars(roots[1])
    assert len({(root / "notes" / "report.json").read_bytes() for root in roots}) == 1


def test_written_dialogues_keep_the_role_they_were_written_with(tmp_path):
    call(tmp_path / "calls", "x")
    place = write_dialogue(tmp_path / "calls", "y", source="service")
    with LLMServer(listener) as server:
        report = annotate_all(tmp_path, server)
    assert report["rejected"] == [{"id": "y", "reason": "source service: its role was written with it and stays"}]
    assert len(server.bodies) == 2 and not (place / "roles.json").exists()


def test_a_full_disk_ends_the_run_and_leaves_no_half_file(tmp_path, monkeypatch):
    for n in range(3):
        call(tmp_path / "calls", f"call-{n}")

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with LLMServer(listener) as server:
        with monkeypatch.context() as patch:
            patch.setattr("data_pipelines.llm.cache.write_json", full)
            with pytest.raises(OSError, match="No space left"):
                annotate_all(tmp_path, server)
        assert sidecars(tmp_path) == {} and not list((tmp_path / "notes").rglob("*.part"))
        assert annotate_all(tmp_path, server)["sides"] == 6


def test_stopped_before_any_change_on_the_disk_it_ends_with_the_same_files(tmp_path):
    for n in range(2):
        call(tmp_path / "before" / "calls", f"call-{n}")
    with LLMServer(listener) as server:
        words = ["prompts", "--dialogues", "calls", "--out", "notes", "--llm-model", "m", "--llm-url", server.url]
        assert kill_everywhere(tmp_path, [*words, "--llm-concurrency", "1"]) > 12


def test_the_verb_needs_a_model_and_says_so(tmp_path):
    call(tmp_path / "calls", "x")
    with pytest.raises(UserError, match="--llm-model is missing"):
        verbs.main(["prompts", "--dialogues", str(tmp_path / "calls"), "--out", str(tmp_path / "notes")])


def test_a_good_answer_may_come_wrapped_for_servers_that_know_plain_text_alone(tmp_path):
    call(tmp_path / "calls", "x")
    with LLMServer(lambda body: say(f"Sure.\n```json\n{json.dumps(listener(body))}\n```")) as server:
        assert annotate_all(tmp_path, server, answer_format="text")["sides"] == 2
