"""`ppx-data prompts`: what it writes, how it resumes, and what it refuses."""

import errno
import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from data_pipelines import verbs
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.records.folder import load_dialogue, signature
from data_pipelines.roles.descriptions import draw_levels
from data_pipelines.roles.prompts import write_prompts
from data_pipelines.shards.encode import build_shards
from tests.data_pipelines.kill import kill_everywhere
from tests.data_pipelines.llm_kill import killed_and_resumed
from tests.data_pipelines.llm_server import Body, LLMServer, say, status
from tests.data_pipelines.roles.calls import LEFT, call, listener
from tests.data_pipelines.tiny_dialogues import TinyCodec, stored, write_dialogue
from tests.refusals import refused

pytest.importorskip("openai")
pytest.importorskip("jsonschema")
pytest.importorskip("num2words")

PLAIN = {"topic": "eating at home", "tone": "casual", "form": "discussion", "facts": []}
"""A good answer that holds nothing personal."""


def describe_all(
    tmp_path: Path,
    server: LLMServer,
    *,
    seed: int = 0,
    on_failure: str = "keep",
    out: str = "notes",
    **settings: Any,
) -> dict[str, Any]:
    chosen: dict[str, Any] = {"model": "m", "base_url": server.url, "retries": 0} | settings
    return write_prompts([tmp_path / "calls"], tmp_path / out, LLMSettings(**chosen), seed=seed, on_failure=on_failure)


def sidecars(tmp_path: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted((tmp_path / "calls").glob("*/roles.json"))}


def test_every_level_comes_from_one_answer_for_each_side(tmp_path: Path) -> None:
    for n in range(12):
        call(tmp_path / "calls", f"call-{n}")
    with LLMServer(listener) as server:
        report = describe_all(tmp_path, server)
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
    seen: dict[str, set[str]] = {level: set() for level in "abc"}
    for n in range(12):
        dialogue = load_dialogue(tmp_path / "calls" / f"call-{n}")
        assert dialogue.left.role_prompt != dialogue.right.role_prompt
        for side in (dialogue.left, dialogue.right):
            seen[side.prompt_level].add(side.role_prompt)
        assert dialogue.provenance["roles"]["answers"]["left"]["facts"][0]["evidence"] == ["i live in boston"]
    assert seen == prompts


def test_the_same_answer_for_both_sides_is_asked_for_again(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")
    with LLMServer([PLAIN, PLAIN, PLAIN | {"tone": "dry"}]) as server:
        describe_all(tmp_path, server, seed=seed_for("b", "b"))
    assert len(server.bodies) == 3
    assert "the other speaker has the same prompt" in server.bodies[2]["messages"][-1]["content"]
    dialogue = load_dialogue(tmp_path / "calls" / "x")
    assert (dialogue.left.prompt_level, dialogue.right.prompt_level) == ("b", "b")
    assert "casual" in dialogue.left.role_prompt and "dry" in dialogue.right.role_prompt


def seed_for(left: str, right: str) -> int:
    """A seed that draws these levels for the call "x"."""
    levels = {"left": left, "right": right}
    return next(seed for seed in range(200) if draw_levels(seed, "x", ("left", "right")) == levels)


def test_a_biography_without_facts_is_level_b(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x", left="yeah | right", right="mm-hm | sure")
    with LLMServer([PLAIN, PLAIN | {"tone": "dry"}]) as server:
        report = describe_all(tmp_path, server, seed=seed_for("c", "c"))
    assert report["levels"] == {"b": 2}
    assert load_dialogue(tmp_path / "calls" / "x").provenance["roles"]["drawn"] == {"left": "c", "right": "c"}


def test_a_side_that_keeps_failing_keeps_its_prompt_and_is_listed(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")

    def reply(body: Body) -> Any:
        return "I'd rather talk." if "ME: oh i grew up" in str(body) else listener(body)

    with LLMServer(reply) as server:
        report = describe_all(tmp_path, server, tries=2)
    dialogue = load_dialogue(tmp_path / "calls" / "x")
    assert dialogue.right.role_prompt == "You enjoy having a good conversation. Importer, right."
    assert dialogue.left.role_prompt != "You enjoy having a good conversation. Importer, left."
    assert report["sides"] == 1 and report["reasons"] == {"repeats": 1}
    (failed,) = report["failed"]
    assert (failed["id"], failed["side"]) == ("x", "right") and "I'd rather talk" in failed["reason"]
    stored = json.loads((tmp_path / "notes" / "report.json").read_text("utf-8"))
    assert stored == {name: value for name, value in report.items() if name != "skipped"}


def test_on_request_a_failing_side_is_no_agent_any_more(tmp_path: Path) -> None:
    for name in ("x", "y"):
        call(tmp_path / "calls", name)
    call(tmp_path / "calls", "z", agents=("right",))

    def reply(body: Body) -> Any:
        return "no" if "ME: oh i grew up" in str(body) else listener(body)

    with LLMServer(reply) as server:
        report = describe_all(tmp_path, server, on_failure="reject", tries=1)
    assert (report["sides"], len(report["failed"])) == (2, 3)
    assert load_dialogue(tmp_path / "calls" / "x").agent_sides == ("left",)
    with refused("no-data", tmp_path / "calls" / "z", "prose: "):
        load_dialogue(tmp_path / "calls" / "z")
    build_shards([tmp_path / "calls"], TinyCodec(), tmp_path / "shards")
    rejected = json.loads((tmp_path / "shards" / "report.json").read_text("utf-8"))["rejected"]
    assert [item["id"] for item in rejected] == ["z"]
    _, members = stored(tmp_path / "shards" / "train", "x")
    assert "left.voice.npy" in members and "right.voice.npy" not in members


def test_shards_hold_the_new_prompts_and_a_new_annotation_makes_other_shards(tmp_path: Path) -> None:
    place = call(tmp_path / "calls", "x")
    before = signature(place)
    with LLMServer(listener) as server:
        describe_all(tmp_path, server, seed=seed_for("c", "b"))
    assert signature(place) != before
    build_shards([tmp_path / "calls"], TinyCodec(), tmp_path / "shards")
    _, members = stored(tmp_path / "shards" / "train", "x")
    record = json.loads(members["meta.json"])
    assert record["left"]["role_prompt"].endswith("You live in Boston. You were a baker for 21 years.")
    assert [record[side]["prompt_level"] for side in ("left", "right")] == ["c", "b"]


def test_a_second_run_asks_nothing_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(3):
        call(tmp_path / "calls", f"call-{n}")
    with LLMServer(listener) as server:
        describe_all(tmp_path, server)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "calls").glob("*/*")}
        report = describe_all(tmp_path, server)
        assert (report["skipped"], report["sides"], len(server.bodies)) == (3, 6, 6)
        for path in (tmp_path / "calls").glob("*/roles.json"):
            path.unlink()
        report = describe_all(tmp_path, server)
    assert (report["skipped"], report["usage"]["answers"], len(server.bodies)) == (0, 6, 6)
    out = capsys.readouterr().out
    assert "3 dialogues were done before; tokens spent 0, saved 0: " in out
    assert "0 dialogues were done before; tokens spent 0, saved 720: " in out
    assert times.keys() == set((tmp_path / "calls").glob("*/*"))


def test_a_dialogue_that_changed_is_annotated_again(tmp_path: Path) -> None:
    place = call(tmp_path / "calls", "x")
    with LLMServer(listener) as server:
        describe_all(tmp_path, server)
        meta = (place / "meta.json").read_text("utf-8")
        (place / "meta.json").write_text(meta.replace("boston", "austin"), "utf-8")
        report = describe_all(tmp_path, server)
    assert (report["skipped"], len(server.bodies)) == (0, 4)
    assert b"Boston" not in (place / "roles.json").read_bytes()


def test_other_settings_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    place = call(tmp_path / "calls", "x")
    with LLMServer(listener) as server:
        describe_all(tmp_path, server)
        asked = len(server.bodies)
        with refused("other-settings", place / "roles.json", "seed 0, not 1"):
            describe_all(tmp_path, server, seed=1)
        with refused("other-settings", place / "roles.json", "model 'm', not 'n'", "delete these files"):
            describe_all(tmp_path, server, model="n", out="other")
        (place / "roles.json").write_text('{"format": 1, "left": {"prompt": "Mine.", "level": "c"}}', "utf-8")
        with refused("other-settings", place / "roles.json", "generator None"):
            describe_all(tmp_path, server, out="third")
        assert len(server.bodies) == asked


def test_without_an_answer_nothing_is_written_and_the_next_run_goes_on(tmp_path: Path) -> None:
    for n in range(3):
        call(tmp_path / "calls", f"call-{n}", left=LEFT + f" | number {n} here")
    down = {"on": True}

    def reply(body: Body) -> Any:
        return status(503) if "number 1" in str(body) and down["on"] else listener(body)

    with LLMServer(reply) as server:
        report = describe_all(tmp_path, server)
        assert [item["id"] for item in report["unanswered"]] == ["call-1"]
        assert "HTTP 503" in report["unanswered"][0]["reason"]
        assert sorted(sidecars(tmp_path)) == ["call-0", "call-2"]
        down["on"] = False
        report = describe_all(tmp_path, server)
    assert (report["skipped"], report["unanswered"], report["sides"]) == (2, [], 6)


def test_it_fails_only_if_no_side_got_a_prompt(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")
    with LLMServer(["no"]) as server, refused("no-data", tmp_path / "notes" / "report.json", "prose"):
        describe_all(tmp_path, server, tries=1)


def test_a_broken_dialogue_is_listed_and_the_others_are_done(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")
    (call(tmp_path / "calls", "y") / "meta.json").write_text("{", "utf-8")
    with LLMServer(listener) as server:
        report = describe_all(tmp_path, server)
    assert [item["id"] for item in report["rejected"]] == ["y"]
    assert report["sides"] == 2


def test_width_does_not_change_a_byte(tmp_path: Path) -> None:
    results = []
    for width in (1, 7):
        root = tmp_path / str(width)
        for n in range(10):
            call(root / "calls", f"call-{n}")
        with LLMServer(listener) as server:
            describe_all(root, server, concurrency=width)
        results.append(sidecars(root))
    assert results[0] == results[1] and len(results[0]) == 10


def test_a_run_killed_in_the_middle_goes_on_for_free_and_ends_the_same(tmp_path: Path) -> None:
    """Killed while it waits for its sixth answer: what was answered is not asked again."""
    roots = [tmp_path / "calm", tmp_path / "killed"]
    for root in roots:
        for n in range(5):
            call(root / "calls", f"call-{n}", left=LEFT + f" | number {n} here")
    with LLMServer(listener) as server:
        describe_all(roots[0], server)
        calm = len(server.bodies)

    def command(url: str) -> list[str]:
        words = ["prompts", "--dialogues", str(roots[1] / "calls"), "--out", str(roots[1] / "notes")]
        return [*words, "--llm-model", "m", "--llm-url", url, "--llm-concurrency", "1", "--llm-retries", "0"]

    first, second = killed_and_resumed(command, listener, held_at=5)
    assert len(set(first)) == len(first) == 5
    assert not set(first) & set(second) and len({*first, *second}) == calm
    assert sidecars(roots[0]) == sidecars(roots[1])
    assert len({(root / "notes" / "report.json").read_bytes() for root in roots}) == 1


def test_written_dialogues_keep_the_role_they_were_written_with(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")
    place = write_dialogue(tmp_path / "calls", "y", source="service")
    with LLMServer(listener) as server:
        report = describe_all(tmp_path, server)
    assert report["rejected"] == [{"id": "y", "reason": "source service: its role was written with it and stays"}]
    assert len(server.bodies) == 2 and not (place / "roles.json").exists()


def test_a_full_disk_ends_the_run_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        call(tmp_path / "calls", f"call-{n}")

    def full(path: Path, value: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with LLMServer(listener) as server:
        with monkeypatch.context() as patch:
            patch.setattr("data_pipelines.llm.cache.write_json", full)
            with pytest.raises(OSError, match="No space left"):
                describe_all(tmp_path, server)
        assert sidecars(tmp_path) == {} and not list((tmp_path / "notes").rglob("*.part"))
        assert describe_all(tmp_path, server)["sides"] == 6


def test_stopped_before_any_change_on_the_disk_it_ends_with_the_same_files(tmp_path: Path) -> None:
    for n in range(2):
        call(tmp_path / "before" / "calls", f"call-{n}")
    with LLMServer(listener) as server:
        words = ["prompts", "--dialogues", "calls", "--out", "notes", "--llm-model", "m", "--llm-url", server.url]
        assert kill_everywhere(tmp_path, [*words, "--llm-concurrency", "1"]) > 12


def test_the_verb_needs_a_model_and_says_so(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")
    with refused("missing-option", "--llm-model"):
        verbs.main(["prompts", "--dialogues", str(tmp_path / "calls"), "--out", str(tmp_path / "notes")])


def test_a_good_answer_may_come_wrapped_for_servers_that_know_plain_text_alone(tmp_path: Path) -> None:
    call(tmp_path / "calls", "x")
    with LLMServer(lambda body: say(f"Sure.\n```json\n{json.dumps(listener(body))}\n```")) as server:
        assert describe_all(tmp_path, server, answer_format="text")["sides"] == 2
